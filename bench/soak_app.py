"""What the soak's peers serve: a step that notes its execution in a file of its process, emits, and answers after a while."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from blazen_peer import Context, Event, StartEvent, StopEvent, Workflow, register_workflow, step

_executed = os.open(Path(os.environ["JOURNAL"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


@step("soak::work")
async def work(event: StartEvent, ctx: Context) -> StopEvent:
    """Take ``secs``, emit as many ``events`` meanwhile, and answer with ``id``. The note is with the system before all else."""
    os.write(_executed, f"{event.data['id']}\n".encode())
    if event.data["secs"]:
        events = event.data["events"]
        for number in range(events):
            ctx.emit(Event.dynamic("soak::Number", {"n": number}))
            await asyncio.sleep(event.data["secs"] / (events + 1))
        await asyncio.sleep(event.data["secs"] / (events + 1))
    return StopEvent(result=event.data["id"])


register_workflow(Workflow("soak", ["soak::work"]))
