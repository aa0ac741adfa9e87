"""The lanes of one client on one event loop: which call goes by which, and what becomes of it when its lane breaks.

Each lane has a key, with which the ids of its calls begin (``<key>~...``). Sidecars hash calls on what stands before the ``~``,
so that a lane, and whatever else asks for one of its runs, reach the same replica.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from blazen_peer.errors import BlazenError, PeerError, TransportError
from blazen_peer.transport.lane import Lane, LaneBrokenError, LaneCall

__all__ = ["KEY_END", "LANE_MODES", "LaneMode", "Lanes", "lane_key"]

T = TypeVar("T")
LaneMode: TypeAlias = Literal["auto", "never", "always"]
LANE_MODES: Final[tuple[str, ...]] = get_args(LaneMode)

KEY_END: Final = "~"
MAX_LANES: Final = 8
TRIES_A_REPLICA: Final = 4  # keys are hashed: some lanes meet at one replica
RETRY_SECS: Final = 1.0  # after a lane could not be opened, how long calls go by themselves
TAKE_UP_SECS: Final = 15.0  # how long a broken lane's calls look for their process
FIRST_DELAY_SECS: Final = 0.05
MAX_DELAY_SECS: Final = 1.0
RENEWED_AT: Final = 0.75  # of the sidecars' bound for streams
STREAM_SECS: Final = "x-blazen-max-stream-secs"  # set by sidecars on a lane's answer: how long they let it be
REPLICAS: Final = "x-blazen-replicas"  # likewise: how many peers stand behind, where there are several

_LOG = logging.getLogger(__name__)


def lane_key(invocation_id: str) -> str | None:
    """Return the key of the lane that a call with this id went by; None for one that did not choose."""
    key, end, _ = invocation_id.partition(KEY_END)
    return key if end else None


class Lanes:
    """The lanes of one client on one event loop.

    Args:
        begin: Begins the RPC, with that invocation id beside it.
        client_node_id: What this end calls itself.
        authorization: Gives the authorization header's value of this moment.
        mode: ``auto`` goes without where there is none, ``always`` fails then.
    """

    def __init__(
        self,
        begin: Callable[[str], LaneCall],
        client_node_id: str,
        authorization: Callable[[], str | None],
        mode: LaneMode,
    ) -> None:
        self._begin, self._client_node_id, self._authorization, self._mode = begin, client_node_id, authorization, mode
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, Lane] = {}
        self._opening: dict[str, asyncio.Task[Lane]] = {}
        self._not_before = 0.0
        self._replicas = 1
        self._tries = 0
        self._renewals: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    @property
    def replicas(self) -> int:
        """How many processes stand behind the address, as far as a sidecar has told."""
        return self._replicas

    async def lane_for_new(self, within_secs: float) -> Lane | None:
        """Return the lane for a call that may go by any: the one with the fewest frames open. None: it goes by itself.

        Raises:
            PeerError: The mode is "always", and none can be opened.
        """
        best = self._least()
        if best is not None:
            return best
        if self._closed or (self._mode == "auto" and self._loop.time() < self._not_before):
            return None
        try:
            return await self._opened(_new_key(), within_secs)
        except PeerError:
            self._not_before = self._loop.time() + RETRY_SECS
            if self._mode == "always":
                raise
            return None

    def least(self) -> Lane | None:
        """Return the open lane with the fewest frames open, if there is one."""
        return self._least()

    def lane_of(self, key: str) -> Lane | None:
        """Return the open lane with *key*, if there is one."""
        lane = self._lanes.get(key)
        return lane if lane is not None and lane.ended is None else None

    async def carry(self, lane: Lane, send: Callable[[Lane, str | None], Awaitable[T]], deadline_secs: float) -> T:
        """Return what *send* gives for *lane*. When the lane breaks, send again by the next one to the same process.

        A frame that was never written goes by any lane; one that was is for its process alone, which knows by its invocation id
        whether it began. If that process is gone, so is the answer.

        Raises:
            TransportError: The process is gone, or cannot be reached in time; ``may_have_run`` says what is known.
            PeerError: What *send* raises otherwise.
        """
        instance_id: str | None = None
        ends = self._loop.time() + deadline_secs
        while True:
            try:
                return await send(lane, instance_id)
            except LaneBrokenError as error:
                if self._closed:
                    raise
                if error.may_have_run and instance_id is None:
                    instance_id = lane.instance_id
                lane = await self._next(lane, instance_id, error, ends)

    async def _next(self, broken: Lane, instance_id: str | None, error: LaneBrokenError, ends: float) -> Lane:
        until = min(ends, self._loop.time() + TAKE_UP_SECS)
        delay_secs = FIRST_DELAY_SECS
        while True:
            try:
                lane = await self._opened(broken.key, max(0.0, until - self._loop.time()))
            except TransportError as failure:
                why: BlazenError = failure
            except PeerError as failure:
                raise LaneBrokenError(f"{error}; {failure}", may_have_run=instance_id is not None) from None
            else:
                if instance_id is None or lane.instance_id == instance_id:
                    return lane
                raise LaneBrokenError(
                    f"{error}; another process answers now, and whether the call ran before that cannot be known"
                ) from None
            if self._loop.time() + delay_secs >= until:
                raise LaneBrokenError(f"{error}; {why}", may_have_run=instance_id is not None) from None
            await asyncio.sleep(delay_secs * (0.5 + random.random() / 2))  # noqa: S311 - it spreads, it guards nothing
            delay_secs = min(2 * delay_secs, MAX_DELAY_SECS)

    def close(self) -> None:
        """End all lanes."""
        self._closed = True
        for timer in self._renewals.values():
            timer.cancel()
        for task in self._opening.values():
            task.cancel()
        for lane in self._lanes.values():
            lane.close()

    def _least(self) -> Lane | None:
        best: Lane | None = None
        for lane in self._lanes.values():
            if lane.is_open and (best is None or lane.in_flight < best.in_flight):
                best = lane
        return best

    async def _opened(self, key: str, within_secs: float) -> Lane:
        """Return the lane with *key*, opened now if it is not; who comes meanwhile waits for the same."""
        lane = self._lanes.get(key)
        if lane is not None and lane.is_open:
            return lane
        task = self._opening.get(key)
        if task is None:
            task = self._opening[key] = self._loop.create_task(self._open(key))
            task.add_done_callback(lambda task: self._settled(key, task))
        try:
            async with asyncio.timeout(within_secs):
                return await asyncio.shield(task)
        except TimeoutError:
            raise TransportError("no lane was opened in time", may_have_run=False) from None

    def _settled(self, key: str, task: asyncio.Task[Lane]) -> None:
        del self._opening[key]
        if not task.cancelled():
            task.exception()  # who waits has it

    async def _open(self, key: str) -> Lane:
        call = self._begin(f"{key}{KEY_END}lane")
        lane = await Lane.open(call, key, self._client_node_id, self._authorization)
        if self._closed:
            lane.close()
            return lane
        before = self._lanes.get(key)
        self._lanes[key] = lane
        if before is not None:
            before.retire()
        told = {name: value for name, value in await call.initial_metadata() or ()}  # noqa: C416 - pairs of a type of gRPC's
        self._replicas = max(1, _number(told.get(REPLICAS)) or 1)
        if (bound_secs := _number(told.get(STREAM_SECS))) is not None:
            if (timer := self._renewals.pop(key, None)) is not None:
                timer.cancel()
            self._renewals[key] = self._loop.call_later(bound_secs * RENEWED_AT, self._renew, key)
        self._reach_more()
        return lane

    def _renew(self, key: str) -> None:
        """Open the next lane before the sidecars end this one."""
        lane = self._lanes.get(key)
        if self._closed or lane is None:
            return
        lane.retired = True  # for new calls, while the next one is being opened; what is in flight is answered
        if key not in self._opening:
            task = self._opening[key] = self._loop.create_task(self._open(key))
            task.add_done_callback(lambda task: self._settled(key, task))

    def _reach_more(self) -> None:
        """Open another lane in the background while there are replicas that none leads to."""
        reached = {lane.instance_id for lane in self._lanes.values() if lane.is_open}
        wanted = min(self._replicas, MAX_LANES)
        if len(reached) >= wanted or self._tries >= TRIES_A_REPLICA * wanted or self._opening:
            return
        self._tries += 1
        key = _new_key()
        task = self._opening[key] = self._loop.create_task(self._open(key))
        task.add_done_callback(lambda task: self._settled(key, task))


def _new_key() -> str:
    return secrets.token_hex(4)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10 else None
