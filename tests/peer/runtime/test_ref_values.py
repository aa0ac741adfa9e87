"""How values become chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.errors import ValidationError
from blazen_peer.runtime.ref_values import chunks_of


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_chunks_are_the_bytes(pieces: list[bytes], chunk_bytes: int) -> None:
    """Whatever pieces a serializer makes, the chunks are the same bytes; each but the last has the size asked for."""
    chunks = list(chunks_of(None, lambda _: iter(pieces), chunk_bytes))
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) == chunk_bytes for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks[-1:])


def test_no_piece_is_made_before_it_is_wanted() -> None:
    """A serializer that yields is asked for no more than the chunk that is read."""
    made = []

    def pieces(_: object) -> Iterator[bytes]:
        for number in range(100):
            made.append(number)
            yield b"x" * 10

    chunks = chunks_of(None, pieces, 25)
    assert made == []
    next(chunks)
    assert len(made) == 3


def test_wrong_piece() -> None:
    """A serializer that makes something else than bytes on the way is an error there."""
    chunks = chunks_of(None, lambda _: [b"xx", "text"], 2)
    assert next(chunks) == b"xx"
    with pytest.raises(ValidationError, match="not str"):
        next(chunks)
