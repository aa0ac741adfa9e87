"""What a remote call leaves in traces and logs: one tree over both ends, names and sizes, and nothing of what it carried.

One way alone: calls whose trace is sampled use no lane.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from blazen_peer import (
    BlazenError,
    Context,
    Event,
    OverloadedError,
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    UnauthenticatedError,
    UnknownStepError,
    Workflow,
    WorkflowError,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.wire import SubWorkflowRequest

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]

CANARY = "canary-4f1c"
TOKEN = "secret-token-" * 4
CALL = "blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"


@pytest.fixture
def exported(traced: Callable[..., InMemorySpanExporter]) -> InMemorySpanExporter:
    """Tracing on, for this test alone."""
    return traced()


@pytest.fixture(autouse=True)
def steps(registry: Registry) -> None:
    """Steps that carry the canary in every place where one can."""

    class Found(Event, event_type="demo::Found"):
        text: str

    @registry.step("demo::finds")
    async def finds(event: StartEvent) -> Found:
        return Found(text=f"{CANARY} in {event.data}")

    @registry.step("demo::reports")
    async def reports(event: Found) -> StopEvent:
        return StopEvent(result={CANARY: event.text})

    @registry.step("demo::fails")
    async def fails(event: StartEvent) -> StopEvent:
        raise ValueError(CANARY) from RuntimeError(CANARY)


async def spans(exporter: InMemorySpanExporter, count: int) -> dict[tuple[str, SpanKind], ReadableSpan]:
    """Return the spans by name and kind, once there are *count*."""
    async with asyncio.timeout(10):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
    found = {(span.name, span.kind): span for span in exporter.get_finished_spans()}
    assert len(exporter.get_finished_spans()) == len(found) == count, list(found)
    return found


def telltale(exporter: InMemorySpanExporter) -> list[str]:
    """Return all that the spans say, wherever they say it."""
    return [span.to_json() for span in exporter.get_finished_spans()]


async def test_one_trace(exported: InMemorySpanExporter, serve: Serve, connect: Connect) -> None:
    """Client call, server call, run and steps are one tree in one trace, with these names, kinds and attributes."""
    client = await connect(await serve(token=TOKEN), token=TOKEN)
    await client.run_remote_workflow("pipeline", ["demo::finds", "demo::reports"], f'"{CANARY}"', 5)
    found = await spans(exported, 5)
    call, served = found[CALL, SpanKind.CLIENT], found[CALL, SpanKind.SERVER]
    run = found["blazen.run pipeline", SpanKind.INTERNAL]
    first, last = (found[f"blazen.step demo::{name}", SpanKind.INTERNAL] for name in ("finds", "reports"))
    assert call.parent is None
    for child, parent in ((served, call), (run, served), (first, run), (last, run)):
        assert child.parent is not None
        assert child.parent.span_id == parent.context.span_id
    assert {span.context.trace_id for span in found.values()} == {call.context.trace_id}
    assert {span.status.status_code for span in found.values()} == {StatusCode.UNSET}

    rpc = {"rpc.system": "grpc", "rpc.service": "blazen.peer.v1.BlazenPeer", "rpc.method": "InvokeSubWorkflow"}
    calls, serves = dict(call.attributes or {}), dict(served.attributes or {})
    invocation_id, size = calls.pop("blazen.invocation.id"), calls.pop("blazen.request.size_bytes")
    assert calls == {**rpc, "blazen.workflow.name": "pipeline", "blazen.node.id": "node-a"}
    assert serves.pop("blazen.response.size_bytes") > len(CANARY)
    assert serves == {
        **rpc,
        "rpc.grpc.status_code": 0,
        "blazen.node.id": "node-b",
        "blazen.caller": "claimed:node-a",
        "blazen.client.node.id": "node-a",
        "blazen.invocation.id": invocation_id,
        "blazen.request.size_bytes": size,
    }
    runs = dict(run.attributes or {})
    assert runs.pop("blazen.run.id")
    assert runs == {
        "blazen.workflow.name": "pipeline",
        "blazen.node.id": "node-b",
        "blazen.caller": "claimed:node-a",
        "blazen.invocation.id": invocation_id,
    }
    assert dict(last.attributes or {}) == {"blazen.step.id": "demo::reports", "blazen.event.type": "demo::Found"}


async def test_a_parents_trace_goes_on(
    exported: InMemorySpanExporter, serve: Serve, connect: Connect, registry: Registry
) -> None:
    """A remote call inside a step, awaited or blocking in a thread, hangs below that step, in the parent's trace."""
    client = await connect(await serve())

    @registry.step("awaits")
    async def awaits(event: StartEvent) -> Event:
        await client.run_remote_workflow("child-1", ["demo::finds", "demo::reports"], "1")
        return Event.dynamic("demo::Next")

    @registry.step("blocks", accepts=["demo::Next"], emits=["blazen::StopEvent"])
    def blocks(event: Event) -> StopEvent:
        client.run_remote_workflow_blocking("child-2", ["demo::finds", "demo::reports"], "1")
        return StopEvent()

    await Workflow("parent", ["awaits", "blocks"], registry=registry).run("1")
    async with asyncio.timeout(10):
        while len(exported.get_finished_spans()) < 13:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
    found = exported.get_finished_spans()
    by_id = {span.context.span_id: span for span in found}

    def path(span: ReadableSpan) -> list[str]:
        above = path(by_id[span.parent.span_id]) if span.parent else []
        return [*above, span.name]

    for child, step in (("child-1", "awaits"), ("child-2", "blocks")):
        [run] = [span for span in found if span.name == f"blazen.run {child}"]
        assert path(run) == ["blazen.run parent", f"blazen.step {step}", CALL, CALL, f"blazen.run {child}"]
    assert len({span.context.trace_id for span in found}) == 1


FAILURES: list[Any] = [
    pytest.param(["demo::fails"], f'"{CANARY}"', WorkflowError, "WorkflowError", None, id="a-step-raises"),
    pytest.param(["no-such-step"], f'"{CANARY}"', UnknownStepError, "UnknownStepError", 5, id="unknown-step"),
]


@pytest.mark.parametrize(("step_ids", "input_json", "error_type", "error_name", "status"), FAILURES)
async def test_failures(
    exported: InMemorySpanExporter,
    serve: Serve,
    connect: Connect,
    step_ids: list[str],
    input_json: str,
    error_type: type[BlazenError],
    error_name: str,
    status: int | None,
) -> None:
    """A failure marks the spans that it belongs to by the error's type alone: no message, no event, no description."""
    client = await connect(await serve())
    with pytest.raises(error_type):
        await client.run_remote_workflow("w", step_ids, input_json)
    found = await spans(exported, 4 if status is None else 2)
    assert (found[CALL, SpanKind.CLIENT].attributes or {})["error.type"] == error_name
    served = found[CALL, SpanKind.SERVER]
    if status is None:  # the call itself went well: what failed is the run, and its step
        assert served.status.status_code is StatusCode.UNSET
        assert (found["blazen.step demo::fails", SpanKind.INTERNAL].attributes or {})["error.type"] == "ValueError"
    else:
        assert (served.attributes or {})["error.type"] == error_name
        assert (served.attributes or {})["rpc.grpc.status_code"] == status
    for span in found.values():
        assert not span.events
        assert span.status.description is None


async def test_canary(
    exported: InMemorySpanExporter, serve: Serve, connect: Connect, raw_call: RawCall, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of inputs, results, exceptions or tokens is in any span or log of ours, whatever goes well or wrong."""
    caplog.set_level(logging.DEBUG, logger="blazen_peer")
    server = await serve(token=TOKEN, settings=ServerSettings(max_runs=10, drain_secs=0, max_message_bytes=10_000))
    client = await connect(server, token=TOKEN)
    await client.run_remote_workflow("w", ["demo::finds", "demo::reports"], f'"{CANARY}"')
    for step_ids, input_json in (
        (["demo::fails"], f'"{CANARY}"'),
        (["no-such-step"], f'"{CANARY}"'),
        (["demo::finds"], f'"{CANARY}"'),
        (["demo::finds"], f'{{"{CANARY}'),
        (["demo::finds"], f'"{CANARY * 2000}"'),
    ):
        with pytest.raises(BlazenError):
            await client.run_remote_workflow("w", step_ids, input_json)
    unreadable = SubWorkflowRequest("w", ("demo::finds",), f'{{"{CANARY}'.encode()).encode()
    for envelope, metadata in (
        (unreadable, [("authorization", f"Bearer {TOKEN}")]),
        (f"garbage {CANARY}".encode(), [("authorization", f"Bearer {TOKEN}")]),
        (unreadable, [("authorization", f"Bearer {CANARY}{TOKEN}")]),
        (unreadable, [("authorization", f"Bearer {TOKEN}"), ("traceparent", CANARY), ("x-anything", CANARY)]),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await raw_call(server, envelope, metadata=metadata)
    with pytest.raises(UnauthenticatedError):
        await (await connect(server, token=f"{CANARY}-{TOKEN}")).run_remote_workflow("w", ["demo::fails"], "1")
    assert len(telltale(exported)) >= 19
    for text in (*telltale(exported), *(record.getMessage() + str(record.exc_text) for record in caplog.records)):
        assert CANARY not in text
        assert TOKEN[:20] not in text
        assert "Bearer" not in text


async def test_overload_is_told_by_its_status(
    exported: InMemorySpanExporter, serve: Serve, connect: Connect, registry: Registry
) -> None:
    """A refusal by a limit shows as its status code on the server's span."""
    go = asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        await go.wait()
        return StopEvent()

    server = await serve(settings=ServerSettings(max_runs=1, max_queued_runs=0, drain_secs=1))
    client = await connect(server)
    running = asyncio.create_task(client.run_remote_workflow("w", ["waits"], "1"))
    async with asyncio.timeout(10):
        while server._invocations.in_progress == 0:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError):
            await client.run_remote_workflow("w", ["waits"], "1")
        go.set()
        await running
    served = [span for span in exported.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert sorted((span.attributes or {})["rpc.grpc.status_code"] for span in served) == [0, 8]


async def test_session_refs(
    exported: InMemorySpanExporter,
    serve: Serve,
    connect: Connect,
    registry: Registry,
    raw_call: RawCall,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The calls about a ref are spans on both ends, in one trace each, with the caller; the value is in none, nor in a log."""

    @registry.step("demo::puts")
    async def puts(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(CANARY, type_tag="demo::T", serializer=str.encode)
        return StopEvent()

    @registry.step("demo::puts-broken")
    async def puts_broken(event: StartEvent, ctx: Context) -> StopEvent:
        def fails(_: object) -> bytes:
            raise ValueError(CANARY)

        ctx.put_ref(None, type_tag="demo::T", serializer=fails, size_bytes=1)
        return StopEvent()

    client = await connect(await serve(token=TOKEN), token=TOKEN)
    [ref] = (await client.run_remote_workflow("w", ["demo::puts"], "1")).remote_refs.values()
    [broken] = (await client.run_remote_workflow("w", ["demo::puts-broken"], "1")).remote_refs.values()
    exported.clear()
    with caplog.at_level(logging.DEBUG):
        assert await client.deref(ref) == CANARY.encode()
        await client.list_refs()
        assert await client.release(ref)
        found = await spans(exported, 6)
        for name in ("PeerControl/DerefChunks", "PeerControl/ListRefs", "BlazenPeer/ReleaseSessionRef"):
            [call] = [span for (full, kind), span in found.items() if full.endswith(name) and kind is SpanKind.CLIENT]
            [served] = [span for (full, kind), span in found.items() if full.endswith(name) and kind is SpanKind.SERVER]
            assert served.parent is not None
            assert served.parent.span_id == call.context.span_id
            assert (served.attributes or {})["blazen.caller"] == "claimed:node-a"
        with pytest.raises(BlazenError):
            await client.deref(broken)
    assert not [text for text in (*telltale(exported), caplog.text) if CANARY in text]
