"""The one metric of a sidecar that Envoy does not know by itself: how long the leaf that it is given still lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509

from blazen_mesh.identity_files import CERTIFICATE
from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["METRIC", "export_expiry"]

METRIC: Final = "blazen.certificate.expiry"
FLUSH_SECS: Final = 2.0  # a collector that is down must not hold the process


def export_expiry(node: str, identity_dir: Path, environ: Mapping[str, str]) -> Callable[[], None]:
    """Export :data:`METRIC` by OTLP where *environ* asks for metrics; return what flushes and ends that.

    Asked for means ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT``, or ``OTEL_METRICS_EXPORTER=otlp``, as for peers. Each value is read
    anew from ``<identity_dir>/current``, in seconds, below 0 after the end. Nothing is said while there is no leaf.

    Raises:
        ValidationError: An exporter or protocol that we do not have is asked for.
    """
    exporter = environ.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    asked = exporter == "otlp" or (not exporter and environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"))
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or exporter == "none" or not (asked or exporter):
        return lambda: None
    if not asked:
        raise ValidationError(f"OTEL_METRICS_EXPORTER={exporter} is not supported: use otlp or none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol != "grpc":
        raise ValidationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: use grpc (a collector's port 4317)")

    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        left_secs = _left_secs(identity_dir)
        return [] if left_secs is None else [Observation(left_secs, {"blazen.node.id": node})]

    resource = Resource.create({"service.name": f"{node}-sidecar", "blazen.node.id": node})
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meter = provider.get_meter("blazen_mesh")
    meter.create_observable_gauge(METRIC, [observe], unit="s", description="How long the sidecar's leaf still lives.")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the log is one JSON object a line, and this is no news

    def end() -> None:
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_SECS)

    return end


def _left_secs(identity_dir: Path) -> float | None:
    try:
        leaf = x509.load_pem_x509_certificate((identity_dir / "current" / CERTIFICATE).read_bytes())
    except (OSError, ValueError):
        return None
    return leaf.not_valid_after_utc.timestamp() - time.time()
