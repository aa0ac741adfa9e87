"""The application of the peers on the hosts: one workflow, ``echo``, that answers its input."""

from __future__ import annotations

from blazen_peer import StartEvent, StopEvent, Workflow, register_workflow, step


@step("netns::echo")
async def echo(event: StartEvent) -> StopEvent:
    """Answer the input."""
    return StopEvent(result=event.data)


register_workflow(Workflow("echo", [echo]))
