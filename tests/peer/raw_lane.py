"""Frames of a lane as calls of a server that a test made: what answers a call alone answers a frame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from blazen_peer.transport.lane_limits import LANE_VERSION, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_OPEN_FRAMES
from blazen_peer.transport.proto import lane_pb2, peer_pb2
from blazen_peer.transport.status import DETAILS_KEY
from blazen_peer.wire.metadata import PeerTraits

__all__ = ["RAW_TRAITS", "FrameContext", "serve_lane"]

RAW_TRAITS = PeerTraits(lane=LANE_VERSION, max_message_bytes=64 * 1024 * 1024)
_FIELDS = {
    "blazen-invocation-id": "invocation_id",
    "blazen-parent-run-id": "parent_run_id",
    "blazen-data-class": "data_class",
    "blazen-instance-id": "instance_id",
    "traceparent": "traceparent",
    "tracestate": "tracestate",
}


class _AbortedError(Exception):
    """A handler ended its call with a status."""


class FrameContext:
    """As much of a call's context as handlers of tests use."""

    def __init__(self, call: lane_pb2.Call, client_node_id: str, lane: Any) -> None:
        self._call, self._client_node_id, self._lane = call, client_node_id, lane
        self.refusal: lane_pb2.Refusal | None = None

    def peer(self) -> str:
        return str(self._lane.peer())

    def time_remaining(self) -> float | None:
        """A frame brings no deadline of gRPC's: its client keeps that to itself."""
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the metadata of a call alone would be, with what came with the lane."""
        found = {name: value for name, value in self._lane.invocation_metadata() if name != "blazen-invocation-id"}
        found |= {name: value for name, field in _FIELDS.items() if (value := getattr(self._call, field))}
        found["blazen-client-node-id"] = self._client_node_id
        if self._call.HasField("timeout_ms"):
            found["blazen-timeout-ms"] = str(self._call.timeout_ms)
        return tuple(found.items())

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Any = ()) -> None:
        details = dict(trailing).get(DETAILS_KEY, b"")
        self.refusal = lane_pb2.Refusal(code=code.value[0], text=text, details=details)
        raise _AbortedError


async def serve_lane(
    lane: grpc.aio.ServicerContext[bytes, bytes], answer: Callable[[bytes, FrameContext], Awaitable[bytes]]
) -> None:
    """Answer each call of *lane* by *answer*, which is given the message that a call alone would bring."""
    hello = lane_pb2.LaneRequest.FromString(await lane.read()).hello  # type: ignore[arg-type]
    limits = {"max_open_frames": MAX_OPEN_FRAMES, "max_frame_bytes": MAX_FRAME_BYTES, "max_message_bytes": MAX_MESSAGE_BYTES}
    welcome = lane_pb2.Welcome(instance_id="", heartbeat_ms=5000, **limits)
    await lane.write(lane_pb2.LaneResponse(welcome=welcome).SerializeToString())
    tasks: set[asyncio.Task[None]] = set()
    writing = asyncio.Lock()  # gRPC takes one message at a time

    async def answered(call: lane_pb2.Call) -> None:
        context = FrameContext(call, hello.client_node_id, lane)
        said = lane_pb2.Answer(id=call.id)
        try:
            message = await answer(peer_pb2.PostcardRequest(postcard_payload=call.envelope).SerializeToString(), context)
            try:
                said.envelope = peer_pb2.PostcardResponse.FromString(message).postcard_payload
            except DecodeError:
                said.envelope = message
        except _AbortedError:
            said.refusal.CopyFrom(context.refusal)  # type: ignore[arg-type]
        async with writing:
            await lane.write(lane_pb2.LaneResponse(answers=[said]).SerializeToString())

    try:
        while (raw := await lane.read()) is not grpc.aio.EOF:
            for call in lane_pb2.LaneRequest.FromString(raw).calls:  # type: ignore[arg-type]
                task = asyncio.create_task(answered(call))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
