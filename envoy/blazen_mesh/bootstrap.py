"""One node's whole Envoy configuration, as data."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.address import TcpAddress, UnixAddress
from blazen_mesh.egress import callee_cluster, egress_listener
from blazen_mesh.ingress import ingress_listener, peer_cluster
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.tracing import FLUSH, collector_cluster, tracing

__all__ = ["bootstrap"]


def bootstrap(mesh: Mesh, node: str, paths: NodePaths, *, otlp: TcpAddress | None = None) -> dict[str, Any]:
    """Return ``envoy.config.bootstrap.v3.Bootstrap`` for *node*.

    Args:
        otlp: Where spans go, instead of the mesh file's own ``[telemetry]``; with neither, nothing is traced.

    Raises:
        MeshError: The mesh has no such node.
        ValidationError: A secret that the node needs has no path.
    """
    ways = mesh.ways(node)
    collector = otlp or (mesh.telemetry.otlp if mesh.telemetry else None)

    def traced(hop: str) -> dict[str, Any] | None:
        return tracing(node, hop) if collector else None

    listeners = [ingress_listener(mesh, node, paths, traced("ingress"))]
    listeners += [egress_listener(node, way, paths, traced(way.name)) for way in ways]
    clusters = [peer_cluster(mesh, node)]
    clusters += [callee_cluster(mesh, way, paths) for way in ways]
    runtime = {}
    if collector:
        clusters.append(collector_cluster(collector))
        runtime = {"layered_runtime": {"layers": [{"name": "static", "static_layer": FLUSH}]}}
    return {
        **runtime,
        # Secrets from files are refused without both.
        "node": {"id": node, "cluster": mesh.trust_domain},
        "admin": {"address": _admin_address(paths.admin_socket), "ignore_global_conn_limit": True},
        "overload_manager": _overload_manager(),
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _admin_address(path: str) -> dict[str, Any]:
    # Whoever may write to it can drain the sidecar and read its configuration.
    return {"pipe": {**UnixAddress(path).to_envoy()["pipe"], "mode": 0o600}}


def _overload_manager() -> dict[str, Any]:
    monitor = "envoy.resource_monitors.global_downstream_max_connections"
    config = {
        "@type": f"{tls.ANY}envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": 10 * limits.MAX_CONNECTIONS,
    }
    return {"resource_monitors": [{"name": monitor, "typed_config": config}]}
