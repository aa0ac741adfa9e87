"""The process of a server: its loop, its signals, and the promise that it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any, Final

__all__ = ["run_until_signalled"]

STUCK_EXIT_CODE: Final = 70  # EX_SOFTWARE: something did not let go in its time
LEFTOVER_SECS: Final = 2.0

logger = logging.getLogger(__name__)


def run_until_signalled(
    serving: Coroutine[Any, Any, None], *, drain: Callable[[], Awaitable[None]], budget_secs: float
) -> None:
    """Run *serving* in a loop of its own until it ends.

    On the main thread the first SIGTERM or SIGINT starts *drain* and the second cancels *serving*. From the first on a
    watchdog ends the process after *budget_secs* with exit code 70, also when a step blocks the loop or never lets go.
    """
    loop = _new_loop()
    task = loop.create_task(serving)
    signals = _Signals(loop, task, drain, budget_secs) if threading.current_thread() is threading.main_thread() else None
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        logger.warning("stopped at once")
    finally:
        try:
            _end_leftovers(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            if signals is not None:
                signals.restore()


class _Signals:
    """Turns signals into a drain; handlers run between bytecodes, so that a busy loop cannot keep them off for ever."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[None],
        drain: Callable[[], Awaitable[None]],
        budget_secs: float,
    ) -> None:
        self._loop, self._task, self._drain, self._budget_secs = loop, task, drain, budget_secs
        self._watchdog: threading.Timer | None = None
        self._drains: asyncio.Future[None] | None = None
        self._before = {number: signal.signal(number, self._received) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._watchdog is None:
            self._watchdog = threading.Timer(self._budget_secs, _give_up)
            self._watchdog.daemon = True
            self._watchdog.start()
            self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(number).name)
        else:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _start_draining(self, name: str) -> None:
        logger.info("%s received: draining; a second one stops at once", name)
        self._drains = asyncio.ensure_future(self._drain())
        self._drains.add_done_callback(self._drained)

    def _drained(self, drains: asyncio.Future[None]) -> None:
        if not drains.cancelled() and drains.exception() is not None:  # the server did not listen yet
            self._task.cancel()


def _give_up() -> None:
    logger.error("something did not let go in its time: ending the process")
    logging.shutdown()
    os._exit(STUCK_EXIT_CODE)


def _end_leftovers(loop: asyncio.AbstractEventLoop) -> None:
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    if leftovers:
        _, stuck = loop.run_until_complete(asyncio.wait(leftovers, timeout=LEFTOVER_SECS))
        for task in stuck:
            logger.warning("a task did not end when it was cancelled: %s", task.get_name())
    loop.run_until_complete(loop.shutdown_asyncgens())


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop where the extra ``uvloop`` is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
