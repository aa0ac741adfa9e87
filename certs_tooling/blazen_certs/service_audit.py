"""The audit trail of a store: ``audit.jsonl``, one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blazen_certs.facts import time_text

__all__ = ["AUDIT_FILE", "write_audit"]

AUDIT_FILE = "audit.jsonl"


def write_audit(store_directory: Path, event: str, **facts: Any) -> dict[str, Any]:
    """Append one line, forced to disk when this returns; return its object. Several processes may write at once.

    Raises:
        OSError: The disk, or the rights, do not allow it.
    """
    line = {"time": time_text(datetime.now(UTC)), "event": event, **facts}
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(store_directory / AUDIT_FILE, flags, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")  # in one call, so that no other line comes between
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return line
