"""How a command ends: its exit code, and one JSON object for scripts."""

from __future__ import annotations

import json
from typing import Final

__all__ = ["DONE", "PROBLEMS", "WRONG_USE", "print_json"]

DONE: Final = 0
PROBLEMS: Final = 1
WRONG_USE: Final = 2


def print_json(value: object) -> None:
    """Print *value* as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))
