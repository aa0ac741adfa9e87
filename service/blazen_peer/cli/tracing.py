"""The exporter of spans, when the standard ``OTEL_*`` variables ask for one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["start_tracing"]

FLUSH_SECS: Final = 3.0  # a collector that is down must not hold the process
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start_tracing(node_id: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Install a tracer provider that exports by OTLP when *environ* asks for it; return what flushes and ends it.

    Asked for means ``OTEL_TRACES_EXPORTER=otlp``, or an OTLP endpoint with no other exporter named. ``OTEL_SDK_DISABLED=true``
    wins. The SDK itself reads the sampler, the batch sizes and the resource from the environment.

    Raises:
        ValidationError: An exporter or protocol that we do not have is asked for.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    asked = exporter == "otlp" or (exporter == "" and any(environ.get(name) for name in _ENDPOINTS))
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none" or not (asked or exporter):
        return lambda: None
    if not asked:
        raise ValidationError(f"OTEL_TRACES_EXPORTER={exporter} is not supported: use otlp or none")

    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"blazen.node.id": node_id}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = node_id
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(environ)))
    trace.set_tracer_provider(provider)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)

    def end() -> None:
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECS)

    return end


def _exporter(environ: Mapping[str, str]) -> SpanExporter:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    raise ValidationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: use grpc (a collector's port 4317)")
