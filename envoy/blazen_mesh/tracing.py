"""The sidecars' own spans, by OTLP over gRPC. They follow the caller's decision and begin no trace themselves."""

from __future__ import annotations

from typing import Any

from blazen_mesh.address import TcpAddress
from blazen_mesh.clusters import cluster
from blazen_mesh.tls import ANY

__all__ = ["FLUSH", "collector_cluster", "tracing"]

COLLECTOR = "otlp"
FLUSH = {"tracing.opentelemetry.flush_interval_ms": 1000}
"""Spans leave within a second; Envoy's own default is five."""

_OTEL = f"{ANY}envoy.extensions.tracers.opentelemetry."


def tracing(node: str, hop: str) -> dict[str, Any]:
    """Return the tracing block of one connection manager."""
    # At a ratio of 0 only what an application began is traced; health checks and strays are not.
    never = {"numerator": 0, "denominator": "HUNDRED"}
    root = {"@type": f"{_OTEL}samplers.v3.TraceIdRatioBasedSamplerConfig", "sampling_percentage": never}
    sampler = {
        "@type": f"{_OTEL}samplers.v3.ParentBasedSamplerConfig",
        "wrapped_sampler": {"name": "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", "typed_config": root},
    }
    detector = {
        "@type": f"{_OTEL}resource_detectors.v3.StaticConfigResourceDetectorConfig",
        "attributes": {"blazen.node.id": node},
    }
    detectors = [{"name": "envoy.tracers.opentelemetry.resource_detectors.static_config", "typed_config": detector}]
    tracer = {
        "@type": f"{ANY}envoy.config.trace.v3.OpenTelemetryConfig",
        "grpc_service": {"envoy_grpc": {"cluster_name": COLLECTOR}, "timeout": "1s"},
        "service_name": f"{node}-sidecar",
        "sampler": {"name": "envoy.tracers.opentelemetry.samplers.parent_based", "typed_config": sampler},
        "resource_detectors": detectors,
    }
    return {
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": tracer},
        "spawn_upstream_span": True,
        "custom_tags": [{"tag": "blazen.hop", "literal": {"value": hop}}],
    }


def collector_cluster(address: TcpAddress) -> dict[str, Any]:
    """Return the cluster of the OTLP receiver at *address*."""
    return cluster(COLLECTOR, [address], connect_timeout="1s", watched=False)
