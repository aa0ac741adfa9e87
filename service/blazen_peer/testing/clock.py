"""Time under a test's control: a deadline of 300 s passes at once, and none passes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from blazen_peer.errors import ValidationError

__all__ = ["VirtualClock", "virtual_time"]

MAX_ROUNDS: Final = 1000  # of the loop at one moment, so that a step that never stops giving way holds no test for ever


class VirtualClock:
    """The time of one event loop, which stands still but for :meth:`advance`. Made by :func:`virtual_time`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the time over from *loop*: use :func:`virtual_time`."""
        # CPython's loops in Python keep timers and callbacks in these two; there is no public way to ask for the next timer.
        if not (hasattr(loop, "_scheduled") and hasattr(loop, "_ready")):
            raise ValidationError(f"virtual time needs an event loop of asyncio itself, not {type(loop).__module__}'s")
        self._loop: Any = loop
        self._now = loop.time()

    @property
    def now(self) -> float:
        """The time of the loop, in seconds, as ``loop.time()`` gives it."""
        return self._now

    async def advance(self, secs: float) -> None:
        """Let *secs* seconds pass: each timer within them goes off at its own moment, in order, and what it wakes runs before
        the next one, timers that it sets included.

        What comes from outside the loop (an answer by gRPC, a step in a thread) is not waited for: await it afterwards.

        Raises:
            ValidationError: *secs* is below 0.
        """
        if not secs >= 0:
            raise ValidationError(f"time does not go back: cannot advance by {secs!r} s")
        end = self._now + secs
        await self._settle()
        while (due := self._next_due()) is not None and due <= end:
            self._now = max(self._now, due)
            await self._settle()
        self._now = end
        await self._settle()

    async def _settle(self) -> None:
        """Give way until nothing is left to run at this moment."""
        for _ in range(MAX_ROUNDS):
            await asyncio.sleep(0)
            if not self._loop._ready:
                return

    def _next_due(self) -> float | None:
        timers = cast("list[asyncio.TimerHandle]", self._loop._scheduled)
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)


@asynccontextmanager
async def virtual_time() -> AsyncIterator[VirtualClock]:
    """Stop the clock of the running event loop inside the block; on leaving, it goes on from where the test left it.

    It covers everything that goes by the loop's time: deadlines and retries of runs, heartbeats, drains, ``asyncio.sleep``,
    ``asyncio.timeout``. It does not cover what goes by another clock: gRPC's own deadlines (they lie some seconds above the
    run's, in real time), the validity of tokens and certificates, ``time.sleep`` in a step's thread. A run takes its clock
    when it starts: enter the block before.

    Raises:
        ValidationError: The running loop is not one of asyncio's own, such as uvloop's.
    """
    loop = asyncio.get_running_loop()
    clock = VirtualClock(loop)
    before: Callable[[], float] = loop.time
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        ahead_secs = clock.now - before()  # the loop's time must never go back
        loop.time = lambda: before() + ahead_secs  # type: ignore[method-assign]
