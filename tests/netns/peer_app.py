"""The application of the peers on the hosts: one workflow, ``echo``, that answers its input."""

from __future__ import annotations

import asyncio

from blazen_peer import StartEvent, StopEvent, Workflow, register_workflow, step


@step("netns::echo")
async def echo(event: StartEvent) -> StopEvent:
    """Answer the input; one that says ``wait_secs`` so much later."""
    if isinstance(event.data, dict):
        await asyncio.sleep(event.data["wait_secs"])
    return StopEvent(result=event.data)


register_workflow(Workflow("echo", [echo]))
