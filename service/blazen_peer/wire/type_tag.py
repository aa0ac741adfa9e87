"""The type tag that Blazen's own Python and Node bindings put before a session ref's bytes."""

from __future__ import annotations

__all__ = ["without_type_tag"]


def without_type_tag(payload: bytes, type_tag: str) -> bytes:
    """Return *payload* without the tag, and the tag's length in 4 bytes (big-endian) before it, where it begins so.

    Only for what a peer other than ours answers: ours puts no prefix before a value, which may happen to begin like one.
    """
    tag = type_tag.encode("utf-8", "replace")
    return payload.removeprefix(len(tag).to_bytes(4, "big") + tag)
