"""W3C trace context between peers: gone on with where tracing is on, passed on where it is off, never a reason to refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from blazen_peer import PeerClient, PeerServer, StartEvent, StopEvent, telemetry
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]
RawPeers = Callable[..., Awaitable[Any]]
Trace = Callable[..., InMemorySpanExporter]

HEADER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
DONE = peer_pb2.PostcardResponse(postcard_payload=SubWorkflowResponse(result_json=b"null").encode()).SerializeToString()


@pytest.fixture(autouse=True)
def steps(registry: Registry) -> None:
    """A step that does nothing."""

    @registry.step("demo::nothing")
    async def nothing(event: StartEvent) -> StopEvent:
        return StopEvent()


async def test_a_callers_trace(traced: Trace, serve: Serve, raw_call: RawCall) -> None:
    """Any client's traceparent is gone on with; a malformed one, or two, are no reason to refuse the call."""
    exported = traced()
    server = await serve()
    envelope = SubWorkflowRequest("w", ("demo::nothing",), b"1").encode()
    for headers, trace_id in (
        ([HEADER], "ab" * 16),
        (["junk"], None),
        (["00-" + "0" * 32 + "-" + "cd" * 8 + "-01"], None),
        ([HEADER, HEADER], "ab" * 16),
    ):
        exported.clear()
        await raw_call(server, envelope, metadata=[("traceparent", header) for header in headers])
        [served] = [span for span in exported.get_finished_spans() if span.kind is SpanKind.SERVER]
        assert (served.parent is None) == (trace_id is None)
        assert trace_id is None or trace.format_trace_id(served.context.trace_id) == trace_id


async def done(_: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answer with the result null."""
    return DONE


async def test_off(serve: Serve, connect: Connect, raw_peer: RawPeers, raw_call: RawCall, registry: Registry) -> None:
    """With tracing off a client sends no traceparent of its own; a caller's is passed on to the calls made in its steps."""
    assert not telemetry.enabled()
    peer = await raw_peer(done)
    client = await connect(peer.address)

    @registry.step("awaits")
    async def awaits(event: StartEvent) -> StopEvent:
        await client.run_remote_workflow("w", ["s"], "1")
        return StopEvent()

    @registry.step("blocks")
    def blocks(event: StartEvent) -> StopEvent:
        client.run_remote_workflow_blocking("w", ["s"], "1")
        return StopEvent()

    server = await serve()
    for step_id in ("awaits", "blocks"):
        for sent in ({}, {"traceparent": HEADER, "tracestate": "a=1"}):
            peer.calls.clear()
            await raw_call(server, SubWorkflowRequest("w", (step_id,), b"1").encode(), metadata=tuple(sent.items()))
            [(_, metadata)] = peer.calls
            assert {name: value for name, value in metadata.items() if name.startswith("trace")} == sent


async def test_not_sampled(traced: Trace, serve: Serve, connect: Connect, raw_peer: RawPeers) -> None:
    """A trace that is not sampled records nothing and tells the next peer so."""
    exported = traced(ALWAYS_OFF)
    peer = await raw_peer(done)
    await (await connect(peer.address)).run_remote_workflow("w", ["s"], "1")
    await (await connect(await serve())).run_remote_workflow("w", ["demo::nothing"], "1")
    [(_, metadata)] = peer.calls
    assert int(str(metadata["traceparent"])[-2:], 16) & 1 == 0  # the flag "sampled", W3C Trace Context
    assert exported.get_finished_spans() == ()


async def test_a_child_is_linked_to_its_parents_run(traced: Trace, serve: Serve, connect: Connect, registry: Registry) -> None:
    """A run that another run's step asked for, here or at another peer, awaited or blocking, is linked to that run's span."""
    exported = traced()
    client = await connect(await serve())

    @registry.step("awaits")
    async def awaits(event: StartEvent) -> StopEvent:
        await client.run_remote_workflow("child", ["demo::nothing"], "1")
        return StopEvent()

    @registry.step("blocks")
    def blocks(event: StartEvent) -> StopEvent:
        client.run_remote_workflow_blocking("child", ["demo::nothing"], "1")
        return StopEvent()

    for step_id in ("awaits", "blocks"):
        exported.clear()
        await client.run_remote_workflow("parent", [step_id], "1")
        runs = {span.name: span for span in exported.get_finished_spans() if span.name.startswith("blazen.run")}
        child, parent = runs["blazen.run child"], runs["blazen.run parent"]
        assert [link.context.span_id for link in child.links] == [parent.context.span_id]
        assert child.links[0].context.trace_id == parent.context.trace_id == child.context.trace_id
        assert child.parent is not None
        assert child.parent.span_id != parent.context.span_id
        assert not parent.links


@pytest.mark.parametrize("said", ["", "x" * 16, "ab" * 7, "AB" * 8], ids=["empty", "no digits", "short", "capitals"])
async def test_a_malformed_run_span_links_nothing(said: str, traced: Trace, serve: Serve, raw_call: RawCall) -> None:
    """What is no span id in the header of the caller's run is passed over; the trace goes on."""
    exported = traced()
    envelope = SubWorkflowRequest("w", ("demo::nothing",), b"1").encode()
    await raw_call(await serve(), envelope, metadata=[("traceparent", HEADER), ("blazen-parent-run-span", said)])
    [run] = [span for span in exported.get_finished_spans() if span.name == "blazen.run w"]
    assert trace.format_trace_id(run.context.trace_id) == "ab" * 16
    assert not run.links


def test_where_the_providers_stand() -> None:
    """OpenTelemetry still keeps its providers where each call looks for them: elsewhere, calls would ask the slow way."""
    assert telemetry._TRACERS_TELL
    assert telemetry._METERS_TELL


@pytest.mark.parametrize("quick", [True, False], ids=["where they stand", "the public way"])
def test_providers_are_noticed(quick: bool) -> None:
    """A provider that is installed later is noticed at once, whichever way one looks."""
    code = (
        "from blazen_peer import telemetry\n"
        f"telemetry._TRACERS_TELL = telemetry._METERS_TELL = {quick}\n"
        "from opentelemetry import metrics, trace\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "assert not telemetry.enabled() and not telemetry.metered()\n"
        "trace.set_tracer_provider(TracerProvider()), metrics.set_meter_provider(MeterProvider())\n"
        "assert telemetry.enabled() and telemetry.metered()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_provider_of_the_environment() -> None:
    """One that the environment names counts as well."""
    code = "from blazen_peer import telemetry; assert telemetry.enabled()"
    env = {**os.environ, "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=env)
