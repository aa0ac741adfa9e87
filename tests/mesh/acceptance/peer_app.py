"""The application of peers that tests start as processes. Each execution of a step leaves a line in the journal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from blazen_peer import Context, Event, PeerClient, StartEvent, StopEvent, step


def note(step_id: str) -> None:
    """Write one line, whole: it is there though the process be killed the next moment."""
    with Path(os.environ["JOURNAL"]).open("a") as journal:
        journal.write(f"{step_id}\n")


class Half(Event):
    """What ``demo::first`` hands on."""

    document: Any


class Strict(StartEvent):
    """An input that must be a number."""

    count: int


@step("demo::hold")
async def hold(event: StartEvent, ctx: Context) -> StopEvent:
    """Run until the process dies."""
    note(ctx.step_id)
    await asyncio.sleep(300)
    return StopEvent(result=None)


@step("demo::first")
async def first(event: StartEvent, ctx: Context) -> Half:
    """Do the first half."""
    note(ctx.step_id)
    return Half(document=event.data)


@step("demo::second")
async def second(event: Half, ctx: Context) -> StopEvent:
    """Do the second half: answer the input."""
    note(ctx.step_id)
    return StopEvent(result=event.document)


@step("demo::fail")
async def fail(event: StartEvent, ctx: Context) -> StopEvent:
    """Raise with the input as the text."""
    note(ctx.step_id)
    raise ValueError(str(event.data))


@step("demo::fail_in_thread")
def fail_in_thread(event: StartEvent) -> StopEvent:
    """Raise in a thread, from an error that has the input as its text too."""
    try:
        raise KeyError(str(event.data))
    except KeyError as error:
        raise RuntimeError(f"because of {event.data}") from error


@step("demo::unwritable")
async def unwritable(event: StartEvent) -> StopEvent:
    """Return what is not JSON, with the input in it."""
    return StopEvent(result={"of": event.data, "is": {1, 2}})


@step("demo::strict")
async def strict(event: Strict) -> StopEvent:
    """Answer a number; any other input is refused before this runs."""
    note("demo::strict")
    return StopEvent(result=event.count)


@step("demo::tracing")
async def tracing(event: StartEvent) -> StopEvent:
    """Answer what of tracing there is in this process."""
    exporting = [name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))]
    return StopEvent(result={"threads": [thread.name for thread in threading.enumerate()], "modules": exporting})


@step("demo::parent")
async def parent(event: StartEvent, ctx: Context) -> StopEvent:
    """Hand ``document`` to the steps ``step_ids`` of the peer at EGRESS, as a child run."""
    note(ctx.step_id)
    async with await PeerClient.connect_async(os.environ["EGRESS"], "intake") as client:
        result = await client.run_remote_workflow("child", event.data["step_ids"], json.dumps(event.data["document"]), 20)
    return StopEvent(result=result.result)
