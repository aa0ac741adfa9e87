"""What a user's strict mypy must accept, and (the ignores, which strict mypy wants to be needed) must refuse."""

from __future__ import annotations

from typing import Any, assert_type

from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.runtime import Context, Workflow, WorkflowResult, step


class Document(StartEvent):
    document: str


class Analyzed(Event, event_type="my_app::Analyzed"):
    words: int


class Report(StopEvent):
    words: int


class Plain(StopEvent):
    result: int


@step("typed::analyze")
async def analyze(event: Document, ctx: Context) -> Analyzed | None:
    return Analyzed(words=len(event.document)) if ctx.caller.kind == "anonymous" else None


@step("typed::summarize")
def summarize(event: Analyzed) -> StopEvent:
    return Report(words=event.words)


async def use() -> None:
    StartEvent(data={"a": 1})
    StopEvent(result=1)
    StopEvent()
    Report(words=1)
    assert_type(Plain(result=1).result, int)
    assert_type(Event.dynamic("a::b", [1]), Event)
    assert_type(Event.dynamic("a::b").event_type, str)
    Report(words="x")  # type: ignore[arg-type]
    Report(words=1, result=2)  # type: ignore[call-arg]
    Analyzed()  # type: ignore[call-arg]
    StopEvent(1)  # type: ignore[call-arg]
    result = await Workflow("w", [analyze, summarize]).run({"document": "x"}, timeout_secs=1)
    assert_type(result, WorkflowResult)
    assert_type(result.result, Any)
    assert_type(summarize(Analyzed(words=1)), StopEvent)
