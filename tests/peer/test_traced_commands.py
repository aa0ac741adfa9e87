"""Traces of the commands as a collector gets them: the spans and attributes of ``docs/observability.md``, and no payload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from blazen_peer.cli.trace_tree import spans_of

PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
CANARY = "canary-7f3a"
CALL = "blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
APP = f"""\
from blazen_peer import Context, Retry, StartEvent, StopEvent, step

@step("app::echo", retry=Retry(delay_secs=0))
async def echo(event: StartEvent, ctx: Context) -> StopEvent:
    if ctx.attempt == 1:
        raise LookupError("{CANARY}")
    return StopEvent(result=event.data)

@step("app::boom")
def boom(event: StartEvent) -> StopEvent:
    raise LookupError("{CANARY}")
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's name)
        """Take one batch of spans."""
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Any]:
        """Return the spans of one trace, as the protocol has them."""
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        ]


@pytest.fixture
def collector(free_port: int) -> Iterator[tuple[Collector, dict[str, str]]]:
    """A collector on loopback, and the variables that send traces there."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{free_port}")
    server.start()
    yield collector, {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    server.stop(None).wait(5)


def documented() -> list[tuple[str, set[str]]]:
    """Return each row of the page's table: the span's name, and its attributes."""
    table = PAGE.split("| span | where | attributes |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \| .+? \| (.+) \|$", table, re.MULTILINE)
    return [(name, set(re.findall(r"`([^`]+)`", attributes))) for name, attributes in rows]


def test_spans_are_as_documented(
    collector: tuple[Collector, dict[str, str]],
    start_peer: Callable[..., Any],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """One trace over both processes, whose id the command prints; each span has the attributes of its row, and none else."""
    received, variables = collector
    (tmp_path / "app.py").write_text(APP)
    listen = ("--listen", "127.0.0.1:0", "--lame-duck-secs", "0")
    peer = start_peer("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", *listen, cwd=tmp_path, env=variables)
    given = ("--step", "app::echo", "--input", f'"{CANARY}"', "--json")
    caller = start_peer("blazen-peer", "run", peer.address, "work", *given, env=variables)
    assert caller.end() == 0, caller.log
    said = json.loads(caller.log)
    assert said["result"] == CANARY
    wait_until(lambda: len(received.spans(said["trace_id"])) >= 5)

    spans = sorted(received.spans(said["trace_id"]), key=lambda span: span.start_time_unix_nano)
    names = ["blazen-peer run", CALL, CALL, "blazen.run work", "blazen.step app::echo"]
    assert [span.name for span in spans] == names
    assert [span.parent_span_id for span in spans] == [b"", *(span.span_id for span in spans[:-1])]
    rows = documented()
    assert [name for name, _ in rows] == [
        "`blazen-peer run`",
        f"`{CALL}`",
        "the same",
        "`blazen.run WORKFLOW`",
        "`blazen.step STEP`",
    ]
    in_a_mesh = {"blazen.data.class"}
    assert [{item.key for item in span.attributes} for span in spans] == [attributes - in_a_mesh for _, attributes in rows]
    services = {span.service for request in received.requests for span in spans_of(request)}
    assert services == {"cli", "node-b"}


def test_failure_is_a_type_and_no_message(
    collector: tuple[Collector, dict[str, str]],
    start_peer: Callable[..., Any],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Spans of a failed run say the error's type; its message and the input are in no span and not in the peer's log."""
    received, variables = collector
    (tmp_path / "app.py").write_text(APP)
    listen = ("--listen", "127.0.0.1:0", "--lame-duck-secs", "0")
    peer = start_peer("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", *listen, cwd=tmp_path, env=variables)
    given = ("--step", "app::boom", "--input", f'"{CANARY}"')
    caller = start_peer("blazen-peer", "run", peer.address, "work", *given, env=variables)
    assert caller.end() == 4
    assert CANARY in caller.log

    def everything() -> list[Any]:
        return [span for request in list(received.requests) for span in spans_of(request)]

    wait_until(lambda: {span.service for span in everything()} == {"cli", "node-b"} and len(everything()) >= 5)
    texts = "".join(str(request) for request in received.requests)
    assert "LookupError" in texts
    assert CANARY not in texts
    assert CANARY not in peer.log
