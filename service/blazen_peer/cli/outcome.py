"""What a command's end looks like from outside: exit codes, one line for people, one object for programs."""

from __future__ import annotations

import json
import sys
from enum import IntEnum

from blazen_peer.errors import (
    BlazenError,
    OverloadedError,
    PermissionDeniedError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    ValidationError,
    WorkflowError,
)

__all__ = ["Exit", "exit_of", "report"]


class Exit(IntEnum):
    """The exit codes of ``blazen-peer``."""

    DONE = 0
    OTHER = 1
    WRONG_USE = 2
    REFUSED = 3
    WORKFLOW_FAILED = 4
    TRANSPORT = 5
    OVERLOADED = 6
    UNKNOWN_STEP = 7


_EXITS: tuple[tuple[type[BlazenError], Exit, str | None], ...] = (
    (ValidationError, Exit.WRONG_USE, None),
    (UnauthenticatedError, Exit.REFUSED, "set BLAZEN_PEER_TOKEN to the peer's token; the peer's log has the reason"),
    (
        PermissionDeniedError,
        Exit.REFUSED,
        "is --node-id the node of this sidecar's certificate, and does a flow allow this call?",
    ),
    (WorkflowError, Exit.WORKFLOW_FAILED, None),
    (TlsError, Exit.TRANSPORT, "look at both sidecars' certificates: blazen-certs verify NODE"),
    (TransportError, Exit.TRANSPORT, "is the peer running, and behind a sidecar, is the sidecar?"),
    (OverloadedError, Exit.OVERLOADED, "try again in a moment"),
    (UnknownStepError, Exit.UNKNOWN_STEP, "blazen-peer describe ADDRESS lists what the peer has"),
)


def exit_of(error: BlazenError) -> tuple[Exit, str | None]:
    """Return the exit code for *error* and what a person can do next, where there is something to say."""
    return next(((code, hint) for error_type, code, hint in _EXITS if isinstance(error, error_type)), (Exit.OTHER, None))


def report(error: BlazenError, *, as_json: bool) -> Exit:
    """Print *error* (one object on standard output, or one line on standard error) and return the exit code."""
    code, hint = exit_of(error)
    if as_json:
        print(json.dumps({"error": {"kind": error.kind, "message": str(error)}}, ensure_ascii=False))
    else:
        first_line = " ".join(str(error).split())
        print(f"blazen-peer: {first_line}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    return code
