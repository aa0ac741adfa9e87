"""The exporters of spans and metrics, where the standard ``OTEL_*`` variables ask for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["start_telemetry"]

FLUSH_SECS: Final = 3.0  # a collector that is down must not hold the process
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start_telemetry(node_id: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Install what exports spans and metrics by OTLP, as far as *environ* asks for it; return what flushes and ends both.

    Spans: with ``OTEL_TRACES_EXPORTER=otlp``, or an OTLP endpoint and no other exporter named. Metrics: with
    ``OTEL_METRICS_EXPORTER=otlp``, or an OTLP endpoint for metrics; the general endpoint alone does not ask for them, since it
    often is a Jaeger, which takes none. ``OTEL_SDK_DISABLED=true`` wins. The SDK itself reads the sampler, the batch sizes, the
    intervals and the resource from the environment.

    Raises:
        ValidationError: An exporter or protocol that we do not have is asked for.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return lambda: None
    ends = (_start_telemetry(node_id, environ), _start_metrics(node_id, environ))
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)

    def end() -> None:
        ending = [threading.Thread(target=shut_down, daemon=True) for shut_down in ends if shut_down is not None]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join(FLUSH_SECS)

    return end


def _start_telemetry(node_id: str, environ: Mapping[str, str]) -> Callable[[], None] | None:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asked = exporter == "otlp" or (exporter == "" and any(environ.get(name) for name in _ENDPOINTS))
    if exporter == "none" or not (asked or exporter):
        return None
    if not asked:
        raise ValidationError(f"OTEL_TRACES_EXPORTER={exporter} is not supported: use otlp or none")

    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource(node_id, environ), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _start_metrics(node_id: str, environ: Mapping[str, str]) -> Callable[[], None] | None:
    exporter = environ.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    asked = exporter == "otlp" or (exporter == "" and environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"))
    if exporter == "none" or not (asked or exporter):
        return None
    if not asked:
        raise ValidationError(f"OTEL_METRICS_EXPORTER={exporter} is not supported: use otlp or none")
    _require_grpc(environ, "METRICS")

    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    provider = MeterProvider([reader], resource=_resource(node_id, environ), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _resource(node_id: str, environ: Mapping[str, str]) -> Resource:
    from opentelemetry.sdk.resources import Resource

    attributes = {"blazen.node.id": node_id}
    if region := environ.get("BLAZEN_REGION"):
        attributes["blazen.region"] = region
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = node_id
    return Resource.create(attributes)


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    _require_grpc(environ, "TRACES")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _require_grpc(environ: Mapping[str, str], signal: str) -> None:
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol != "grpc":
        raise ValidationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: use grpc (a collector's port 4317)")
