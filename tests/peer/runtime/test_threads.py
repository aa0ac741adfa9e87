"""The threads of plain functions: bounded, in order, and with the caller's context."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from blazen_peer.runtime import StepThreads

VALUE: ContextVar[str] = ContextVar("value", default="none")


async def test_result_and_error() -> None:
    """What the function gives or raises comes back."""
    threads = StepThreads()
    assert await threads.run(max, 3, 7) == 7
    with pytest.raises(ValueError, match="boom"):
        await threads.run(_raise, ValueError("boom"))


async def test_stop_iteration() -> None:
    """A StopIteration, which no future can carry, comes back as a RuntimeError and hangs nobody."""
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="StopIteration: x"):
            await StepThreads().run(_raise, StopIteration("x"))


async def test_bounded_and_in_order() -> None:
    """No more run at once than there are threads; the others wait, first come first served."""
    threads = StepThreads(max_threads=2)
    release, lock = threading.Event(), threading.Lock()
    started: list[int] = []
    now, most = 0, 0

    def work(number: int) -> None:
        nonlocal now, most
        with lock:
            started.append(number)
            now += 1
            most = max(most, now)
        release.wait(10)
        with lock:
            now -= 1

    futures = [threads.run(work, number) for number in range(20)]
    async with asyncio.timeout(10):
        while len(started) < 2:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
        release.set()
        await asyncio.gather(*futures)
    assert most == 2
    # Two threads take them in order but may note them crosswise.
    assert all(abs(number - place) <= 1 for place, number in enumerate(started))


async def test_one_thread_in_order() -> None:
    """With one thread the order is exactly that of the calls."""
    threads, seen = StepThreads(max_threads=1), list[int]()
    async with asyncio.timeout(10):
        await asyncio.gather(*(threads.run(seen.append, number) for number in range(50)))
    assert seen == list(range(50))


async def test_threads_are_reused() -> None:
    """Calls one after the other need one thread."""
    threads = StepThreads()
    idents = {await threads.run(_settled_ident, threads) for _ in range(20)}
    assert len(idents) <= 2  # a thread may say that it is free a moment after its result is here


async def test_cancelled_before_its_turn() -> None:
    """A call that was cancelled while it waited is never made."""
    threads, release, made = StepThreads(max_threads=1), threading.Event(), list[int]()
    first = threads.run(release.wait, 10)
    second = threads.run(made.append, 2)
    third = threads.run(made.append, 3)
    second.cancel()
    release.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, third)
    assert made == [3]


async def test_cancelled_while_it_runs() -> None:
    """The result of a call that was cancelled is dropped, and its thread is used again."""
    threads, began, release = StepThreads(max_threads=1), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait(10)

    future = threads.run(work)
    async with asyncio.timeout(10):
        while not began.is_set():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
        future.cancel()
        release.set()
        assert await threads.run(max, 1, 2) == 2


async def test_context_is_copied() -> None:
    """A function sees the context variables of its caller, and what it sets stays with it."""
    VALUE.set("mine")

    def look() -> str:
        seen = VALUE.get()
        VALUE.set("theirs")
        return seen

    assert await StepThreads().run(look) == "mine"
    assert VALUE.get() == "mine"


def test_loop_closed_meanwhile() -> None:
    """A function that ends after its loop is gone disturbs nobody, and its thread serves the next loop."""
    threads, release = StepThreads(max_threads=1), threading.Event()

    async def start() -> None:
        threads.run(release.wait, 10)

    async def use() -> int:
        return int(await threads.run(max, 1, 2))

    asyncio.run(start())
    release.set()
    assert asyncio.run(use()) == 2


def _raise(error: BaseException) -> None:
    raise error


def _settled_ident(_threads: StepThreads) -> int:
    return threading.get_ident()
