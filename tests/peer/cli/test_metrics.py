"""Metrics of a served peer as a collector gets them: what ``docs/observability.md`` lists, and no payload."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from blazen_peer import BlazenError, PeerClient, telemetry

CANARY = "canary-5c1d"
WAIT_SECS = 20.0
APP = f"""\
import asyncio
from blazen_peer import Context, Event, StartEvent, StopEvent, step

@step("app::echo")
async def echo(event: StartEvent, ctx: Context) -> StopEvent:
    for number in range(3):
        ctx.emit(Event.dynamic("app::Part", {{"n": number}}))
    return StopEvent(result=event.data)

@step("app::boom")
def boom(event: StartEvent) -> StopEvent:
    raise LookupError("{CANARY}")

@step("app::wait")
async def wait(event: StartEvent) -> StopEvent:
    await asyncio.sleep(60)
    return StopEvent()
"""

Point = tuple[str, frozenset[tuple[str, str]]]


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps the newest value of each series, and everything that it was sent."""

    def __init__(self) -> None:
        self.points: dict[Point, float] = {}
        self.raw = b""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's name)
        """Take one batch of metrics."""
        self.raw += request.SerializeToString()
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in (*metric.sum.data_points, *metric.histogram.data_points):
                        labels = frozenset((item.key, item.value.string_value) for item in point.attributes)
                        self.points[metric.name, labels] = point.count if metric.HasField("histogram") else point.as_int
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Wait until the series *name* with *labels* (``__`` for a dot) has *value*."""
        point = (name, frozenset((key.replace("__", "."), text) for key, text in labels.items()))
        until = time.monotonic() + WAIT_SECS
        while self.points.get(point) != value:
            assert time.monotonic() < until, f"{point} is {self.points.get(point)}, not {value}; there is {self.points}"
            time.sleep(0.02)


@pytest.fixture
def collector() -> Iterator[tuple[Collector, dict[str, str]]]:
    """A collector on loopback, and the variables that send metrics there."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    variables = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    yield collector, variables
    server.stop(None).wait(5)


def test_metrics_of_a_peer(collector: tuple[Collector, dict[str, str]], start_peer: Callable[..., Any], tmp_path: Path) -> None:
    """Runs, steps, refusals, calls in progress and waiting, and streams' lag are counted; no payload is in any of it."""
    metrics, variables = collector
    (tmp_path / "app.py").write_text(APP)
    serve = ("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", "--listen", "127.0.0.1:0")
    limits = ("--lame-duck-secs", "0", "--max-runs", "1", "--max-queued-runs", "1")
    token = {"BLAZEN_PEER_TOKEN": "t" * 32}
    peer = start_peer(*serve, *limits, cwd=tmp_path, env={**variables, **token})
    with PeerClient.connect(peer.address, "node-a", token=token["BLAZEN_PEER_TOKEN"]) as client:
        for _ in range(3):
            client.run_remote_workflow_blocking("echo", ["app::echo"], f'"{CANARY}"', 10)
        with pytest.raises(BlazenError):
            client.run_remote_workflow_blocking("boom", ["app::boom"], "null", 10)
        with pytest.raises(BlazenError):
            client.run_remote_workflow_blocking("slow", ["app::wait"], "null", 0.2)
        with pytest.raises(BlazenError):
            client.run_remote_workflow_blocking("none", ["app::none"], "null", 10)
        with ThreadPoolExecutor(2) as threads:

            def begin(invocation_id: str) -> Future[Any]:
                names = ("slow", ["app::wait"], "null", 60)
                return threads.submit(client.run_remote_workflow_blocking, *names, invocation_id=invocation_id)

            metrics.wait_for("blazen.lanes.open", 1)
            running = begin("running")
            metrics.wait_for("blazen.runs.active", 1)
            queued = begin("queued")
            metrics.wait_for("blazen.runs.queued", 1)
            for invocation_id, future in (("queued", queued), ("running", running)):
                client.cancel_blocking(invocation_id)
                with pytest.raises(BlazenError):
                    future.result(20)
        with pytest.raises(BlazenError), PeerClient.connect(peer.address, "node-a", token="u" * 32) as stranger:
            stranger.run_remote_workflow_blocking("echo", ["app::echo"], "null", 10)
        metrics.wait_for("blazen.runs", 3, blazen__workflow__name="echo", blazen__outcome="ok")
        metrics.wait_for("blazen.run.duration", 3, blazen__workflow__name="echo", blazen__outcome="ok")
        metrics.wait_for("blazen.runs", 1, blazen__workflow__name="boom", blazen__outcome="failed")
        metrics.wait_for("blazen.runs", 1, blazen__workflow__name="slow", blazen__outcome="timeout")
        metrics.wait_for("blazen.runs", 1, blazen__workflow__name="slow", blazen__outcome="cancelled")
        metrics.wait_for("blazen.steps", 3, blazen__step__id="app::echo", blazen__outcome="ok")
        metrics.wait_for("blazen.step.duration", 1, blazen__step__id="app::boom", blazen__outcome="failed")
        metrics.wait_for("blazen.refusals", 1, rpc__method="InvokeSubWorkflow", blazen__refusal="UnknownStep")
        metrics.wait_for("blazen.refusals", 1, rpc__method="Lane", blazen__refusal="UNAUTHENTICATED")
        with grpc.insecure_channel(peer.address.removeprefix("http://")) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/a.b.C/Anything")(b"", timeout=10)
        metrics.wait_for("blazen.refusals", 1, rpc__method="other", blazen__refusal="UNAUTHENTICATED")
        metrics.wait_for("blazen.runs.active", 0)
        metrics.wait_for("blazen.runs.queued", 0)
    metrics.wait_for("blazen.lanes.open", 0)
    assert CANARY.encode() not in metrics.raw


CARRIED = [
    pytest.param("lane", ("--lane", "always"), "1", {}, id="lane"),
    pytest.param("never", (), "1", {}, id="never"),
    pytest.param(
        "sampled", ("--lane", "always"), "1", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, id="sampled"
    ),
    pytest.param("large", ("--lane", "always"), json.dumps("x" * 262_144), {}, id="large"),
]


@pytest.mark.parametrize(("way", "options", "document", "env"), CARRIED)
def test_how_calls_went(
    collector: tuple[Collector, dict[str, str]],
    start_peer: Callable[..., Any],
    tmp_path: Path,
    way: str,
    options: tuple[str, ...],
    document: str,
    env: dict[str, str],
) -> None:
    """A caller counts its calls by how they went, or why not by a lane."""
    metrics, variables = collector
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "input").write_text(document)
    peer = start_peer("blazen-peer", "serve", "--app", "app", "--node-id", "b", "--listen", "127.0.0.1:0", cwd=tmp_path)
    run = ("run", peer.address, "echo", "--step", "app::echo", "--input", "@input", *options)
    client = start_peer("blazen-peer", *run, cwd=tmp_path, env={**variables, **env})
    assert client.process.wait(20) == 0, client.log
    metrics.wait_for("blazen.calls.carried", 1, blazen__way=way)


def test_stream_lag(collector: tuple[Collector, dict[str, str]], start_peer: Callable[..., Any], tmp_path: Path) -> None:
    """Each event that a stream gives counts once in the lag."""
    metrics, variables = collector
    (tmp_path / "app.py").write_text(APP)
    serve = ("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", "--listen", "127.0.0.1:0")
    peer = start_peer(*serve, "--lame-duck-secs", "0", cwd=tmp_path, env=variables)
    run = ("run", peer.address, "echo", "--step", "app::echo", "--stream")
    client = start_peer("blazen-peer", *run, cwd=tmp_path)
    assert client.process.wait(20) == 0, client.log
    metrics.wait_for("blazen.stream.lag", 3)


def test_names_from_the_wire_are_bounded() -> None:
    """Callers who name ever new workflows make no more than 256 series: the rest is ``other``."""
    names = [telemetry._bounded("blazen.workflow.name", f"w{number}") for number in range(2 * telemetry.MAX_NAMES)]
    assert len(set(names)) <= telemetry.MAX_NAMES + 1
    assert names[-1] == telemetry.OTHER
    assert telemetry._bounded("blazen.workflow.name", names[0]) == names[0]


def test_other_exporters_are_refused(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that we do not have is refused, not passed over."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    outcome = command("serve", "--app", "app", "--node-id", "b")
    assert outcome.code == 2
    assert "OTEL_METRICS_EXPORTER=prometheus is not supported: use otlp or none" in outcome.err
