"""Every error raised on purpose.

    BlazenError
    ├── ValidationError               the caller's own arguments are wrong
    ├── WorkflowError                 the workflow ran and failed, here or on the peer
    └── PeerError                     the call itself failed; ``kind`` says how
        ├── TransportError            "Transport"            nobody answered; ``may_have_run``
        │   └── TlsError              "Tls"                  handshake or certificate
        ├── UnknownStepError          "UnknownStep"          the peer lacks that step or workflow
        ├── EnvelopeVersionError      "EnvelopeVersion"      the envelope is newer than the reader
        ├── EncodeError               "Encode"               bytes that do not decode, or too many
        ├── UnauthenticatedError      "Unauthenticated"      no token, or a bad one
        ├── PermissionDeniedError     "PermissionDenied"     known, but not allowed
        ├── OverloadedError           "Overloaded"           over a limit; ``retry_after_secs``
        ├── RefNotFoundError          "RefNotFound"          no such session ref for this caller
        ├── InvocationConflictError   "InvocationConflict"   the id was used for another request, or its answer is gone
        └── InvocationNotFoundError   "InvocationNotFound"   no such call of this caller at that peer

A plain ``PeerError`` has kind "Unsupported" (the peer lacks the call) or "Protocol" (any other status). ``kind`` is stable:
compare it, never the text. All fields are in ``args``, so that ``repr`` and ``pickle`` work.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BlazenError",
    "EncodeError",
    "EnvelopeVersionError",
    "InvocationConflictError",
    "InvocationNotFoundError",
    "OverloadedError",
    "PeerError",
    "PermissionDeniedError",
    "RefNotFoundError",
    "TlsError",
    "TransportError",
    "UnauthenticatedError",
    "UnknownStepError",
    "ValidationError",
    "WorkflowError",
]


class BlazenError(Exception):
    """The root of this tree. ``kind`` is a stable word for programs; ``str()`` is one line for people."""

    kind: str = "Error"


class ValidationError(BlazenError):
    """What the caller of this function gave is wrong: an address, a name, a setting, JSON, a step's signature."""

    kind = "Validation"


class WorkflowError(BlazenError):
    """The workflow ran and failed.

    Attributes:
        message: What failed; from a peer, the text of its answer as it came (``workflow error: step 'x' failed: boom``).
        step_id: The step that failed, where one did and it is known (a remote failure tells it in the message alone).
    """

    kind = "Workflow"

    def __init__(self, message: str, step_id: str | None = None) -> None:
        super().__init__(message, step_id)
        self.message, self.step_id = message, step_id

    def __str__(self) -> str:
        return self.message


class PeerError(BlazenError):
    """The call to a peer failed, other than by its workflow's failing.

    Attributes:
        message: One line for people.
        kind: "Unsupported" or "Protocol" here; fixed for each subclass.
        status: The gRPC status name, such as ``INTERNAL``, where a status was the cause.
    """

    kind = "Protocol"

    def __init__(self, message: str, kind: str = "Protocol", status: str | None = None) -> None:
        super().__init__(message, kind, status)
        self.message, self.kind, self.status = message, kind, status

    def __str__(self) -> str:
        return self.message


class _FixedKindError(PeerError):
    """A ``PeerError`` whose kind is its class's own."""

    fixed_kind: ClassVar[str]

    def __init_subclass__(cls, kind: str = "", **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.fixed_kind = cls.kind = kind

    def __init__(self, message: str) -> None:
        super().__init__(message, self.fixed_kind)
        self.args = (message,)


class TransportError(_FixedKindError, kind="Transport"):
    """Nobody answered: refused, unreachable, broken off, or not in time.

    Attributes:
        may_have_run: False when the request cannot have reached a run; True when nobody can know.
    """

    def __init__(self, message: str, may_have_run: bool = True) -> None:
        super().__init__(message)
        self.args = (message, may_have_run)
        self.may_have_run = may_have_run


class TlsError(TransportError, kind="Tls"):
    """The handshake failed or a certificate was refused. Nothing ran, so ``may_have_run`` is False unless said otherwise."""

    def __init__(self, message: str, may_have_run: bool = False) -> None:
        super().__init__(message, may_have_run)


class OtherProcessError(TransportError):
    """A repeat met another process than the one that it is for; this one has run nothing. Callers see a ``TransportError``.

    Attributes:
        instance_id: Of the process that answered.
    """

    def __init__(self, message: str, instance_id: str) -> None:
        super().__init__(message, may_have_run=False)
        self.args = (message, instance_id)
        self.instance_id = instance_id


class UnknownStepError(_FixedKindError, kind="UnknownStep"):
    """The peer has no such step, or no such workflow; ``step_id`` names it where the peer said so."""

    def __init__(self, message: str, step_id: str | None = None) -> None:
        super().__init__(message)
        self.args = (message, step_id)
        self.step_id = step_id


class EnvelopeVersionError(_FixedKindError, kind="EnvelopeVersion"):
    """The sender speaks a newer envelope version than the reader.

    Attributes:
        got: The version that was sent, or None where the peer did not say.
        supported: The newest version that the reader knows, or None likewise.
    """

    def __init__(self, got: int | None, supported: int | None, message: str | None = None) -> None:
        super().__init__(message or f"envelope version {got} is newer than supported {supported}")
        self.args = (got, supported, message)
        self.got, self.supported = got, supported


class EncodeError(_FixedKindError, kind="Encode"):
    """Bytes that do not decode, a request that the peer could not read, or a message over the limit.

    Attributes:
        size_bytes, limit_bytes: For a message over a limit, where known.
    """

    def __init__(self, message: str, size_bytes: int | None = None, limit_bytes: int | None = None) -> None:
        super().__init__(message)
        self.args = (message, size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class UnauthenticatedError(_FixedKindError, kind="Unauthenticated"):
    """The peer refused the token, or wants one. Its own log says why; it tells callers nothing."""


class PermissionDeniedError(_FixedKindError, kind="PermissionDenied"):
    """The caller is known and this is not allowed: by a sidecar's flows, by the policy, or token and certificate disagree."""


class OverloadedError(_FixedKindError, kind="Overloaded"):
    """The peer is over a limit.

    Attributes:
        retry_after_secs: When the peer said to try again, in seconds; None when it did not.
    """

    def __init__(self, message: str, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.args = (message, retry_after_secs)
        self.retry_after_secs = retry_after_secs


class RefNotFoundError(_FixedKindError, kind="RefNotFound"):
    """No such session ref for this caller: unknown, expired, released, or somebody else's."""


class InvocationConflictError(_FixedKindError, kind="InvocationConflict"):
    """The invocation id was already used by this caller, for another request or for one whose answer is no longer kept."""


class InvocationNotFoundError(_FixedKindError, kind="InvocationNotFound"):
    """The peer knows no such call of this caller: unknown, forgotten, another replica's, or somebody else's."""
