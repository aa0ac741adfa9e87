"""Traps 18 and 21: logs that can be joined and hold no secret, and traces of what an application began alone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from blazen_mesh.address import TcpAddress

pytestmark = pytest.mark.envoy
WAIT_SECS = 30.0


async def test_trap_18_both_hops_log_the_call(mesh: Any) -> None:
    """Each sidecar writes one line for a call: who, what, how it ended by gRPC's word, and the request id that joins them."""
    about = [("x-request-id", "req-1"), ("blazen-workflow", "analyze-pipeline"), ("blazen-invocation-id", "run-1")]
    await mesh.call("intake", "analyst", metadata=about)
    (out,) = await mesh.wait_log("intake", log="call")
    (into,) = await mesh.wait_log("analyst", log="call")
    assert out["upstream_uri"] == "spiffe://mesh.test/peer/analyst"
    assert into["peer_uri"] == "spiffe://mesh.test/peer/intake"
    assert (out["upstream_tls_version"], into["tls_version"]) == ("TLSv1.3", "TLSv1.3")
    expected = {
        "caller": "spiffe://mesh.test/peer/intake",
        "workflow": "analyze-pipeline",
        "data_class": None,
        "invocation_id": "run-1",
        "method": "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow",
        "grpc_status": "OK",
        "request_id": "req-1",
    }
    for entry in (out, into):
        assert {name: entry[name] for name in expected} == expected


async def test_trap_18_a_failed_call_says_so(mesh: Any) -> None:
    """gRPC's failures come as HTTP 200: the log tells the gRPC status."""
    mesh.peers["analyst"].refuses = grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.call("intake", "analyst")
    for node in ("intake", "analyst"):
        (entry,) = await mesh.wait_log(node, log="call")
        assert entry["grpc_status"] == "NotFound"


async def test_health_checks_are_logged_when_they_fail(mesh: Any) -> None:
    """Other sidecars ask for health every few seconds: the ingress writes a line of it only when the answer is a failure."""
    stub = health_pb2_grpc.HealthStub(mesh.channel("intake", "analyst"))
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    await mesh.call("intake", "analyst")
    await mesh.wait_log("analyst", log="call")
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=10)
    entries = await mesh.wait_log("analyst", count=2, log="call")
    told = [(entry["method"].rpartition("/")[2], entry["grpc_status"]) for entry in entries]
    assert told == [("InvokeSubWorkflow", "OK"), ("Check", "NotFound")]


async def test_trap_18_without_the_setting_ids_part(start_mesh: Any, walk: Any) -> None:
    """Envoy makes a request id of its own at every hop unless told to keep what came."""

    def defaults(documents: dict[str, Any]) -> None:
        for item in walk(documents["lds.json"]):
            item.pop("preserve_external_request_id", None)

    mesh = await start_mesh(sidecars=[])
    await asyncio.gather(*(mesh.start_sidecar(node, alter=defaults) for node in ("intake", "analyst")))
    await mesh.call("intake", "analyst", metadata=[("x-request-id", "req-1")])
    (entry,) = await mesh.wait_log("analyst", log="call")
    assert entry["request_id"] != "req-1"


async def test_trap_18_the_class_is_in_the_log(classed: Any) -> None:
    """Both hops name the data class of a call, and a denied one's too."""
    await asyncio.gather(classed.start_sidecar("intake"), classed.start_sidecar("analyst"))
    await classed.call("intake", "analyst", channel=classed.channel("intake", "analyst", "internal"))
    for node in ("intake", "analyst"):
        (entry,) = await classed.wait_log(node, log="call")
        assert (entry["data_class"], entry["caller"]) == ("internal", "spiffe://mesh.test/peer/intake")


@pytest.mark.parametrize("denied", [pytest.param(False, id="passed-on"), pytest.param(True, id="denied")])
async def test_no_log_holds_a_secret(mesh: Any, put_in_place: Any, denied: bool) -> None:
    """A token stands in no log line, whichever way it went; nor do payloads, proofs, or what a peer writes in its answer."""
    canary = f"canary-{secrets.token_hex(8)}"
    mesh.peers["analyst"].answer_metadata = (("authorization", f"Bearer {canary}"), ("x-note", canary))
    if denied:
        await put_in_place(mesh, "analyst", mesh.definition.model_copy(update={"flows": ()}))
    about = [("authorization", f"Bearer {canary}"), ("x-note", canary), ("x-forwarded-client-cert", canary)]
    ended = await asyncio.gather(mesh.call("intake", "analyst", canary.encode(), metadata=about), return_exceptions=True)
    assert isinstance(ended[0], grpc.aio.AioRpcError) is denied
    for node in ("intake", "analyst"):
        await mesh.wait_log(node, log="call")
        text = "".join(mesh.lines[node])
        assert canary not in text
        assert mesh.proof_file("analyst").read_text() not in text


async def test_long_names_are_cut(mesh: Any) -> None:
    """What a caller chooses itself makes no line longer than it should be."""
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.channel("intake", "analyst").unary_unary(f"/{'x' * 4000}/y")(
            b"", metadata=[("blazen-workflow", "w" * 4000), ("x-request-id", "i" * 4000)], timeout=10
        )
    (entry,) = await mesh.wait_log("analyst", log="call")
    assert [len(entry[name]) for name in ("method", "workflow", "request_id")] == [256, 256, 256]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps every span with its resource's attributes."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, str], Any]] = []
        self._more = asyncio.Event()

    async def Export(self, request: Any, _: Any) -> Any:  # noqa: N802 - gRPC's name
        for group in request.resource_spans:
            resource = {item.key: item.value.string_value for item in group.resource.attributes}
            self.spans += [(resource, span) for scope in group.scope_spans for span in scope.spans]
        self._more.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def wait(self, count: int) -> None:
        """Wait until there are *count* spans."""
        async with asyncio.timeout(WAIT_SECS):
            while len(self.spans) < count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def collector(ports: Callable[[], int]) -> AsyncIterator[tuple[Collector, TcpAddress]]:
    """A collector that listens, and where."""
    found, address = Collector(), TcpAddress("127.0.0.1", ports())
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    server.add_insecure_port(str(address))
    await server.start()
    yield found, address
    await server.stop(0)


async def check_then_call(mesh: Any) -> tuple[str, str]:
    """Ask for health, call, and call as part of a trace; return the ids of that trace and of its first span."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    stub = health_pb2_grpc.HealthStub(mesh.channel("intake", "analyst"))
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    await mesh.call("intake", "analyst")
    await mesh.call("intake", "analyst", metadata=[("traceparent", f"00-{trace_id}-{span_id}-01")])
    return trace_id, span_id


async def test_trap_21_sidecars_join_the_callers_trace(start_mesh: Any, collector: Any) -> None:
    """A traced call gets four spans, each the parent of the next; a health check and an untraced call get none."""
    spans, address = collector
    mesh = await start_mesh(otlp=address)
    trace_id, parent = await check_then_call(mesh)
    await spans.wait(4)
    chain = []
    left = list(spans.spans)
    while found := next((pair for pair in left if pair[1].parent_span_id.hex() == parent), None):
        left.remove(found)
        resource, span = found
        assert span.trace_id.hex() == trace_id
        chain.append((resource["service.name"], resource["blazen.node.id"], span.kind))
        parent = span.span_id.hex()
    server_kind, client_kind = 2, 3
    assert chain == [
        ("intake-sidecar", "intake", server_kind),
        ("intake-sidecar", "intake", client_kind),
        ("analyst-sidecar", "analyst", server_kind),
        ("analyst-sidecar", "analyst", client_kind),
    ]
    assert left == []
    assert parent in mesh.peers["analyst"].calls[-1].values("traceparent")[0]


async def test_trap_21_sampling_everything_traces_health_checks(start_mesh: Any, collector: Any, walk: Any) -> None:
    """At a ratio of 100 % instead of 0, a health check gets spans too, and a call that nobody traces."""

    def everything(documents: dict[str, Any]) -> None:
        for item in walk(documents["lds.json"]):
            if "sampling_percentage" in item:
                item["sampling_percentage"]["numerator"] = 100

    spans, address = collector
    mesh = await start_mesh(sidecars=[])
    await asyncio.gather(*(mesh.start_sidecar(node, otlp=address, alter=everything) for node in ("intake", "analyst")))
    await check_then_call(mesh)
    await spans.wait(10)
    urls = [item.value.string_value for _, span in spans.spans for item in span.attributes if item.key == "http.url"]
    assert any(url.endswith("/grpc.health.v1.Health/Check") for url in urls)
