"""A value in chunks is the value, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from blazen_peer.errors import EncodeError
from blazen_peer.transport.proto.control_pb2 import DerefChunksResponse, DerefEnd
from blazen_peer.transport.ref_chunks import checked_chunks


async def stream(*parts: bytes | DerefEnd | None) -> AsyncIterator[DerefChunksResponse]:
    for part in parts:
        match part:
            case None:
                yield DerefChunksResponse()
            case bytes():
                yield DerefChunksResponse(data=part)
            case _:
                yield DerefChunksResponse(end=part)


def end(value: bytes, size_bytes: int | None = None) -> DerefEnd:
    return DerefEnd(size_bytes=len(value) if size_bytes is None else size_bytes, sha256=hashlib.sha256(value).digest())


GOOD = [
    pytest.param((b"ab", b"c", end(b"abc")), b"abc", id="chunks"),
    pytest.param((end(b""),), b"", id="nothing"),
    pytest.param((b"a", None, b"b", end(b"ab")), b"ab", id="parts-of-later-versions-are-passed-over"),
]


@pytest.mark.parametrize(("parts", "value"), GOOD)
async def test_good(parts: tuple[bytes | DerefEnd | None, ...], value: bytes) -> None:
    """Chunks come as they are."""
    assert b"".join([chunk async for chunk in checked_chunks(stream(*parts))]) == value


BAD = [
    pytest.param((b"abc",), "cut short after 3 bytes", id="no-end"),
    pytest.param((), "cut short after 0 bytes", id="nothing-at-all"),
    pytest.param((b"abd", end(b"abc")), "not what its checksum says", id="another-byte"),
    pytest.param((b"ab", end(b"abc")), "not what its checksum says", id="a-byte-less"),
    pytest.param((b"abc", end(b"abc", 4)), "not what its checksum says", id="another-size"),
    pytest.param((b"abc", DerefEnd(size_bytes=3)), "not what its checksum says", id="no-checksum"),
    pytest.param((b"abc", end(b"abc"), b"d"), "went on after its end", id="data-after-the-end"),
    pytest.param((end(b""), end(b"")), "went on after its end", id="two-ends"),
]


@pytest.mark.parametrize(("parts", "text"), BAD)
async def test_bad(parts: tuple[bytes | DerefEnd, ...], text: str) -> None:
    """What is not whole, or not what was sent, ends with an error."""
    with pytest.raises(EncodeError, match=text):
        async for _ in checked_chunks(stream(*parts)):
            pass
