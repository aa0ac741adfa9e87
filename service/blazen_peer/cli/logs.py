"""How log lines look: text for people, or one JSON object a line; both name the run and the trace that a line belongs to."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TextIO

from blazen_peer import telemetry
from blazen_peer.errors import ValidationError
from blazen_peer.transport.call_log import LOGGER, CallLine

__all__ = ["log_to"]

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NAMED = ("run_id", "trace_id", "step_id", "workflow_name", "invocation_id")


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the library's name)
        line = super().formatMessage(record)
        names = (("run", "run_id"), ("trace", "trace_id"))
        known = [f"{name}={value}" for name, field in names if (value := getattr(record, field, None)) is not None]
        return f"{line} [{' '.join(known)}]" if known else line


class _Json(logging.Formatter):
    """``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``node``, the ids that are known, and ``traceback``.

    The line of a call has its own fields instead of a message; its time is when the call began.
    """

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": self._node_id,
        }
        if isinstance(record.msg, CallLine):
            del entry["message"]
            return json.dumps({**entry, **record.msg}, ensure_ascii=False)
        known = {name: value for name in _NAMED if (value := getattr(record, name, None)) is not None}
        if "trace_id" not in known and (trace_id := telemetry.current_trace_id()) is not None:
            known["trace_id"] = trace_id
        if record.exc_info:
            known["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**entry, **known}, ensure_ascii=False, default=str)


def log_to(stream: TextIO, level: int, *, style: str = "text", node_id: str = "", access_log: bool = False) -> None:
    """Write the records of *level* and above to *stream*, unless the process logs somewhere already.

    Args:
        access_log: Whether the lines of calls are among them, whatever the level.

    Raises:
        ValidationError: *style* is neither ``text`` nor ``json``.
    """
    formatters = {"text": _Text(FORMAT), "json": _Json(node_id)}
    if style not in formatters:
        raise ValidationError(f"log format {style!r} is not one of {', '.join(formatters)}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters[style])
    logging.basicConfig(level=level, handlers=[handler])
    if access_log:
        logging.getLogger(LOGGER).setLevel(logging.INFO)
