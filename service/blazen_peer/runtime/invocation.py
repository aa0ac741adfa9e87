"""One call that a server works on: it may wait for its turn, it runs, it is answered. Whoever waits for it may come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from blazen_peer.errors import WorkflowError
from blazen_peer.runtime.event_log import EventLog, check_event_size

if TYPE_CHECKING:
    from blazen_peer.runtime.run import Run
    from blazen_peer.runtime.run_table import Key

__all__ = ["Invocation"]


class Invocation:
    """A call and what became of it so far. Belongs to one event loop.

    Attributes:
        key: What the run table knows it by; None for a call without an invocation id.
        run: The run, once it has begun.
        answer: The response envelope, once the call is over.
        data_class: The class of its data; None: it has none.
        fetched: Whether who waits for it is not given a large answer, and comes again for it.
    """

    __slots__ = ("_limits", "_log", "_loop", "_on_over", "_told", "_turn", "answer", "data_class", "fetched", "key", "run")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        key: Key | None,
        log_limits: tuple[int, int],
        on_over: Callable[[Invocation, Run], None] | None = None,
    ) -> None:
        self._loop, self._on_over, self.key = loop, on_over, key
        self.run: Run | None = None
        self.answer: bytes | None = None
        self.data_class: str | None = None
        self.fetched = False
        self._limits = log_limits
        self._log: EventLog | None = None
        self._turn: asyncio.Event | None = None
        self._told: Callable[[bytes], None] | None = None

    @classmethod
    def answered(cls, loop: asyncio.AbstractEventLoop, key: Key, answer: bytes, log: EventLog | None) -> Invocation:
        """Return a call that was answered before."""
        invocation = cls(loop, key, (0, 0))
        invocation.answer = answer
        invocation._log = log
        if log is None:
            invocation.log.close()
        return invocation

    @property
    def log(self) -> EventLog:
        """What its run emits; made when it is first needed."""
        if self._log is None:
            self._log = EventLog(*self._limits)
        return self._log

    @property
    def emitted(self) -> EventLog | None:
        """The log, if anything was emitted."""
        return self._log if self._log is not None and self._log.last else None

    def emit(self, event_type: str, data_json: bytes) -> None:
        """Add an event to the log; may be called in any thread.

        Raises:
            ValidationError: The event is over the log's limit.
        """
        check_event_size(event_type, data_json, self._limits[1])
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self.log.append(event_type, data_json)
        else:
            self._loop.call_soon_threadsafe(self._append, event_type, data_json)

    def _append(self, event_type: str, data_json: bytes) -> None:
        self.log.append(event_type, data_json)

    async def wait(self) -> bytes:
        """Wait for the answer. Cancelling this wait leaves the call alone."""
        if self.run is None and self.answer is None:
            if self._turn is None:
                self._turn = asyncio.Event()
            await self._turn.wait()
        if self.answer is None and self.run is not None:
            with suppress(WorkflowError):  # it is in the answer
                await self.run.wait()
        if self.answer is None:  # a defect: the run tells its end before it wakes who waits
            raise RuntimeError("a run is over and left no answer")
        return self.answer

    def on_answer(self, tell: Callable[[bytes], None]) -> bool:
        """Call *tell* with the answer: at once, where it is there. It must not raise.

        Return False where somebody else is told already: whoever repeats a call may come and go, and uses :meth:`wait`.
        """
        if self.answer is not None:
            tell(self.answer)
        elif self._told is None:
            self._told = tell
        else:
            return False
        return True

    def forget(self) -> None:
        """Tell nobody: who was to be told is gone."""
        self._told = None

    def begun(self, run: Run) -> None:
        """Its turn has come."""
        self.run = run
        if self._turn is not None:
            self._turn.set()

    def over(self, run: Run) -> None:
        """Its run has ended: whoever gave it its turn makes the answer of it."""
        if self._on_over is not None:
            self._on_over(self, run)

    def ended(self, answer: bytes) -> None:
        """It is over."""
        self.answer = answer
        self.run = None  # they hold each other: apart, both go at once, and not when the cycle collector finds them
        if self._turn is not None:
            self._turn.set()
        if self._log is not None:
            self._log.close()
        if self._told is not None:
            told, self._told = self._told, None
            told(answer)
