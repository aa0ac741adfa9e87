"""The events of one run as they come over a lane."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol, Self

from blazen_peer.errors import BlazenError, PeerError, TransportError
from blazen_peer.transport.lane_errors import LaneBrokenError
from blazen_peer.wire import SubWorkflowEvent

__all__ = ["EVENT_CREDIT", "LATE", "LaneStream"]

LATE: Final = "no answer within the deadline: Deadline Exceeded"
EVENT_CREDIT: Final = 256  # events of a stream that may be on their way


class StreamLane(Protocol):
    """What a stream needs of its lane."""

    def grant(self, number: int, events: int) -> None:
        """Let the peer send more."""

    def leave(self, number: int) -> None:
        """Read no longer."""


class LaneStream:
    """The events of one run, as they come over a lane; read it as a call's messages are read, or :meth:`cancel` it.

    At most ``EVENT_CREDIT`` wait here: the peer sends no more before some were read.
    """

    def __init__(self, lane: StreamLane, number: int, ends: float) -> None:
        self._lane, self._number, self._ends = lane, number, ends
        self._loop = asyncio.get_running_loop()
        self._events: deque[bytes] = deque()
        self._error: BlazenError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._read = 0
        self._over = False

    def put(self, envelope: bytes) -> None:
        """An event came."""
        if len(self._events) > EVENT_CREDIT:  # one more than was asked for: how a run ended costs no credit
            self._lane.leave(self._number)
            self.fail(PeerError(f"the peer sent more events than the {EVENT_CREDIT} that were asked for"))
            return
        self._events.append(envelope)
        self._tell()

    def fail(self, error: BlazenError) -> None:
        """No more will come."""
        self._error = self._error or error
        self._tell()

    def cancel(self) -> None:
        """Read no more."""
        self._lane.leave(self._number)
        self.fail(LaneBrokenError("the stream was left"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SubWorkflowEvent:
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wake = self._loop.create_future()
            timer = self._loop.call_at(self._ends, self.fail, TransportError(LATE))
            try:
                await self._wake
            finally:
                timer.cancel()
                self._wake = None
        event = SubWorkflowEvent.decode(self._events.popleft())
        self._read += 1
        if self._read >= EVENT_CREDIT // 2:
            self._lane.grant(self._number, self._read)
            self._read = 0
        return event

    def _tell(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
