"""One call as one frame of a lane of its own, for tests that say every header themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import grpc

from blazen_peer.transport.lane_frames import LANE_METHOD
from blazen_peer.transport.lanes import REFUSAL_SECS
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.status import DETAILS_KEY

__all__ = ["by_lane"]

IN_FRAME: Final = {
    "blazen-invocation-id": "invocation_id",
    "blazen-data-class": "data_class",
    "traceparent": "traceparent",
}
"""What stands in the frame, of the metadata of a call alone; all else goes with the lane."""


async def by_lane(
    channel: grpc.aio.Channel, envelope: bytes, metadata: Sequence[tuple[str, str]], timeout_secs: float | None
) -> bytes:
    """Return the response envelope.

    Raises:
        grpc.aio.AioRpcError: The lane was not opened, or the frame was refused.
    """
    try:
        return await _by_lane(channel, envelope, metadata, timeout_secs, 0)
    except grpc.aio.AioRpcError as error:
        if error.details() != "Internal error from Core":  # what grpc.aio says when it was answered while it sent the hello
            raise
    return await _by_lane(channel, envelope, metadata, timeout_secs, REFUSAL_SECS)


async def _by_lane(
    channel: grpc.aio.Channel,
    envelope: bytes,
    metadata: Sequence[tuple[str, str]],
    timeout_secs: float | None,
    refusal_secs: float,
) -> bytes:
    headers = tuple((name, value) for name, value in metadata if name not in IN_FRAME)
    call = lane_pb2.Call(id=1, envelope=envelope, **{IN_FRAME[name]: value for name, value in metadata if name in IN_FRAME})
    lane = channel.stream_stream(LANE_METHOD)(metadata=headers)
    try:
        async with asyncio.timeout(timeout_secs):
            if refusal_secs:
                await asyncio.wait({asyncio.ensure_future(lane.initial_metadata())}, timeout=refusal_secs)
            with contextlib.suppress(asyncio.InvalidStateError):  # it is over already: reading says how
                await lane.write(lane_pb2.LaneRequest(hello=lane_pb2.Hello(version=1)).SerializeToString())
            message = lane_pb2.LaneRequest(calls=[call])
            while (raw := await lane.read()) is not grpc.aio.EOF:
                for answer in lane_pb2.LaneResponse.FromString(raw).answers:
                    if not answer.HasField("refusal"):
                        return answer.envelope
                    code = next(code for code in grpc.StatusCode if code.value[0] == answer.refusal.code)
                    trailing = grpc.aio.Metadata((DETAILS_KEY, answer.refusal.details))
                    raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, answer.refusal.text)
                await lane.write(message.SerializeToString())
                message = lane_pb2.LaneRequest(ping=True)  # a sign of life for each of the peer's
            raise AssertionError(f"the lane ended without an answer: {await lane.code()}")
    finally:
        lane.cancel()
