"""The sidecar's metric: how long its leaf still lives, as a collector gets it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from blazen_mesh.expiry_metric import METRIC, export_expiry
from blazen_peer.errors import ValidationError

WAIT_SECS = 30.0


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what the metric said of each service."""

    def __init__(self) -> None:
        self.said: dict[str, float] = {}
        self.more = asyncio.Event()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's name)
        """Take one batch of metrics."""
        for resource in request.resource_metrics:
            service = {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"]
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                assert (metric.name, metric.unit) == (METRIC, "s")
                [point] = metric.gauge.data_points
                self.said[service] = point.as_double
        self.more.set()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    async def until(self, service: str, least_secs: float, most_secs: float) -> None:
        """Wait until *service* says a value within the bounds."""
        async with asyncio.timeout(WAIT_SECS):
            while not least_secs < self.said.get(service, float("nan")) <= most_secs:
                self.more.clear()
                await self.more.wait()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector on loopback, with the variables that send metrics there set."""
    collector, server = Collector(), grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    yield collector
    await server.stop(None)


@pytest.mark.envoy
async def test_a_supervised_sidecar_says_it(collector: Collector, start_mesh: Any, certificates: Any) -> None:
    """The time left of the leaf that the sidecar is given is exported again and again; of a new leaf, the new one's."""
    mesh = await start_mesh(flows=[("intake", "analyst")], sidecars=())
    certificates.issue("analyst", lifetime=timedelta(hours=2))
    await mesh.supervise("analyst")
    await collector.until("analyst-sidecar", 7000, 7200)
    certificates.issue("analyst", lifetime=timedelta(hours=1))
    await collector.until("analyst-sidecar", 3400, 3600)


def test_nobody_asks(tmp_path: Path) -> None:
    """Without the variables nothing is installed, and ending it does nothing."""
    began = time.monotonic()
    export_expiry("a", tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})()
    export_expiry("a", tmp_path, {"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x:1"})()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER=prometheus is not supported: use otlp or none"),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf is not supported: use grpc",
        ),
    ],
    ids=["exporter", "protocol"],
)
def test_what_we_do_not_have_is_refused(environ: dict[str, str], text: str, tmp_path: Path) -> None:
    """An exporter or protocol that we do not have is refused, not passed over."""
    with pytest.raises(ValidationError, match=text):
        export_expiry("a", tmp_path, environ)
