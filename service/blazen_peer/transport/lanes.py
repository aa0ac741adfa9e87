"""The lanes of one client on one event loop: which call goes by which, and what becomes of it when its lane breaks.

Each lane has a key, with which the ids of its calls begin (``<key>~...``). Sidecars hash calls on what stands before the ``~``,
so that a lane, and whatever else asks for one of its runs, reach the same replica.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from blazen_peer.errors import (
    BlazenError,
    OverloadedError,
    PeerError,
    PermissionDeniedError,
    TransportError,
    UnauthenticatedError,
)
from blazen_peer.transport.lane import Lane, LaneCall
from blazen_peer.transport.lane_errors import LaneBrokenError, NobodyListensError, UnclearEndError
from blazen_peer.transport.lane_keys import KEY_END, new_key
from blazen_peer.transport.lane_limits import TAKE_UP_SECS
from blazen_peer.transport.lane_stream import LaneStream
from blazen_peer.transport.lane_way import CarriedStream, Way

__all__ = ["LANE_MODES", "Headers", "LaneMode", "Lanes"]

T = TypeVar("T")
Headers: TypeAlias = tuple[tuple[str, str | bytes], ...]
LaneMode: TypeAlias = Literal["auto", "never", "always"]
LANE_MODES: Final[tuple[str, ...]] = get_args(LaneMode)

MAX_LANES: Final = 8
TRIES_A_REPLICA: Final = 4  # keys are hashed: some lanes meet at one replica
TRIES_SECS: Final = 10.0  # and lanes that end as soon as they are open do not bring more tries than that in so long
RETRY_SECS: Final = 1.0  # after a lane could not be opened, how long calls go by themselves
NONE_THERE_SECS: Final = 60.0  # the same where somebody said that there are none
OTHER_REPLICA_SECS: Final = 3.0  # for how long another replica's answer does not mean that theirs is gone,
OTHER_ANSWERS: Final = 2  # or how often not, where the sidecar was told which replica it is
REFUSAL_SECS: Final = 1.0  # where gRPC lost what a lane was refused with, how long the next one waits for that
FIRST_DELAY_SECS: Final = 0.05
MAX_DELAY_SECS: Final = 1.0
RENEWED_AT: Final = 0.75  # of the sidecars' bound for streams
MIN_STREAM_SECS: Final = 0.2  # whatever a header says, lanes are not renewed faster than by this
IDLE_SECS: Final = 300.0  # lanes of which none was used for so long, or up to twice as long, are closed


class Lanes:
    """The lanes of one client on one event loop.

    Args:
        begin: Begins the RPC, with that invocation id beside it, to that one of the replicas (None: any).
        client_node_id: What this end calls itself.
        authorization: Gives the authorization header's value of this moment.
        mode: ``auto`` goes without where there is none, ``always`` fails then.
        greeted: Is given the headers of each lane that was opened; what it raises means that this lane must not be used.
    """

    def __init__(
        self,
        begin: Callable[[str, str | None], LaneCall],
        client_node_id: str,
        authorization: Callable[[], str | None],
        mode: LaneMode,
        greeted: Callable[[Headers], None],
    ) -> None:
        self._begin, self._client_node_id, self._authorization, self._mode = begin, client_node_id, authorization, mode
        self._greeted = greeted
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._opening: dict[str, asyncio.Task[Lane]] = {}
        self._leaving: set[Lane] = set()
        self._not_before = 0.0
        self._failed = False  # the last time that one was to be opened
        self._replicas = 1
        self._tries = 0
        self._tries_from = -math.inf  # when they were last counted anew since a lane ended
        self._renewals: dict[str, asyncio.TimerHandle] = {}
        self._look: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def replicas(self) -> int:
        """How many processes stand behind the address, as far as a sidecar has told."""
        return self._replicas

    @property
    def instance_ids(self) -> frozenset[str]:
        """The processes that open lanes lead to."""
        return frozenset(lane.instance_id for lane in self._lanes.values() if lane.is_open)

    def least(self) -> Lane | None:
        """Return the open lane with the fewest frames open, if there is one."""
        best: Lane | None = None
        for lane in self._lanes.values():
            if lane.is_open and (best is None or lane.in_flight < best.in_flight):
                best = lane
        return best

    def any(self) -> Lane | None:
        """Return one of the open lanes, drawn by lot, if there are any."""
        open_ = [lane for lane in self._lanes.values() if lane.is_open]
        return random.choice(open_) if open_ else None  # noqa: S311 - it spreads, it guards nothing

    async def lane_for_new(self, within_secs: float) -> Lane | None:
        """Return the lane for a call that may go by any, opened now where there is none. None: it goes by itself.

        Raises:
            UnauthenticatedError, PermissionDeniedError: The peer does not let this caller in; nothing was sent.
            PeerError: The mode is "always", and none can be opened.
        """
        if self._closed:
            return None
        if self._mode != "always":
            return await self._lane_if_any(within_secs)
        # A lane that is left may still take calls: its peer goes away, and nobody else is there.
        left = next((lane for lane in self._lanes.values() if lane.takes_up), None)
        if left is not None and (self._loop.time() < self._not_before or len(self._lanes) >= MAX_LANES):
            return left
        try:
            return await self._opened(self._key_for_new(), within_secs)
        except PeerError:
            if left is None:
                raise
            return left

    async def _lane_if_any(self, within_secs: float) -> Lane | None:
        """Return a new lane. Once one could not be opened, the next is opened in the background: no call waits for it."""
        self._forget_ended()
        if self._loop.time() < self._not_before or len(self._lanes) >= MAX_LANES:
            return None
        if self._failed:
            if not self._opening:
                self._open_soon(new_key())
            return None
        try:
            lane = await self._opened(self._key_for_new(), within_secs)
        except (UnauthenticatedError, PermissionDeniedError):
            raise
        except PeerError:
            return None
        return lane if lane.is_open else None

    def _key_for_new(self) -> str:
        return next((key for key in self._opening if key not in self._lanes), None) or new_key()

    async def open_one(self, within_secs: float) -> None:
        """Open a lane where none is open.

        Raises:
            PeerError: There is none to be had.
        """
        if self.least() is None:
            await self._opened(self._key_for_new(), within_secs)

    def lane_of(self, key: str) -> Lane | None:
        """Return the open lane with *key*, if there is one."""
        lane = self._lanes.get(key)
        return lane if lane is not None and lane.ended is None else None

    async def carry(self, lane: Lane, send: Callable[[Lane, str | None, float], Awaitable[T]], deadline_secs: float) -> T:
        """Return what *send* gives for *lane*. When the lane breaks, send again by the next one to the same process.

        Args:
            send: Is given the lane, the process that alone may take the call up (None: any), and the seconds that are left.

        Raises:
            TransportError: The process is gone, or cannot be reached in time; ``may_have_run`` says what is known.
            PeerError: What *send* raises otherwise.
        """
        way = Way(self, lane, self._loop.time() + deadline_secs)
        while True:
            try:
                return await send(way.lane, way.instance_id, max(0.0, way.ends - self._loop.time()))
            except LaneBrokenError as error:
                await way.on(error)
            except OverloadedError as error:
                await way.again(error)

    def stream(
        self, lane: Lane, begin: Callable[[Lane, str | None, int, float], LaneStream], cursor: int, deadline_secs: float
    ) -> CarriedStream:
        """Return the events of a run, over as many lanes to its process as it takes.

        Args:
            begin: Is given the lane, the process (None: any), the cursor and the seconds that are left.
        """
        return CarriedStream(Way(self, lane, self._loop.time() + deadline_secs), begin, cursor)

    async def next_to(self, broken: Lane, instance_id: str | None, error: LaneBrokenError, ends: float) -> Lane:
        """Return the lane on which what was open on *broken* goes on: to the process *instance_id*, or to any.

        Raises:
            TransportError: That process is gone, or cannot be reached in time.
            UnauthenticatedError, PermissionDeniedError: The peer does not let this caller in any more.
        """
        may_have_run = instance_id is not None
        replica = broken.told.replica if may_have_run else None
        until = min(ends, self._loop.time() + TAKE_UP_SECS)
        found_by, others = self._loop.time() + OTHER_REPLICA_SECS, 0
        delay_secs = FIRST_DELAY_SECS
        while not self._closed:
            if may_have_run and (other := self._lane_to(instance_id, broken)) is not None:
                return other
            try:
                lane = await self._opened(broken.key, max(0.0, until - self._loop.time()), replica)
            except NobodyListensError as failure:
                # Nobody listens where the process did: it is gone. Of several, only the one that was asked for is known to be.
                if failure.by_sidecar == broken.told.by_sidecar and (self._replicas == 1 or replica is not None):
                    raise TransportError(f"{error}; the peer is gone: {failure}", may_have_run=may_have_run) from None
                why: BlazenError = failure
            except (TransportError, OverloadedError) as failure:
                why = failure
            except (UnauthenticatedError, PermissionDeniedError):
                raise
            except PeerError as failure:
                raise TransportError(f"{error}; {failure}", may_have_run=may_have_run) from None
            else:
                if instance_id is None or lane.instance_id == instance_id:
                    return lane
                others += 1
                if self._replicas == 1 or self._loop.time() >= found_by or (replica is not None and others >= OTHER_ANSWERS):
                    raise TransportError(
                        f"{error}; another process answers now, and whether the call ran before that cannot be known"
                    ) from None
                # The sidecar may only have lost sight of that replica: it was itself restarted, or the replica drains.
                why = TransportError("another replica answers now")
                if self._lanes.get(broken.key) is lane:
                    self._forget(broken.key)
                    self._give_up(lane)
            if self._loop.time() + delay_secs >= until:
                raise TransportError(f"{error}; {why}", may_have_run=may_have_run) from None
            await asyncio.sleep(delay_secs * (0.5 + random.random() / 2))  # noqa: S311 - it spreads, it guards nothing
            delay_secs = min(2 * delay_secs, MAX_DELAY_SECS)
        raise TransportError("the client was closed while it waited for the answer", may_have_run=may_have_run)

    def retire(self) -> None:
        """Open no more lanes; each ends when what is open on it does."""
        self._not_before = math.inf
        self._stop_timers()
        for lane in self._lanes.values():
            self._give_up(lane)

    def close(self) -> None:
        """End all lanes."""
        self._closed = True
        self._stop_timers()
        for task in self._opening.values():
            task.cancel()
        for lane in (*self._lanes.values(), *self._leaving):
            lane.close()

    def _stop_timers(self) -> None:
        for timer in self._renewals.values():
            timer.cancel()
        if self._look is not None:
            self._look.cancel()

    async def _opened(self, key: str, within_secs: float, replica: str | None = None) -> Lane:
        """Return the lane with *key*, opened now if it is not; who comes meanwhile waits for the same."""
        lane = self._lanes.get(key)
        if lane is not None and lane.is_open:
            return lane
        task = self._opening.get(key) or self._open_soon(key, replica)
        try:
            async with asyncio.timeout(within_secs):
                return await asyncio.shield(task)
        except TimeoutError:
            raise TransportError("no lane was opened in time", may_have_run=False) from None
        except asyncio.CancelledError:
            if task.cancelled() and self._closed:
                raise TransportError("the client was closed while a lane was opened", may_have_run=False) from None
            raise

    def _open_soon(self, key: str, replica: str | None = None) -> asyncio.Task[Lane]:
        task = self._opening[key] = self._loop.create_task(self._open(key, replica))
        task.add_done_callback(lambda task: self._settled(key, task))
        return task

    def _settled(self, key: str, task: asyncio.Task[Lane]) -> None:
        del self._opening[key]
        if task.cancelled():
            return
        error = task.exception()  # who waits has it too
        if error is None:
            self._failed = False
            if task.result().is_open:
                self._reach_more()
            else:  # its peer goes away
                self._not_before = max(self._not_before, self._loop.time() + RETRY_SECS)
        elif not isinstance(error, UnauthenticatedError | PermissionDeniedError):
            self._failed = True
            short = isinstance(error, TransportError | OverloadedError)
            secs = RETRY_SECS if short else NONE_THERE_SECS
            self._not_before = max(self._not_before, self._loop.time() + secs)  # retired ones stay so

    async def _open(self, key: str, replica: str | None) -> Lane:
        ask = partial(Lane.open, key=key, client_node_id=self._client_node_id, authorization=self._authorization)
        try:
            lane = await ask(self._begin(f"{key}{KEY_END}lane", replica))
        except UnclearEndError:
            lane = await ask(self._begin(f"{key}{KEY_END}lane", replica), refusal_secs=REFUSAL_SECS)
        try:
            self._greeted(lane.headers)
        except BaseException:
            lane.close()
            raise
        if self._closed:
            lane.close()
            return lane
        self._forget_ended()
        before = self._lanes.get(key)
        self._lanes[key] = lane
        if before is not None:
            self._give_up(before)
        told = lane.told = lane.told._replace(replica=lane.told.replica or replica)  # who was asked for is not named again
        self._replicas = told.replicas
        if told.stream_secs is not None:
            if (timer := self._renewals.pop(key, None)) is not None:
                timer.cancel()
            self._renewals[key] = self._loop.call_later(max(MIN_STREAM_SECS, told.stream_secs) * RENEWED_AT, self._renew, key)
        lane.retired |= self._not_before == math.inf  # only what broke elsewhere needs it
        if self._look is None:
            self._look = self._loop.call_later(IDLE_SECS, self._close_unused)
        return lane

    def _lane_to(self, instance_id: str | None, broken: Lane) -> Lane | None:
        """Return a lane for what was open on *broken*: any to that process, as far as it goes the one that lasts longer."""
        there = [
            lane for lane in self._lanes.values() if lane.instance_id == instance_id and lane.takes_up and lane is not broken
        ]
        return max(there, key=lambda lane: lane.is_open, default=None)

    def _close_unused(self) -> None:
        """Close all lanes where none was used since this was done last: the next call opens one again."""
        self._look = None
        unused = [lane.unused() for lane in self._lanes.values() if lane.ended is None]
        if not all(unused):
            self._look = self._loop.call_later(IDLE_SECS, self._close_unused)
            return
        for key, lane in list(self._lanes.items()):
            if key not in self._opening:
                self._forget(key)
                self._give_up(lane)
        self._tries = 0

    def _forget(self, key: str) -> None:
        del self._lanes[key]
        if (timer := self._renewals.pop(key, None)) is not None:
            timer.cancel()

    def _give_up(self, lane: Lane) -> None:
        """Use *lane* for nothing new; it ends when what is open on it does."""
        if lane.ended is None:
            self._leaving.add(lane)
        lane.retire()

    def _forget_ended(self) -> None:
        self._leaving = {lane for lane in self._leaving if lane.ended is None or lane.is_leaving}
        for key in [key for key, lane in self._lanes.items() if lane.ended is not None and key not in self._opening]:
            self._forget(key)
            if self._loop.time() >= self._tries_from + TRIES_SECS:  # a replica went away, and may come back
                self._tries, self._tries_from = 0, self._loop.time()

    def _renew(self, key: str) -> None:
        """Open the next lane before the sidecars end this one."""
        lane = self._lanes.get(key)
        if self._closed or lane is None or lane.ended is not None or lane.retired:
            return
        lane.retired = True  # for new calls, while the next one is being opened; what is in flight is answered
        self._tries = 0
        if key not in self._opening:
            self._open_soon(key, lane.told.replica)

    def _reach_more(self) -> None:
        """Give lanes up that lead where another does, and open one more while there are replicas that none leads to."""
        reached: set[str] = set()
        for key, lane in list(self._lanes.items()):
            if not lane.is_open:
                continue
            if lane.instance_id in reached and self._replicas > 1:
                self._forget(key)
                self._give_up(lane)
            reached.add(lane.instance_id)
        wanted = min(self._replicas, MAX_LANES)
        if self._closed or self._opening or len(self._lanes) >= MAX_LANES:
            return
        if len(reached) >= wanted or self._tries >= TRIES_A_REPLICA * wanted:
            return
        self._tries += 1
        self._open_soon(new_key())
