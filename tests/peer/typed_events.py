"""What a user's strict mypy must accept, and (the ignores, which strict mypy wants to be needed) must refuse."""

from __future__ import annotations

from typing import Any, assert_type

from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.runtime import Context, Retry, Workflow, WorkflowResult, local_step, parallel, step


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


@step("typed::join", timeout_secs=1, retry=Retry(attempts=2, on=(OSError, ValueError)), max_concurrent=2)
async def join(event: Analyzed, ctx: Context) -> Report | None:
    found = ctx.collect(event, 3)
    assert_type(found, list[Analyzed] | None)
    ctx.collect(1, 3)  # type: ignore[type-var]
    return Report(words=sum(one.words for one in found)) if found else None


async def use() -> None:
    both = parallel({"a": analyze, "b": local_step(Workflow("w", [analyze, summarize]))}, mode="first", emits=Analyzed)
    Workflow("p", [both, join])
    parallel([analyze], mode="some")  # type: ignore[arg-type]
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
