"""One node's whole Envoy configuration, as data: what it starts from, and what it reads while it runs."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.address import TcpAddress, UnixAddress
from blazen_mesh.egress import callee_cluster, egress_listener
from blazen_mesh.ingress import INGRESS, ingress_listener, ingress_routes, peer_cluster
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.tracing import FLUSH, collector_cluster, tracing
from blazen_mesh.xds import CDS, LDS, file_source, xds_files

__all__ = ["bootstrap", "discovered"]


def bootstrap(mesh: Mesh, node: str, paths: NodePaths) -> dict[str, Any]:
    """Return ``envoy.config.bootstrap.v3.Bootstrap`` for *node*; no flow, peer or address of the mesh is in it."""
    return {
        # Secrets from files are refused without both.
        "node": {"id": node, "cluster": mesh.trust_domain},
        "admin": {"address": _admin_address(paths.admin_socket), "ignore_global_conn_limit": True},
        "overload_manager": _overload_manager(),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": FLUSH}]},
        "dynamic_resources": {
            "cds_config": file_source(paths.config(CDS)),
            "lds_config": file_source(paths.config(LDS)),
        },
    }


def discovered(mesh: Mesh, node: str, paths: NodePaths, *, otlp: TcpAddress | None = None) -> dict[str, str]:
    """Return the files with *node*'s listeners, clusters and routes.

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

    listeners = [ingress_listener(mesh, node, paths, traced(INGRESS))]
    listeners += [egress_listener(mesh, node, way, paths, traced(way.name)) for way in ways]
    clusters = [peer_cluster(mesh, node), *(callee_cluster(mesh, way, paths) for way in ways)]
    if collector:
        clusters.append(collector_cluster(collector))
    return xds_files(listeners, clusters, ingress_routes(mesh, node))


def _admin_address(path: str) -> dict[str, Any]:
    # Whoever may write to it can drain the sidecar and read its configuration.
    return {"pipe": {**UnixAddress(path).to_envoy()["pipe"], "mode": 0o600}}


def _overload_manager() -> dict[str, Any]:
    kinds = f"{tls.ANY}envoy.extensions.resource_monitors."
    connections = {
        "@type": f"{kinds}downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": 10 * limits.MAX_CONNECTIONS,
    }
    heap = {"@type": f"{kinds}fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": limits.HEAP_BYTES}
    actions = {
        "shrink_heap": limits.SHRINK_HEAP,
        "stop_accepting_requests": limits.REFUSE_CALLS,
        "stop_accepting_connections": limits.REFUSE_CONNECTIONS,
    }
    monitor = "envoy.resource_monitors.fixed_heap"
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections},
            {"name": monitor, "typed_config": heap},
        ],
        "actions": [
            {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": monitor, "threshold": {"value": at}}]}
            for name, at in actions.items()
        ],
    }
