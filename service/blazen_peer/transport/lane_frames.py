"""What a frame of a lane says beside its envelope, and how far its events may run ahead."""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

from blazen_peer.errors import EncodeError
from blazen_peer.transport.lane_limits import MAX_CREDIT, MAX_TRACE_CHARS
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["LANE_METHOD", "EventCredit", "Frame", "fill", "metadata_of", "method_of", "said_id"]

Frame: TypeAlias = lane_pb2.Call | lane_pb2.Attach | lane_pb2.Cancel
LANE_METHOD: Final = f"/{CONTROL_SERVICE}/Lane"


def method_of(frame: Frame) -> str:
    """Return the path of the method that *frame* would be a call of, if it came alone."""
    if isinstance(frame, lane_pb2.Call):
        return f"/{PEER_SERVICE}/{'StreamSubWorkflowEvents' if frame.stream else 'InvokeSubWorkflow'}"
    return f"/{CONTROL_SERVICE}/{'Attach' if isinstance(frame, lane_pb2.Attach) else 'Cancel'}"


def said_id(frame: Frame) -> str | None:
    """Return the invocation id of *frame*, where it is one: nothing else of a caller's may stand in a log as it is."""
    try:
        return CallMetadata(invocation_id=frame.invocation_id or None).checked().invocation_id
    except EncodeError:
        return None


class EventCredit:
    """How many events a stream may still send."""

    def __init__(self) -> None:
        self._left = 0
        self._more = asyncio.Event()

    def add(self, events: int) -> None:
        """Let it send more; raises ``EncodeError`` for more than a stream may have."""
        self._left += events
        if self._left > MAX_CREDIT:
            raise EncodeError(f"a stream may be told to send {MAX_CREDIT} events ahead, not {self._left}")
        self._more.set()

    async def take(self) -> None:
        """Wait until one more may be sent."""
        while self._left <= 0:
            self._more.clear()
            await self._more.wait()
        self._left -= 1


def metadata_of(call: lane_pb2.Call, client_node_id: str | None) -> CallMetadata:
    """Return what the frame says beside its envelope.

    Raises:
        EncodeError: It says what metadata could not.
    """
    trace = {}
    if 0 < len(call.traceparent) <= MAX_TRACE_CHARS:
        trace["traceparent"] = call.traceparent
        if 0 < len(call.tracestate) <= MAX_TRACE_CHARS:
            trace["tracestate"] = call.tracestate
    return CallMetadata(
        invocation_id=call.invocation_id or None,
        client_node_id=client_node_id,
        timeout_ms=call.timeout_ms if call.HasField("timeout_ms") else None,
        trace=trace,
        parent_run_id=call.parent_run_id or None,
        instance_id=call.instance_id or None,
        cursor=call.cursor or None,
        data_class=call.data_class or None,
    ).checked()


def fill(frame: lane_pb2.Call, metadata: CallMetadata) -> None:
    """Say in *frame* what :func:`metadata_of` reads."""
    if metadata.invocation_id is not None:
        frame.invocation_id = metadata.invocation_id
    if metadata.timeout_ms is not None:
        frame.timeout_ms = metadata.timeout_ms
    if metadata.parent_run_id is not None:
        frame.parent_run_id = metadata.parent_run_id
    if metadata.instance_id is not None:
        frame.instance_id = metadata.instance_id
    if metadata.data_class is not None:
        frame.data_class = metadata.data_class
    if metadata.trace:
        frame.traceparent = metadata.trace.get("traceparent", "")
        frame.tracestate = metadata.trace.get("tracestate", "")
