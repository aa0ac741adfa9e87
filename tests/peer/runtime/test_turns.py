"""Turns: how many executions of a step go on at once, over loops and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from blazen_peer.runtime.turns import StepTurns, Turn


async def settled() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def free(turns: StepTurns, limit: int) -> bool:
    """Say whether *limit* turns can be had at once, and no more; give them back."""
    async with asyncio.timeout(10):
        taken = [await turns.take() for _ in range(limit)]
    more = asyncio.create_task(turns.take())
    await settled()
    exact = not more.done()
    more.cancel()
    await asyncio.wait([more])
    for turn in taken:
        turn.leave()
    return exact


async def test_limit_and_order() -> None:
    """So many at once; the others come in their order, one for each that leaves."""
    turns = StepTurns(2)
    came: list[int] = []
    held: list[Turn] = []

    async def one(number: int) -> None:
        held.append(await turns.take())
        came.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await settled()
    assert came == [0, 1]
    held[1].leave()
    await settled()
    assert came == [0, 1, 2]
    held[0].leave()
    held[2].leave()
    await settled()
    assert came == [0, 1, 2, 3, 4]
    for turn in held[3:]:
        turn.leave()
    await asyncio.wait(tasks)
    assert await free(turns, 2)


async def test_left_once() -> None:
    """Leaving a turn again frees nothing more."""
    turns = StepTurns(1)
    turn = await turns.take()
    turn.leave()
    turn.leave()
    assert await free(turns, 1)


async def test_cancelled_while_waiting() -> None:
    """Who is cancelled while waiting neither takes a turn nor loses one."""
    turns = StepTurns(1)
    first = await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await settled()
    waiting[0].cancel()
    await settled()
    first.leave()
    await settled()
    assert waiting[1].done()
    waiting[1].result().leave()
    async with asyncio.timeout(10):
        (await waiting[2]).leave()
    assert await free(turns, 1)


@pytest.mark.parametrize("turns_of_the_loop", [0, 1], ids=["before-it-is-told", "after-it-is-told"])
async def test_cancelled_when_its_turn_comes(turns_of_the_loop: int) -> None:
    """A turn that comes to somebody who was just cancelled goes on to the next."""
    turns = StepTurns(1)
    first = await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(2)]
    await settled()
    first.leave()
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    async with asyncio.timeout(10):
        (await waiting[1]).leave()
    assert waiting[0].cancelled()
    assert await free(turns, 1)


async def test_thread_that_outlives_its_step() -> None:
    """A function that goes on in its thread after its step was left keeps its turn until it returns."""
    turns = StepTurns(1)
    turn = await turns.take()
    assert turn.enter_thread()
    turn.leave()
    waiting = asyncio.create_task(turns.take())
    await settled()
    assert not waiting.done()
    thread = threading.Thread(target=turn.leave_thread)
    thread.start()
    async with asyncio.timeout(10):
        (await waiting).leave()
    thread.join()
    assert await free(turns, 1)


async def test_thread_that_comes_too_late() -> None:
    """A function whose step was left before it began must not begin."""
    turns = StepTurns(1)
    turn = await turns.take()
    turn.leave()
    assert not turn.enter_thread()
    assert await free(turns, 1)


async def test_thread_before_its_step() -> None:
    """A function that returned does not end the turn of a step that still awaits what it gave."""
    turns = StepTurns(1)
    turn = await turns.take()
    assert turn.enter_thread()
    turn.leave_thread()
    waiting = asyncio.create_task(turns.take())
    await settled()
    assert not waiting.done()
    turn.leave()
    async with asyncio.timeout(10):
        (await waiting).leave()


def in_threads(count: int, call: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_over_event_loops() -> None:
    """The limit holds over event loops in several threads, and every one of them gets its turns."""
    turns = StepTurns(3)
    lock = threading.Lock()
    going = most = done = 0

    async def one() -> None:
        nonlocal going, most, done
        turn = await turns.take()
        with lock:
            going += 1
            most = max(most, going)
        await asyncio.sleep(0)
        with lock:
            going -= 1
            done += 1
        turn.leave()

    async def many() -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(one() for _ in range(50)))

    in_threads(4, lambda: asyncio.run(many()))
    assert (most, done) == (3, 200)


def test_closed_loop() -> None:
    """Who waited in a loop that was closed is passed over."""
    turns = StepTurns(1)
    turn = asyncio.run(turns.take())
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(turns.take())
    loop.run_until_complete(settled())
    loop.close()
    turn.leave()
    assert asyncio.run(free(turns, 1))
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
