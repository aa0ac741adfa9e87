"""The one table between our errors and gRPC statuses, both ways (``wire.md``).

A refusal carries ``google.rpc.ErrorInfo`` (domain ``blazen.peer.v1``) in ``grpc-status-details-bin``, so that our client
never parses a sentence of ours. From a server that sends none it falls back on the status code, and for UNAVAILABLE on
what gRPC and Envoy are known to write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from blazen_peer.errors import (
    BlazenError,
    EncodeError,
    EnvelopeVersionError,
    InvocationConflictError,
    InvocationNotFoundError,
    OtherProcessError,
    OverloadedError,
    PeerError,
    PermissionDeniedError,
    RefNotFoundError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
)

__all__ = ["Refusal", "raised_by", "refusal_of"]

DOMAIN: Final = "blazen.peer.v1"
DETAILS_KEY: Final = "grpc-status-details-bin"
MAX_TEXT_BYTES: Final = 512  # a 20 KB text in a status arrives as another error
MAX_FIELD_CHARS: Final = 128  # of a value in ErrorInfo, which travels in a header too

_ROWS: Final[tuple[tuple[type[BlazenError], grpc.StatusCode, str], ...]] = (
    (EncodeError, grpc.StatusCode.INVALID_ARGUMENT, "ENCODE"),
    (EnvelopeVersionError, grpc.StatusCode.FAILED_PRECONDITION, "ENVELOPE_VERSION"),
    (UnknownStepError, grpc.StatusCode.NOT_FOUND, "UNKNOWN_STEP"),
    (RefNotFoundError, grpc.StatusCode.NOT_FOUND, "REF_NOT_FOUND"),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (InvocationConflictError, grpc.StatusCode.ALREADY_EXISTS, "INVOCATION_CONFLICT"),
    (InvocationNotFoundError, grpc.StatusCode.NOT_FOUND, "INVOCATION_NOT_FOUND"),
    (OtherProcessError, grpc.StatusCode.UNAVAILABLE, "OTHER_PROCESS"),
    (TransportError, grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
)

# gRPC core: the channel never got a connection. Envoy: no host, or its own connection to the host was never made.
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_NEVER_SENT = re.compile(
    r"failed to connect to all addresses|DNS resolution failed|errors resolving |no healthy upstream|cluster not found"
    r"|reset reason: (remote |local )?connection (failure|timeout)|reset reason: overflow",
    re.IGNORECASE,
)
_TLS = re.compile(
    r"TLS_error|SSL_ERROR|CERTIFICATE_VERIFY_FAILED|handshake (failed|failure)|Custom verification check failed", re.IGNORECASE
)
# Who ends a stream in the middle, a proxy that bounds its time or a process that goes, sends no status; gRPC makes this of it.
_RESET = re.compile(r"Received RST_STREAM|Stream removed")
_CLOSED_WHILE_CONNECTING = re.compile(r"failed to connect to all addresses.*(Socket closed|reset by peer)", re.DOTALL)
# grpcio: "larger than max (5 vs. 4)". tonic: "length too large: found 5 bytes, the limit is: 4 bytes".
_SIZES = re.compile(r"\((\d+) vs\. (\d+)\)|found (\d+) bytes, the limit is: (\d+)")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status as it goes out: the code, its text of at most 512 bytes, and the trailing metadata with the details."""

    code: grpc.StatusCode
    text: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def refusal_of(error: BlazenError) -> Refusal:
    """Return the status that *error* goes out as; INTERNAL without a word for one that the table lacks."""
    row = next((row for row in _ROWS if isinstance(error, row[0])), None)
    if row is None and isinstance(error, PeerError) and error.status == grpc.StatusCode.INTERNAL.name:
        return Refusal(grpc.StatusCode.INTERNAL, _cut(str(error)), ())
    if row is None:
        return Refusal(grpc.StatusCode.INTERNAL, "internal error", ())
    _, code, reason = row
    if isinstance(error, EncodeError) and error.limit_bytes is not None:
        code = grpc.StatusCode.RESOURCE_EXHAUSTED  # too large rather than wrong: what gRPC itself says of such a message
    text = _cut(str(error))
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=_fields(error))
    status = Status(code=code.value[0], message=text)
    status.details.add().Pack(info)
    if isinstance(error, OverloadedError) and error.retry_after_secs is not None:
        retry = RetryInfo(retry_delay=Duration(nanos=0))
        retry.retry_delay.FromNanoseconds(round(error.retry_after_secs * 1e9))
        status.details.add().Pack(retry)
    return Refusal(code, text, ((DETAILS_KEY, status.SerializeToString()),))


def raised_by(error: grpc.aio.AioRpcError, *, greeting_over_tls: bool = False) -> BlazenError:
    """Return the error that a caller gets to see for a failed RPC; never a bare gRPC error.

    Args:
        error: What gRPC raised.
        greeting_over_tls: Whether it was the first call over direct TLS. A server that does not believe a client's certificate
            just closes the connection; later on, it may as well have been going away.
    """
    text = error.details() or error.code().name
    if greeting_over_tls and _CLOSED_WHILE_CONNECTING.search(text):
        return TlsError(f"the peer does not accept this client's certificate, or speaks no TLS: {text}")
    status = _details_of(error)
    info = _unpacked_info(status) if status is not None else None
    if status is not None and info is not None:
        return _typed(text, info, status) or _by_code(error.code(), text)
    return _by_code(error.code(), text)


def raised_by_refusal(code: int, text: str, details: bytes) -> BlazenError:
    """Return the error for a refusal that a frame of a lane carries: *code* as google.rpc.Code has it, *details* a Status."""
    known = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    try:
        status = Status.FromString(details) if details else None
    except DecodeError:
        status = None
    info = _unpacked_info(status) if status is not None else None
    typed = _typed(text, info, status) if status is not None and info is not None else None
    return typed or _by_code(known, text)


def _cut(text: str) -> str:
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= MAX_TEXT_BYTES else raw[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "..."


def _fields(error: BlazenError) -> dict[str, str]:
    known: dict[str, object] = {}
    match error:
        case EncodeError():
            known = {"size_bytes": error.size_bytes, "limit_bytes": error.limit_bytes}
        case EnvelopeVersionError():
            known = {"got": error.got, "supported": error.supported}
        case UnknownStepError():
            known = {"step_id": error.step_id}
        case OtherProcessError():
            known = {"instance_id": error.instance_id}
        case TransportError():
            known = {"may_have_run": str(error.may_have_run).lower()}
    return {name: str(value)[:MAX_FIELD_CHARS] for name, value in known.items() if value is not None}


def _details_of(error: grpc.aio.AioRpcError) -> Status | None:
    for name, value in error.trailing_metadata() or ():
        if name == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _unpacked_info(status: Status) -> ErrorInfo | None:
    info = ErrorInfo()
    for detail in status.details:
        try:
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
        except DecodeError:
            return None
    return None


def _typed(text: str, info: ErrorInfo, status: Status) -> BlazenError | None:
    def number(name: str) -> int | None:
        value = info.metadata.get(name, "")
        return int(value) if value.isascii() and value.isdigit() else None

    match info.reason:
        case "ENCODE":
            return EncodeError(text, number("size_bytes"), number("limit_bytes"))
        case "ENVELOPE_VERSION":
            return EnvelopeVersionError(number("got"), number("supported"), text)
        case "UNKNOWN_STEP":
            return UnknownStepError(text, info.metadata.get("step_id"))
        case "REF_NOT_FOUND":
            return RefNotFoundError(text)
        case "UNAUTHENTICATED":
            return UnauthenticatedError(text)
        case "PERMISSION_DENIED":
            return PermissionDeniedError(text)
        case "OVERLOADED":
            return OverloadedError(text, _retry_after_secs(status))
        case "INVOCATION_CONFLICT":
            return InvocationConflictError(text)
        case "INVOCATION_NOT_FOUND":
            return InvocationNotFoundError(text)
        case "OTHER_PROCESS":
            return OtherProcessError(text, info.metadata.get("instance_id", ""))
        case "UNAVAILABLE":
            return TransportError(text, may_have_run=info.metadata.get("may_have_run") != "false")
        case _:
            return None


def _retry_after_secs(status: Status) -> float | None:
    retry = RetryInfo()
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                return float(retry.retry_delay.ToNanoseconds() / 1e9)
        except DecodeError:
            return None
    return None


def _by_code(code: grpc.StatusCode, text: str) -> BlazenError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            if _TLS.search(text):
                return TlsError(text)
            return TransportError(text, may_have_run=_NEVER_SENT.search(text) is None)
        case grpc.StatusCode.INTERNAL if _RESET.search(text):
            return TransportError(text)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TransportError(f"no answer within the deadline: {text}")
        case grpc.StatusCode.NOT_FOUND:
            return UnknownStepError(text)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return EnvelopeVersionError(None, None, text)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return EncodeError(text)
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(text)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDeniedError(text)
        case grpc.StatusCode.OUT_OF_RANGE:
            return EncodeError(text, *_sizes(text))
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return EncodeError(text, *_sizes(text)) if _SIZES.search(text) else OverloadedError(text)
        case grpc.StatusCode.ALREADY_EXISTS:
            return InvocationConflictError(text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return PeerError(text, "Unsupported", code.name)
        case _:
            return PeerError(text, "Protocol", code.name)


def _sizes(text: str) -> tuple[int | None, int | None]:
    match = _SIZES.search(text)
    if match is None:
        return None, None
    size, limit = (int(group) for group in match.groups() if group is not None)
    return size, limit
