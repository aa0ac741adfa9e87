"""What a run leaves in a trace: its span, its steps' spans, and nothing of what it carried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from blazen_peer import telemetry
from blazen_peer.errors import WorkflowError
from blazen_peer.events import START, STOP, Event, StopEvent
from blazen_peer.identity import Caller
from blazen_peer.runtime import Context, Retry, WorkflowBuilder, local_step, parallel

CANARY = "canary-in-a-payload"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Tracing on, for this test alone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(telemetry, "_TRACER", provider.get_tracer(telemetry.TRACER))
    yield exporter
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def spans(exporter: InMemorySpanExporter, count: int) -> dict[str, ReadableSpan]:
    async with asyncio.timeout(10):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
    return by_name(exporter)


async def test_tree(exported: InMemorySpanExporter) -> None:
    """A run's span holds its steps' spans, those of fanned-out and of plain steps as well; each is current in its step."""
    inside: dict[str, str | None] = {}

    async def first(event: Event) -> list[Event]:
        inside["first"] = telemetry.current_trace_id()
        return [Event.dynamic("demo::A", CANARY), Event.dynamic("demo::B", CANARY)]

    def plain(event: Event) -> None:
        inside["plain"] = telemetry.current_trace_id()

    async def last(event: Event) -> Event:
        await asyncio.sleep(0.05)
        return StopEvent(result=CANARY)

    builder = WorkflowBuilder("w").step("first", [START], None, first)
    workflow = builder.step("plain", ["demo::A"], None, plain).step("last", ["demo::B"], [STOP], last).build()
    parent = telemetry.extract({"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"})
    run = workflow.start(
        CANARY, caller=Caller.claimed("node-a"), run_id="r1", node_id="n", invocation_id="i1", trace_parent=parent
    )
    await run.wait()
    found = await spans(exported, 4)
    assert set(found) == {"blazen.run w", "blazen.step first", "blazen.step plain", "blazen.step last"}
    top = found.pop("blazen.run w")
    assert top.parent is not None
    assert trace.format_trace_id(top.parent.trace_id) == "ab" * 16
    assert dict(top.attributes or {}) == {
        "blazen.workflow.name": "w",
        "blazen.run.id": "r1",
        "blazen.node.id": "n",
        "blazen.caller": "claimed:node-a",
        "blazen.invocation.id": "i1",
    }
    for span in found.values():
        assert span.parent is not None
        assert span.parent.span_id == top.context.span_id
        assert span.status.status_code is StatusCode.UNSET
    assert set(inside.values()) == {"ab" * 16}
    assert CANARY not in "".join(span.to_json() for span in exported.get_finished_spans())


async def test_failure(exported: InMemorySpanExporter) -> None:
    """A failing step marks its span and the run's by the error's type alone."""

    async def broken(event: Event) -> None:
        raise ValueError(CANARY)

    with pytest.raises(WorkflowError):
        await WorkflowBuilder("w").step("s", [START], [STOP], broken).build().run(CANARY)
    found = await spans(exported, 2)
    assert (found["blazen.step s"].attributes or {})["error.type"] == "ValueError"
    assert (found["blazen.run w"].attributes or {})["error.type"] == "WorkflowError"
    assert all(span.status.status_code is StatusCode.ERROR and not span.events for span in found.values())
    assert CANARY not in "".join(span.to_json() for span in found.values())


async def test_losers_have_not_failed(exported: InMemorySpanExporter) -> None:
    """A step that the end of its run cancelled did not fail, nor did the run, whichever task ended it."""
    waiting = asyncio.Event()

    async def slow(event: Event) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def fast(event: Event) -> Event:
        await waiting.wait()
        return StopEvent()

    await WorkflowBuilder("w").step("slow", [START], [], slow).step("fast", [START], [STOP], fast).build().run(None)
    found = await spans(exported, 3)
    assert {name: span.status.status_code for name, span in found.items()} == dict.fromkeys(
        ("blazen.run w", "blazen.step slow", "blazen.step fast"), StatusCode.UNSET
    )


async def test_timeout(exported: InMemorySpanExporter) -> None:
    """A run that timed out failed; the step that it cancelled did not."""

    async def slow(event: Event) -> None:
        await asyncio.Event().wait()

    with pytest.raises(WorkflowError):
        await WorkflowBuilder("w").step("s", [START], [STOP], slow).build().run(None, timeout_secs=0.01)
    found = await spans(exported, 2)
    assert found["blazen.run w"].status.status_code is StatusCode.ERROR
    assert found["blazen.step s"].status.status_code is StatusCode.UNSET


async def test_children_share_the_trace(exported: InMemorySpanExporter) -> None:
    """A child's run is in its step's span, and each branch of a parallel step has a span of its own there."""

    async def last(event: Event) -> Event:
        return StopEvent()

    child = WorkflowBuilder("child").step("last", [START], [STOP], last).build()
    steps = [local_step(child, step_id="left"), local_step(child, step_id="right")]
    await WorkflowBuilder("parent").add(parallel(steps, step_id="both")).build().run(None)
    await spans(exported, 8)
    parents = {span.context.span_id: span.name for span in exported.get_finished_spans() if span.context}
    tree = sorted(
        (span.name, parents.get(span.parent.span_id) if span.parent else None) for span in exported.get_finished_spans()
    )
    assert tree == [
        ("blazen.run child", "blazen.step left"),
        ("blazen.run child", "blazen.step right"),
        ("blazen.run parent", None),
        ("blazen.step both", "blazen.run parent"),
        ("blazen.step last", "blazen.run child"),
        ("blazen.step last", "blazen.run child"),
        ("blazen.step left", "blazen.step both"),
        ("blazen.step right", "blazen.step both"),
    ]


async def test_attempts(exported: InMemorySpanExporter, caplog: pytest.LogCaptureFixture) -> None:
    """A step that is executed again says how often, in one span; its logger's records carry the trace's id."""

    async def flaky(event: Event, ctx: Context) -> Event:
        ctx.logger.warning("attempt %d", ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError(CANARY)
        return StopEvent()

    async def steady(event: Event) -> None:
        return None

    builder = WorkflowBuilder("w").step("flaky", [START], [STOP], flaky, retry=Retry(delay_secs=0))
    await builder.step("steady", [START], [], steady).build().run(None)
    found = await spans(exported, 3)
    attributes = found["blazen.step flaky"].attributes or {}
    assert attributes["blazen.step.attempts"] == 3
    assert found["blazen.step flaky"].status.status_code is not StatusCode.ERROR
    assert "blazen.step.attempts" not in (found["blazen.step steady"].attributes or {})
    assert found["blazen.step flaky"].context is not None
    trace_id = trace.format_trace_id(found["blazen.step flaky"].context.trace_id)
    assert [vars(record)["trace_id"] for record in caplog.records] == [trace_id] * 3


async def test_run_span_covers_the_run(exported: InMemorySpanExporter) -> None:
    """The run's span ends with the run, even where the first task has long had nothing to do."""

    async def first(event: Event) -> list[Event]:
        return [Event.dynamic("demo::Short"), Event.dynamic("demo::Long")]

    async def short(event: Event) -> None:
        return None

    async def long(event: Event) -> Event:
        await asyncio.sleep(0.02)
        return StopEvent()

    builder = WorkflowBuilder("w").step("first", [START], None, first).step("short", ["demo::Short"], [], short)
    await builder.step("long", ["demo::Long"], [STOP], long).build().run(None)
    found = await spans(exported, 4)
    assert (found["blazen.run w"].end_time or 0) >= (found["blazen.step long"].end_time or 1)


async def test_off() -> None:
    """With no provider installed, nothing is recorded; the caller's trace context is handed on all the same."""

    async def look(event: Event) -> Event:
        return StopEvent(result=telemetry.inject().get("traceparent"))

    header = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    workflow = WorkflowBuilder("w").step("s", [START], [STOP], look).build()
    run = workflow.start(None, trace_parent=telemetry.extract({"traceparent": header}))
    assert (await run.wait()).result == header
    assert (await workflow.run(None)).result is None
