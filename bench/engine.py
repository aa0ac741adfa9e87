"""What a step costs: a chain of 3 steps, a chain of 100, fan-out and fan-in of 100, each beside the same work in bare asyncio.

    python bench/engine.py [--json] [--repeats N] [--profile]

Ours and bare take turns, and of each the best of the repeats counts, so that a noisy moment spoils neither. The bare side makes
the same events and awaits the same functions: a loop of awaits for a chain, a task group for the fan.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.runtime import Registry, Workflow

WIDTH = 100
CHAIN_TARGET_US = 15.0  # a step
FAN_TARGET_US = 5_000.0  # a run

registry = Registry()


class Count(Event):
    left: int


class Part(Event):
    number: int


class Done(Event):
    number: int


@registry.step("bench::begin")
async def begin(event: StartEvent) -> Count:
    return Count(left=event.data - 2)


@registry.step("bench::count")
async def count(event: Count) -> Count | StopEvent:
    return Count(left=event.left - 1) if event.left else StopEvent(result="done")


@registry.step("bench::split")
async def split(event: StartEvent) -> list[Part]:
    return [Part(number=number) for number in range(event.data)]


@registry.step("bench::work")
async def work(event: Part) -> Done:
    await asyncio.sleep(0)
    return Done(number=event.number)


class Join:
    """Collects *width* events, then ends: the state of one run, made anew for each."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    async def __call__(self, event: Done) -> StopEvent | None:
        self.numbers.append(event.number)
        return StopEvent(result=sum(self.numbers)) if len(self.numbers) == WIDTH else None


async def bare_chain(steps: int) -> object:
    event: Any = await begin(StartEvent(data=steps))
    while not isinstance(event, StopEvent):
        event = await count(event)
    return event.result


async def bare_fan(width: int) -> object:
    join = Join()

    async def one(part: Part) -> StopEvent | None:
        return await join(await work(part))

    parts = await split(StartEvent(data=width))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(part)) for part in parts]
    return next(stop for task in tasks if (stop := task.result()) is not None).result


chain = Workflow("chain", ["bench::begin", "bench::count"], registry=registry)


async def our_chain(steps: int) -> object:
    return (await chain.run(steps)).result


async def our_fan(width: int) -> object:
    mine.numbers.clear()
    return (await fan.run(width)).result


mine = Join()
registry.step("bench::join")(mine)
fan = Workflow("fan", ["bench::split", "bench::work", "bench::join"], registry=registry)


@dataclass(frozen=True)
class Row:
    """One line of the table; times in microseconds."""

    name: str
    steps: int
    run_us: float
    step_us: float
    bare_run_us: float
    ratio: float
    target: str
    met: bool


async def time_once(call: Callable[[int], Awaitable[object]], size: int, runs: int) -> float:
    began = perf_counter()
    for _ in range(runs):
        await call(size)
    return (perf_counter() - began) / runs * 1e6


async def measure(name: str, ours: Any, bare: Any, size: int, steps: int, target_us: float, repeats: int, runs: int) -> Row:
    if await ours(size) != await bare(size):
        raise AssertionError(f"{name}: the two sides gave different results")
    run_us = bare_us = float("inf")
    for _ in range(repeats):
        run_us = min(run_us, await time_once(ours, size, runs))
        bare_us = min(bare_us, await time_once(bare, size, runs))
    per_step = target_us == CHAIN_TARGET_US
    met = (run_us / steps if per_step else run_us) <= target_us
    target = f"{target_us:g} us a step" if per_step else f"{target_us / 1000:g} ms a run"
    return Row(name, steps, run_us, run_us / steps, bare_us, run_us / bare_us, target, met)


async def measure_all(repeats: int) -> list[Row]:
    return [
        await measure("chain of 3", our_chain, bare_chain, 3, 3, CHAIN_TARGET_US, repeats, 1000),
        await measure("chain of 100", our_chain, bare_chain, 100, 100, CHAIN_TARGET_US, repeats, 100),
        await measure("fan-out, fan-in of 100", our_fan, bare_fan, WIDTH, 1 + 2 * WIDTH, FAN_TARGET_US, repeats, 50),
    ]


def show(rows: list[Row]) -> None:
    table = Table(title="What a step costs (microseconds, best of the repeats)")
    for column in ("", "steps", "run", "step", "bare asyncio run", "ours / bare", "target", "met"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        times = (f"{row.run_us:.1f}", f"{row.step_us:.2f}", f"{row.bare_run_us:.1f}", f"{row.ratio:.1f}")
        table.add_row(row.name, str(row.steps), *times, row.target, "yes" if row.met else "NO")
    Console(width=128).print(table)


def profile() -> None:
    """Print where the time of the chain of 100 goes; the profiler itself makes small functions look dearer."""

    async def many() -> None:
        for _ in range(300):
            await our_chain(100)

    profiler = cProfile.Profile()
    profiler.runcall(asyncio.run, many())
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(14)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a step costs, beside bare asyncio.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=7, help="the best of so many counts")
    parser.add_argument("--profile", action="store_true", help="print where the time of the chain of 100 goes")
    options = parser.parse_args()
    if options.profile:
        profile()
        return 0
    rows = asyncio.run(measure_all(options.repeats))
    if options.json:
        print(json.dumps({"engine": [asdict(row) for row in rows]}))
    else:
        show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
