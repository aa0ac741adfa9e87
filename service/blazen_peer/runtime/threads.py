"""Threads for plain functions: few, daemon, and first come first served.

``concurrent.futures`` joins its threads when the process ends, so one stuck function would hold the process for ever. These are
daemon threads. A function cannot be interrupted: when its step is cancelled the result is dropped, and the thread is busy until
it returns.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["DEFAULT_MAX_THREADS", "StepThreads", "default_threads"]

DEFAULT_MAX_THREADS = 64


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    left: Callable[[asyncio.Future[Any]], None] | None
    context: contextvars.Context
    call: Callable[..., Any]
    args: tuple[Any, ...]


class StepThreads:
    """Up to *max_threads* daemon threads, started as they are needed and kept. Safe to share between event loops."""

    def __init__(self, max_threads: int = DEFAULT_MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0  # threads waiting, less the jobs that wait for one of them

    def run(
        self, call: Callable[..., Any], *args: Any, left: Callable[[asyncio.Future[Any]], None] | None = None
    ) -> asyncio.Future[Any]:
        """Call ``call(*args)`` in a thread, in a copy of the current context, and return the future of what it gives.

        While all threads are busy, callers wait their turn in order. A call whose future is cancelled before its turn is
        never made.

        *left* is called in the loop, with the future, once a call whose future was cancelled has returned or will not be made.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._free -= 1
            if self._free < 0 and self._threads < self._max_threads:
                threading.Thread(target=self._work, name="blazen-step", daemon=True).start()
                self._threads += 1
                self._free += 1
        self._jobs.put(_Job(loop, future, left, contextvars.copy_context(), call, args))
        return future

    def _work(self) -> None:
        while True:
            _perform(self._jobs.get())
            with self._lock:
                self._free += 1


def _perform(job: _Job) -> None:
    result: Any = None
    failure: BaseException | None = None
    try:
        if not job.future.cancelled():
            result = job.context.run(job.call, *job.args)
    except StopIteration as error:  # a future refuses to carry it
        failure = RuntimeError(f"StopIteration: {error}")
        failure.__cause__ = error
    except BaseException as error:
        failure = error
    try:
        job.loop.call_soon_threadsafe(_settle, job, result, failure)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


def _settle(job: _Job, result: Any, failure: BaseException | None) -> None:
    future = job.future
    if future.done():
        if job.left is not None:
            job.left(future)
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


_DEFAULT = StepThreads()


def default_threads() -> StepThreads:
    """Return the threads that all runs of this process share."""
    return _DEFAULT
