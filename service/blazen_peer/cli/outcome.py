"""What a command's end looks like from outside: exit codes, one line for people, one object for programs."""

from __future__ import annotations

import json
import sys
from enum import IntEnum

from blazen_peer.errors import (
    BlazenError,
    InvocationNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RefNotFoundError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    ValidationError,
    WorkflowError,
)

__all__ = ["Exit", "exit_of", "fail", "print_json", "printable", "report"]


class Exit(IntEnum):
    """The exit codes of ``blazen-peer``; a ``serve`` that something keeps beyond its time ends with 70 (see ``process``)."""

    DONE = 0
    OTHER = 1
    WRONG_USE = 2
    REFUSED = 3
    WORKFLOW_FAILED = 4
    TRANSPORT = 5
    OVERLOADED = 6
    UNKNOWN_STEP = 7
    INTERRUPTED = 130  # 128 + SIGINT, as shells say it


_EXITS: tuple[tuple[type[BlazenError], Exit, str | None], ...] = (
    (ValidationError, Exit.WRONG_USE, None),
    (UnauthenticatedError, Exit.REFUSED, "set BLAZEN_PEER_TOKEN to the peer's token; the peer's log has the reason"),
    (
        PermissionDeniedError,
        Exit.REFUSED,
        "is --node-id the node of this sidecar's certificate, and does a flow allow this call?",
    ),
    (WorkflowError, Exit.WORKFLOW_FAILED, None),
    (TlsError, Exit.TRANSPORT, "look at both ends' certificates: blazen-certs verify NODE"),
    (TransportError, Exit.TRANSPORT, "is the peer running, and behind a sidecar, is the sidecar?"),
    (OverloadedError, Exit.OVERLOADED, "try again in a moment"),
    (UnknownStepError, Exit.UNKNOWN_STEP, "blazen-peer describe ADDRESS lists what the peer has"),
    (InvocationNotFoundError, Exit.UNKNOWN_STEP, "was it this --node-id that began the run, and at this peer?"),
    (
        RefNotFoundError,
        Exit.UNKNOWN_STEP,
        "blazen-peer refs list ADDRESS lists what the peer holds for this --node-id",
    ),
)


def exit_of(error: BlazenError) -> tuple[Exit, str | None]:
    """Return the exit code for *error* and what a person can do next, where there is something to say."""
    return next(((code, hint) for error_type, code, hint in _EXITS if isinstance(error, error_type)), (Exit.OTHER, None))


def report(error: BlazenError, *, as_json: bool, hint: bool = True) -> Exit:
    """Print *error* (one object on standard output, or one line on standard error) and return the exit code."""
    code, next_step = exit_of(error)
    return fail(code, error.kind, str(error), hint=next_step if hint else None, as_json=as_json)


def fail(code: Exit, kind: str, message: str, *, hint: str | None = None, as_json: bool) -> Exit:
    """Print what went wrong and return *code*; with *as_json* as ``{"error": {"kind": ..., "message": ...}}``."""
    if as_json:
        print_json({"error": {"kind": kind, "message": printable(message)}})
    else:
        line = " ".join(message.split())
        print(f"blazen-peer: {printable(line)}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    return code


def print_json(value: object) -> None:
    """Print *value* as one line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False))


def printable(text: str) -> str:
    """Return *text* with what a terminal would obey, or cannot show, as escapes: a peer's words may hold anything."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
