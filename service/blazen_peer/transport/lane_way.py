"""How a call goes on when its lane breaks: by which lane next, and to which process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lane_errors import LaneBrokenError, LaneShutError
from blazen_peer.transport.lane_stream import LaneStream
from blazen_peer.wire import SubWorkflowEvent

__all__ = ["CarriedStream", "Way"]


class Successors(Protocol):
    """What knows the next lanes."""

    async def next_to(self, broken: Lane, instance_id: str | None, error: LaneBrokenError, ends: float) -> Lane:
        """Return the lane on which what was open on *broken* goes on."""


class Way:
    """How far a call has come: its lane by now, and the process that alone may take it up."""

    def __init__(self, lanes: Successors, lane: Lane, ends: float) -> None:
        self._lanes, self.lane, self.ends = lanes, lane, ends
        self.instance_id: str | None = None
        self._shut = False

    async def on(self, error: LaneBrokenError) -> None:
        """Go on after *error*, on the next lane; what makes that impossible is raised."""
        if isinstance(error, LaneShutError):
            if self._shut:  # the lane that was let in just now, too
                raise error.refusal from None
            self._shut = True
        elif error.may_have_run and self.instance_id is None:
            self.instance_id = self.lane.instance_id
        self.lane = await self._lanes.next_to(self.lane, self.instance_id, error, self.ends)


class CarriedStream:
    """The events of one run, read as a call's messages are; see ``Lanes.stream``."""

    def __init__(self, way: Way, begin: Callable[[Lane, str | None, int, float], LaneStream], cursor: int) -> None:
        self._way, self._begin, self._cursor = way, begin, cursor
        self._loop = asyncio.get_running_loop()
        self._left = False
        self._stream = self._begun()

    def _begun(self) -> LaneStream:
        return self._begin(self._way.lane, self._way.instance_id, self._cursor, max(0.0, self._way.ends - self._loop.time()))

    def __aiter__(self) -> CarriedStream:
        return self

    async def __anext__(self) -> SubWorkflowEvent:
        while True:
            try:
                event = await anext(self._stream)
            except LaneBrokenError as error:
                if self._left:
                    raise
                await self._way.on(error)
                self._stream = self._begun()
            else:
                self._cursor = event.sequence
                self._way.instance_id = self._way.lane.instance_id
                return event

    def cancel(self) -> None:
        """Read no more."""
        self._left = True
        self._stream.cancel()
