"""How many executions of one step may go on at once in this process, over all its runs and event loops."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["StepTurns", "Turn"]


class StepTurns:
    """At most *limit* executions at once; the others wait in the order they came. Safe to share between event loops.

    ``asyncio.Semaphore`` belongs to one loop, and knows nothing of a thread that goes on after its step was cancelled.
    """

    __slots__ = ("_free", "_lock", "_waiting")

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    async def take(self) -> Turn:
        """Wait for a turn and return it; whoever has it calls :meth:`Turn.leave`."""
        with self._lock:
            if self._free:
                self._free -= 1
                return Turn(self)
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting[waiter] = loop
        try:
            await waiter
        except asyncio.CancelledError:
            with self._lock:
                self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():  # the turn had come by then: on to the next
                self._give()
            raise
        return Turn(self)

    def _give(self) -> None:
        """Hand a turn that is over to the first who waits, in whichever loop; an unowned turn is free."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                waiter = next(iter(self._waiting))
                loop = self._waiting.pop(waiter)
            try:
                loop.call_soon_threadsafe(self._wake, waiter)
            except RuntimeError:
                continue  # that loop is closed
            return

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        if waiter.done():  # cancelled meanwhile
            self._give()
        else:
            waiter.set_result(None)


class Turn:
    """One execution's turn. It is over when the step's task has left it and no thread is inside: a plain function that is
    cancelled goes on in its thread, and counts until it returns."""

    __slots__ = ("_inside", "_left", "_lock", "_turns")

    def __init__(self, turns: StepTurns) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._left = self._inside = False

    def leave(self) -> None:
        """The step's task is done with it."""
        with self._lock:
            over = not (self._left or self._inside)
            self._left = True
        if over:
            self._turns._give()

    def enter_thread(self) -> bool:
        """Begin in a thread; False: too late, the step was cancelled before."""
        with self._lock:
            self._inside = not self._left
            return self._inside

    def leave_thread(self) -> None:
        """The thread is done."""
        with self._lock:
            self._inside = False
            over = self._left
        if over:
            self._turns._give()
