"""What a run costs while it waits: 10,000 of one workflow at once, each in a step that awaits, memory a run printed.

Beside it, in the same process and measured the same way, as many bare asyncio tasks that await a future each.

    python bench/waiting_runs.py [--runs 10000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
import tracemalloc

from rich.console import Console
from rich.table import Table

from blazen_peer import StartEvent, StopEvent, WorkflowBuilder


def traced_bytes() -> int:
    """Return what Python holds now, less garbage."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def settled(count: int, waiting: list[asyncio.Future[None]]) -> None:
    """Wait until *count* of them wait."""
    async with asyncio.timeout(60):
        while len(waiting) < count:  # noqa: ASYNC110 (a turn of the loop is what is waited for)
            await asyncio.sleep(0)


async def tasks(count: int) -> tuple[float, float]:
    """Bare tasks: bytes each while they wait, and seconds for all from start to end."""
    waiting: list[asyncio.Future[None]] = []

    async def wait() -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        await future

    before, began = traced_bytes(), time.perf_counter()
    started = [asyncio.create_task(wait()) for _ in range(count)]
    await settled(count, waiting)
    held = (traced_bytes() - before) / count
    for future in waiting:
        future.set_result(None)
    await asyncio.gather(*started)
    return held, time.perf_counter() - began


async def runs(count: int) -> tuple[float, float]:
    """Runs of ours: likewise."""
    waiting: list[asyncio.Future[None]] = []

    async def wait(event: StartEvent) -> StopEvent:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        await future
        return StopEvent(result=event.data)

    workflow = WorkflowBuilder("waiting").step("bench::wait", accepts=None, emits=None, handler=wait).build()
    before, began = traced_bytes(), time.perf_counter()
    started = [workflow.start(number, timeout_secs=300) for number in range(count)]
    await settled(count, waiting)
    held = (traced_bytes() - before) / count
    for future in waiting:
        future.set_result(None)
    results = [await run.wait() for run in started]
    assert [result.result for result in results] == list(range(count))
    return held, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="how many at once")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    tracemalloc.start()
    rows = []
    for name, measure in (("bare asyncio task", tasks), ("our run, one step", runs)):
        asyncio.run(measure(100))  # imports and caches
        held, secs = asyncio.run(measure(arguments.runs))
        rows.append({"what": name, "at_once": arguments.runs, "bytes_each": round(held), "secs_in_all": round(secs, 2)})
    if arguments.json:
        print(json.dumps({"waiting_runs": rows}))
        return
    table = Table(title="What a run holds while it waits (Python's own memory, traced)", title_justify="left")
    for heading in ("", "at once", "bytes each", "seconds in all", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        ratio = row["bytes_each"] / rows[0]["bytes_each"]
        table.add_row(row["what"], *(f"{row[key]:,}" for key in ("at_once", "bytes_each", "secs_in_all")), f"{ratio:.1f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
