"""What the commands print, and the exit codes that they share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from blazen_certs.authority import IssuedIdentity
from blazen_certs.facts import printable, sha256, time_text

__all__ = [
    "CHECK_FAILED",
    "DONE",
    "WRONG_USE",
    "fail",
    "identity_value",
    "print_event",
    "print_event_text",
    "print_json",
    "print_lines",
]

DONE, CHECK_FAILED, WRONG_USE = 0, 1, 2


def fail(arguments: Sequence[str], code: int, kind: str, message: str) -> int:
    """Say *message* in one line on standard error, with ``--json`` also as an object on standard output; return *code*."""
    if "--json" in arguments:
        print_json({"error": {"kind": kind, "message": message}})
    print(f"blazen-certs: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def identity_value(identity: IssuedIdentity) -> dict[str, Any]:
    """Return a new identity as ``issue --json`` and ``join --json`` show it; the files by way of ``current``."""
    return {
        "node": identity.peer.node_id,
        "spiffe_id": str(identity.peer),
        "directory": str(identity.path),
        "version": identity.version,
        "certificate": str(identity.certificate_path),
        "key": str(identity.key_path),
        "bundle": str(identity.bundle_path),
        "crl": str(identity.crl_path),
        "serial": f"{identity.certificate.serial_number:x}",
        "not_after": time_text(identity.certificate.not_valid_after_utc),
        "sha256": sha256(identity.certificate),
    }


def print_json(value: dict[str, Any]) -> None:
    """Print one object on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(items: Iterable[RenderableType]) -> None:
    """Print *items* for people, each on a line of its own."""
    # Into a pipe nothing is broken: each line is for grep.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for item in items:
        console.print(item, soft_wrap=isinstance(item, str | Text))


def print_event(event: dict[str, Any]) -> None:
    """Print what a long-running command does, one line of JSON each, at once."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


def print_event_text(event: dict[str, Any]) -> None:
    """Print the same for people: the time, what happened, and the rest as ``name=value``."""
    rest = "  ".join(f"{key}={_text(value)}" for key, value in event.items() if key not in ("time", "event"))
    print(f"{event['time']} {event['event']:<12} {rest}".rstrip(), file=sys.stdout, flush=True)


def _text(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return printable(f'"{text}"' if " " in text else text)
