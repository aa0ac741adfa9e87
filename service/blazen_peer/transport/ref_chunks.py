"""A session ref's value in chunks: from the stream, as long as its checksum holds."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from blazen_peer.errors import EncodeError
from blazen_peer.transport.proto import control_pb2

__all__ = ["checked_chunks"]


async def checked_chunks(stream: AsyncIterable[control_pb2.DerefChunksResponse]) -> AsyncIterator[bytes]:
    """Yield the chunks of *stream* as they come. Only its normal end says that they were the value.

    Raises:
        EncodeError: The stream was cut short, went on after its end, or is not what its checksum says.
    """
    checksum, size_bytes, end = hashlib.sha256(), 0, None
    async for message in stream:
        if end is not None:
            raise EncodeError("the stream of the session ref's value went on after its end")
        match message.WhichOneof("part"):
            case "data":
                checksum.update(message.data)
                size_bytes += len(message.data)
                yield message.data
            case "end":
                end = message.end
    if end is None:
        raise EncodeError(f"the session ref's value was cut short after {size_bytes} bytes")
    if (end.size_bytes, end.sha256) != (size_bytes, checksum.digest()):
        raise EncodeError(f"the session ref's value of {size_bytes} bytes is not what its checksum says")
