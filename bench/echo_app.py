"""What the benchmark's peer serves: two steps that hand a document through."""

from __future__ import annotations

from blazen_peer import Event, StartEvent, StopEvent, Workflow, register_workflow, step


class Passed(Event, event_type="bench::Passed"):
    """Half way."""

    text: str


@step("bench::first")
async def first(event: StartEvent) -> Passed:
    """Hand the text on."""
    return Passed(text=event.data["text"])


@step("bench::second")
async def second(event: Passed) -> StopEvent:
    """Answer with it."""
    return StopEvent(result={"text": event.text})


register_workflow(Workflow("bench", ["bench::first", "bench::second"]))
