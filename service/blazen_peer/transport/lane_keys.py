"""The keys of lanes: the ids of a lane's calls begin with its key, by which sidecars lead them and what follows them alike."""

from __future__ import annotations

import secrets
from typing import Final

__all__ = ["KEY_END", "lane_key", "new_key"]

KEY_END: Final = "~"


def new_key() -> str:
    """Return a key for a new lane."""
    return secrets.token_hex(4)


def lane_key(invocation_id: str) -> str | None:
    """Return the key of the lane that a call with this id went by; None for one that did not choose."""
    key, end, _ = invocation_id.partition(KEY_END)
    return key if end else None
