"""What bench/deref.py calls: a step that leaves a large value behind, of which no more than a piece is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator

from blazen_peer import Context, StartEvent, StopEvent, step

PIECE = bytes(range(256)) * 1024


@step("bench::hold")
async def hold(event: StartEvent, ctx: Context) -> StopEvent:
    """Leave a value of the size asked for, as from a file."""
    size_bytes = event.data["size_bytes"]

    def pieces(_: object) -> Iterator[bytes]:
        left = size_bytes
        while left > 0:
            yield PIECE[:left]
            left -= len(PIECE)

    return StopEvent(result=str(ctx.put_ref(None, type_tag="bench::Large", serializer=pieces, size_bytes=1).uuid))
