"""The trace of a call over both peers and both sidecars, as an OTLP collector receives it; and what it never carries.

One way alone: calls whose trace is sampled use no lane.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from blazen_mesh.address import TcpAddress
from blazen_peer import PeerClient, PeerError, WorkflowError
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest, PostcardResponse
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.envoy
CALL = "blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
EXPORT_SECS = 15.0  # a sidecar sends its spans in fives, or after 5 s


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every export as it came."""

    def __init__(self) -> None:
        self.exports: list[Any] = []
        self._arrived = asyncio.Condition()

    async def Export(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC's name
        async with self._arrived:
            self.exports.append(request)
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[tuple[str, Any]]:
        """Return every span so far with its service's name."""
        found = []
        for export in self.exports:
            for group in export.resource_spans:
                service = next(item.value.string_value for item in group.resource.attributes if item.key == "service.name")
                found += [(service, span) for scope in group.scope_spans for span in scope.spans]
        return found

    def traces(self) -> dict[str, list[tuple[str, Any]]]:
        """Return the spans so far by trace id."""
        found: dict[str, list[tuple[str, Any]]] = {}
        for service, span in self.spans():
            found.setdefault(span.trace_id.hex(), []).append((service, span))
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has come fulfils *condition*."""
        async with asyncio.timeout(EXPORT_SECS), self._arrived:
            await self._arrived.wait_for(condition)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """An OTLP receiver; ``address`` is where it listens."""
    receiver, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = TcpAddress("127.0.0.1", server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    yield receiver
    await server.stop(0)


def exporting(collector: Collector) -> dict[str, str]:
    """Return the variables that make a peer export to *collector*."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", "OTEL_BSP_SCHEDULE_DELAY": "100"}


class Traced:
    """Two peer processes and two sidecars that all export; calls go to intake's own port, as a local program's do."""

    def __init__(self, remote: Any, intake: Any, analyst: Any, client: PeerClient) -> None:
        self.remote, self.intake, self.analyst, self._client = remote, intake, analyst, client

    async def call(self, step_ids: list[str], document: Any) -> Any:
        """Run ``demo::parent`` on intake, which runs *step_ids* on analyst."""
        text = json.dumps({"step_ids": step_ids, "document": document})
        return (await self._client.run_remote_workflow("parent", ["demo::parent"], text, 30)).result


@pytest.fixture
async def traced(collector: Collector, start_remote: Any, start_process: Any) -> Traced:
    """Everything, with every sender of spans on."""
    remote = await start_remote(serve=False, otlp=collector.address)
    env = {**exporting(collector), "EGRESS": remote.egress}
    intake, analyst = await asyncio.gather(
        start_process(remote.mesh, "intake", "--log-level", "debug", env=env),
        start_process(remote.mesh, "analyst", "--require-identity", "--log-level", "debug", env=env),
    )
    client = await remote.connect("tester", address=f"http://{remote.mesh.listen('intake')}")
    return Traced(remote, intake, analyst, client)


async def test_one_trace_over_everything(traced: Traced, collector: Collector) -> None:
    """A call is one trace with an unbroken chain of parents over both peers and both sidecars; each call has its own, and
    health checks have none."""
    calls = 3  # by then each sidecar has five spans and sends them
    for number in range(calls):
        assert await traced.call(["demo::first", "demo::second"], number) == number

    def whole() -> list[list[tuple[str, Any]]]:
        return [trace for trace in collector.traces().values() if len(trace) == len(EXPECTED)]

    await collector.until(lambda: len(whole()) >= 2 and len(collector.traces()) == calls)
    for trace in whole():
        by_parent: dict[bytes, list[tuple[str, Any]]] = {}
        for service, span in trace:
            by_parent.setdefault(span.parent_span_id, []).append((service, span))
        chain, parent = [], b""
        while found := sorted(by_parent.pop(parent, []), key=lambda pair: pair[1].start_time_unix_nano):
            chain += [(service, span.name, span.kind) for service, span in found]
            parent = found[0][1].span_id
        assert not by_parent
        assert [(service, kind) for service, _, kind in chain] == [(service, kind) for service, _, kind in EXPECTED]
        ours = [name for service, name, _ in chain if not service.endswith("-sidecar")]
        assert ours == [name for _, name, _ in EXPECTED if name is not None]
        assert {span.status.code for _, span in trace} <= {Status.STATUS_CODE_UNSET, Status.STATUS_CODE_OK}
    roots = {(service, span.name) for service, span in collector.spans() if not span.parent_span_id}
    assert roots == {("intake", CALL)}


EXPECTED = [
    ("intake", CALL, Span.SPAN_KIND_SERVER),
    ("intake", "blazen.run parent", Span.SPAN_KIND_INTERNAL),
    ("intake", "blazen.step demo::parent", Span.SPAN_KIND_INTERNAL),
    ("intake", CALL, Span.SPAN_KIND_CLIENT),
    ("intake-sidecar", None, Span.SPAN_KIND_SERVER),
    ("intake-sidecar", None, Span.SPAN_KIND_CLIENT),
    ("analyst-sidecar", None, Span.SPAN_KIND_SERVER),
    ("analyst-sidecar", None, Span.SPAN_KIND_CLIENT),
    ("analyst", CALL, Span.SPAN_KIND_SERVER),
    ("analyst", "blazen.run child", Span.SPAN_KIND_INTERNAL),
    ("analyst", "blazen.step demo::first", Span.SPAN_KIND_INTERNAL),
    ("analyst", "blazen.step demo::second", Span.SPAN_KIND_INTERNAL),
]


async def test_canary(traced: Traced, collector: Collector) -> None:
    """What is in an input, a result or an exception's text is in no span, no access log and no peer's log; nor is a token."""
    canary = f"canary{secrets.token_hex(12)}"
    remote, jwt = traced.remote, traced.remote.jwt()
    assert await traced.call(["demo::first", "demo::second"], canary) == canary
    failing = {
        "demo::fail": True,
        "demo::fail_in_thread": True,
        "demo::unwritable": False,  # a result that cannot be written
        "demo::strict": False,  # an input that does not fit
    }
    calls = 1 + len(failing)
    for step_id, told in failing.items():
        with pytest.raises(WorkflowError) as caught:
            await traced.call([step_id], canary)
        assert (canary in str(caught.value)) >= told  # it did reach the caller
    refused = (
        SubWorkflowRequest("w", ("demo::first",), f'{{"{canary}'.encode(), 10).encode(),
        SubWorkflowRequest("w", ("demo::first",), f'["{canary}"] {canary}'.encode(), 10).encode(),
        SubWorkflowRequest("w", ("demo::first",), f'"{canary}"'.encode(), 10).encode()[:-2],
        b"\x01\x7f" + canary.encode(),
        b"\x02" + canary.encode(),
    )
    for payload in refused:
        request = PostcardRequest(postcard_payload=payload).SerializeToString()
        traceparent = ("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01")
        with pytest.raises(PeerError):
            await remote.invoke(request, [remote.bearer(jwt), traceparent])

    total = calls + len(refused)

    def failed() -> list[str]:
        return [span.name for _, span in collector.spans() if span.status.code == Status.STATUS_CODE_ERROR]

    def whole() -> bool:
        found = [sum(pair[0].endswith("-sidecar") for pair in trace) for trace in collector.traces().values()]
        ends = Counter((service, span.name) for service, span in collector.spans())  # a run's span comes after its steps'
        runs = ends["intake", "blazen.run parent"], ends["analyst", "blazen.run child"]
        served = ends["intake", CALL], ends["analyst", CALL]  # intake's: both what it serves and what it calls
        return found == [4] * total and runs == (calls, calls) and served == (2 * calls, total)

    await collector.until(whole)
    await remote.mesh.wait_log("analyst", count=total, log="call", method=f"/{CALL}")
    assert failed().count("blazen.run parent") == failed().count("blazen.run child") == len(failing)
    assert "blazen.step demo::fail" in failed()
    sent = b"".join(export.SerializeToString() for export in collector.exports)
    logs = "\n".join([*traced.intake.lines, *traced.analyst.lines, *remote.mesh.lines["intake"], *remote.mesh.lines["analyst"]])
    for secret in (canary, remote.token, jwt, "eyJ", remote.mesh.proof_file("analyst").read_text()):
        assert secret.encode() not in sent
        assert secret not in logs
    assert b"demo::fail_in_thread" in sent  # the search would have found text


@pytest.mark.parametrize(
    ("more", "on"),
    [
        pytest.param(None, False, id="not-asked-for"),
        pytest.param({"OTEL_SDK_DISABLED": "true"}, False, id="disabled"),
        pytest.param({}, True, id="on"),
    ],
)
async def test_exporter_runs_only_when_asked_for(
    collector: Collector, start_remote: Any, start_process: Any, more: Mapping[str, str] | None, on: bool
) -> None:
    """Off means no exporter, no thread of one, not even the SDK's tracing in memory; on means all of them."""
    remote = await start_remote(serve=False)
    env = {} if more is None else {**exporting(collector), **more}
    await start_process(remote.mesh, "analyst", "--require-identity", env=env)
    client = await remote.connect()
    found = (await client.run_remote_workflow("tracing", ["demo::tracing"], "null")).result
    assert any("otel" in name.lower() for name in found["threads"]) is on, found["threads"]
    assert bool(found["modules"]) is on, found["modules"]


async def test_untraced_call(start_mesh: Any) -> None:
    """With tracing off no trace header reaches the peer, and the call's own metadata does."""
    mesh = await start_mesh()

    async def answer(_: bytes) -> bytes:
        return PostcardResponse(postcard_payload=SubWorkflowResponse(result_json=b"null").encode()).SerializeToString()

    mesh.peers["analyst"].answer = answer
    async with await PeerClient.connect_async(f"http://{mesh.egress('intake', 'analyst')}", "intake") as client:
        await client.run_remote_workflow("w", ["s"], "null")
    (call,) = mesh.peers["analyst"].calls
    names = {name for name, _ in call.metadata}
    assert not names & {"traceparent", "tracestate", "baggage", "b3"}
    assert {"blazen-invocation-id", "blazen-client-node-id"} <= names
