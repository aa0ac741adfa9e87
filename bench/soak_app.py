"""What the soak's peers serve: one step that notes its execution in a file of its process, and answers after a while."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from blazen_peer import StartEvent, StopEvent, Workflow, register_workflow, step

_executed = os.open(Path(os.environ["JOURNAL"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


@step("soak::work")
async def work(event: StartEvent) -> StopEvent:
    """Take ``secs``, and answer with ``id``. The note is on its way to the disk before anything else happens."""
    os.write(_executed, f"{event.data['id']}\n".encode())
    if event.data["secs"]:
        await asyncio.sleep(event.data["secs"])
    return StopEvent(result=event.data["id"])


register_workflow(Workflow("soak", ["soak::work"]))
