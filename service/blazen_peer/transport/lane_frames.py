"""What a frame of a lane says beside its envelope, and how far its events may run ahead."""

from __future__ import annotations

import asyncio

from blazen_peer.errors import EncodeError
from blazen_peer.transport.lane_limits import MAX_CREDIT, MAX_TRACE_CHARS
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["EventCredit", "metadata_of"]


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
