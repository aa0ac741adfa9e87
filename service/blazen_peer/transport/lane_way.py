"""How a call goes on when its lane breaks: by which lane next, and to which process."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Final, Protocol

from blazen_peer.errors import OverloadedError, TransportError
from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lane_errors import LaneBrokenError, LaneShutError
from blazen_peer.transport.lane_limits import TAKE_UP_SECS
from blazen_peer.transport.lane_stream import LaneStream
from blazen_peer.wire import SubWorkflowEvent

__all__ = ["CarriedStream", "Way"]


AGAIN_SECS: Final = 1.0  # where the peer does not say when
BRIEF_SECS: Final = 1.0  # a lane that breaks before is one of several that do
FIRST_DELAY_SECS: Final = 0.05


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
        self.since = -math.inf  # when the lane that it is on by now was found
        self._brief, self._brief_from = 0, 0.0

    async def on(self, error: LaneBrokenError) -> None:
        """Go on after *error*, on the next lane; what makes that impossible is raised."""
        if isinstance(error, LaneShutError):
            if self._shut:  # the lane that was let in just now, too
                raise error.refusal from None
            self._shut = True
        elif error.may_have_run and self.instance_id is None:
            self.instance_id = self.lane.instance_id
        await self._slow_down(error)
        self.lane = await self._lanes.next_to(self.lane, self.instance_id, error, self.ends)
        self.since = asyncio.get_running_loop().time()

    async def _slow_down(self, error: LaneBrokenError) -> None:
        """Wait where one lane after another breaks as soon as it is used, and end that in time: the call may be the cause."""
        now = asyncio.get_running_loop().time()
        if now - self.since >= BRIEF_SECS:
            self._brief, self._brief_from = 0, now
            return
        delay_secs = min(FIRST_DELAY_SECS * 2**self._brief, BRIEF_SECS) * (0.5 + random.random() / 2)  # noqa: S311 - it spreads
        self._brief += 1
        if now + delay_secs >= min(self.ends, self._brief_from + TAKE_UP_SECS):
            why = f"{error}; so did the {self._brief} lanes before it, each as soon as it was used"
            raise TransportError(why, may_have_run=self.instance_id is not None) from None
        await asyncio.sleep(delay_secs)

    async def again(self, refusal: OverloadedError) -> None:
        """Wait as *refusal* says before the same is sent again: what another lane carried already may run, and is not given up.

        Raises:
            OverloadedError: No lane carried it before.
            TransportError: There is no time left for that.
        """
        if self.instance_id is None:
            raise refusal
        # Not all at once: what a broken lane carried comes together, and may be more than the caller's rate.
        delay_secs = (refusal.retry_after_secs or AGAIN_SECS) * (0.5 + random.random())  # noqa: S311 - it guards nothing
        if asyncio.get_running_loop().time() + delay_secs >= self.ends:
            raise TransportError(f"the lane broke, and the peer is over a limit: {refusal}", may_have_run=True) from None
        await asyncio.sleep(delay_secs)


class CarriedStream:
    """The events of one run, read as a call's messages are; see ``Lanes.stream``."""

    def __init__(self, way: Way, begin: Callable[[Lane, str | None, int, float], LaneStream], cursor: int) -> None:
        self._way, self._begin, self._cursor = way, begin, cursor
        self._loop = asyncio.get_running_loop()
        self._left = False
        self._stream: LaneStream | None = None

    def _begun(self) -> LaneStream:
        return self._begin(self._way.lane, self._way.instance_id, self._cursor, max(0.0, self._way.ends - self._loop.time()))

    def __aiter__(self) -> CarriedStream:
        return self

    async def __anext__(self) -> SubWorkflowEvent:
        while True:
            if self._left:
                raise LaneBrokenError("the stream was left")
            try:
                if self._stream is None:
                    self._stream = self._begun()  # the lane that was found may have been given up since
                event = await anext(self._stream)
            except LaneBrokenError as error:
                self._stream = None
                if not self._left:
                    await self._way.on(error)
            except OverloadedError as error:
                self._stream = None
                if not self._left:
                    await self._way.again(error)
            else:
                self._cursor = event.sequence
                self._way.instance_id = self._way.lane.instance_id
                self._way.since = -math.inf  # it goes on
                return event

    def cancel(self) -> None:
        """Read no more."""
        self._left = True
        if self._stream is not None:
            self._stream.cancel()
