"""How log lines look: a line that a step writes by its context's logger names its run and its trace."""

from __future__ import annotations

import logging
from typing import TextIO

__all__ = ["log_to"]

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the library's name)
        line = super().formatMessage(record)
        names = (("run", "run_id"), ("trace", "trace_id"))
        known = [f"{name}={value}" for name, field in names if (value := getattr(record, field, None)) is not None]
        return f"{line} [{' '.join(known)}]" if known else line


def log_to(stream: TextIO, level: int) -> None:
    """Write the records of *level* and above to *stream*, unless the process logs somewhere already."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
