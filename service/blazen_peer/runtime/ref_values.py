"""How a live value becomes bytes: all at once, or piece by piece, so that a large one never is in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from blazen_peer.errors import ValidationError

__all__ = ["BytesLike", "Serializer", "chunks_of", "is_serializable", "measured", "pieces_of"]

BytesLike: TypeAlias = "bytes | bytearray | memoryview"

Serializer: TypeAlias = Callable[[Any], "BytesLike | Iterable[BytesLike]"]
"""Makes a value's bytes, or yields them in pieces of any size. It is called once for each reading, in a thread."""


def is_serializable(value: object, serializer: Serializer | None) -> bool:
    """Say whether *value* can be read elsewhere: it has a serializer, or is bytes."""
    return serializer is not None or isinstance(value, bytes | bytearray | memoryview)


def pieces_of(value: Any, serializer: Serializer | None) -> Iterator[memoryview]:
    """Yield the bytes of *value* in the pieces that its serializer makes.

    Raises:
        ValidationError: The serializer makes something else.
    """
    written = value if serializer is None else serializer(value)
    if isinstance(written, bytes | bytearray | memoryview):
        yield memoryview(written).cast("B")
        return
    if isinstance(written, str) or not isinstance(written, Iterable):
        raise ValidationError(f"a serializer makes bytes, or pieces of bytes one after another, not {type(written).__name__}")
    for piece in written:
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise ValidationError(f"a serializer's pieces are bytes, not {type(piece).__name__}")
        yield memoryview(piece).cast("B")


def measured(value: Any, serializer: Serializer | None, limit: int) -> int:
    """Return how many bytes *value* is written as, counting no further than just over *limit*; 0 where it cannot be written."""
    size = 0
    if is_serializable(value, serializer):
        for piece in pieces_of(value, serializer):
            size += len(piece)
            if size > limit:
                break
    return size


def chunks_of(value: Any, serializer: Serializer | None, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of *value* in chunks of *chunk_bytes*, the last one shorter, whatever pieces the serializer makes."""
    rest = bytearray()
    for piece in pieces_of(value, serializer):
        start = 0
        while len(rest) + len(piece) - start >= chunk_bytes:
            end = start + chunk_bytes - len(rest)
            if rest:
                rest += piece[start:end]
                yield bytes(rest)
                rest.clear()
            else:
                yield bytes(piece[start:end])
            start = end
        rest += piece[start:]
    if rest:
        yield bytes(rest)
