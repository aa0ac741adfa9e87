"""The way in: mutual TLS from other sidecars, the flows of the mesh, the caller's proven name, then the peer on loopback."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.access_log import call_log, connection_log
from blazen_mesh.clusters import cluster
from blazen_mesh.http2 import (
    PROOF_HEADER,
    WHY_NOT_CONNECTED,
    connection_manager,
    credential_injector,
    filter_chain,
    listener,
    same_host,
)
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.rate_limit import limit_for, rate_limit
from blazen_mesh.rbac import deny_all, rules_for
from blazen_mesh.routes import REPLICA, STAMP, route_table, routes
from blazen_mesh.xds import RDS, file_source

__all__ = ["INGRESS", "ingress_listener", "ingress_routes", "peer_cluster"]

INGRESS = "ingress"
PEER = "peer"
_HEALTH = "/grpc.health.v1.Health/Check"


def ingress_listener(mesh: Mesh, node: str, paths: NodePaths, tracing: dict[str, Any] | None) -> dict[str, Any]:
    """Return *node*'s ingress.

    TLS takes the names of the mesh's nodes and no other; which of them may call is the flows' to say, so that a known node
    without a flow gets a clear PERMISSION_DENIED.
    """
    age_secs = mesh.connection_age_secs
    manager = connection_manager(
        INGRESS,
        # In a file of their own: Envoy looks at them for each call, so what a flow loses is denied on open connections too.
        routes={"rds": {"route_config_name": INGRESS, "config_source": file_source(paths.config(RDS))}},
        filters=[
            deny_all(),
            credential_injector(tls.sds_config(tls.PROOF, paths), PROOF_HEADER),
            rate_limit(),
            _health_check(),
            *([same_host(REPLICA)] if len(mesh.peer(node).listens) > 1 else []),
        ],
        options={
            # The identity header is written anew from the certificate, whatever came.
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"uri": True},
            # Certificates and revocation are looked at when a connection opens: none may live for ever.
            "common_http_protocol_options": {
                "max_headers_count": limits.MAX_HEADERS,
                "max_connection_duration": limits.duration(limits.connection_secs(age_secs)),
            },
            "drain_timeout": limits.duration(limits.drain_secs(age_secs)),
            "local_reply_config": WHY_NOT_CONNECTED,
        },
        keepalive=True,
        # What the remote egress stamped is kept, and believed as far as the flows let its node have the class.
        strip=(PROOF_HEADER,) if mesh.data else (PROOF_HEADER, STAMP),
        access_log=call_log(node, INGRESS),
        tracing=tracing,
    )
    known = [mesh.identity(name) for name in sorted(mesh.peers)]
    chain = filter_chain(manager, tls.downstream(known, paths))
    found = listener(INGRESS, mesh.peer(node).ingress_bind, chain)
    return {**found, "access_log": connection_log(node)}


def ingress_routes(mesh: Mesh, node: str) -> dict[str, Any]:
    """Return the routes to *node*'s peer: caller x data class x method, and a last one that lets nobody in.

    The stamp chooses the route, and the rules of that route demand that it came once: a match alone would take two.
    """
    age_secs, me, policy = mesh.connection_age_secs, mesh.identity(node), mesh.policy()
    flows = [flow for flow in policy.flows if flow.callee == me]
    found: list[dict[str, Any]] = []
    names: list[str | None] = [each.name for each in policy.classes]
    for data_class in names or [None]:
        callers = {flow.caller for flow in flows if data_class is None or data_class in flow.classes}
        if callers:
            stamp = None if data_class is None else (STAMP, data_class)
            rules = {"typed_per_filter_config": rules_for(sorted(callers, key=str), data_class or "calls", header=stamp)}
            headers = [] if data_class is None else [{"name": STAMP, "string_match": {"exact": data_class}}]
            replicas = len(mesh.peer(node).listens)
            found += routes(PEER, age_secs=age_secs, egress=False, replicas=replicas, headers=headers, **rules)
    found.append({"match": {"prefix": "/", "grpc": {}}, "route": {"cluster": PEER}})
    callers = {flow.caller for flow in flows}
    limit = limit_for(sorted(callers, key=str), mesh.calls_per_sec)
    return route_table(INGRESS, found, typed_per_filter_config=limit)


def peer_cluster(mesh: Mesh, node: str) -> dict[str, Any]:
    """Return the cluster of *node*'s own plain-text peer, or of its replicas."""
    return cluster(PEER, mesh.peer(node).listens, connect_timeout=limits.PEER_CONNECT_TIMEOUT)


def _health_check() -> dict[str, Any]:
    """Return the filter that answers health checks by itself once this sidecar is to be left alone (``/healthcheck/fail``)."""
    config = {
        "@type": f"{tls.ANY}envoy.extensions.filters.http.health_check.v3.HealthCheck",
        "pass_through_mode": True,
        "headers": [{"name": ":path", "string_match": {"exact": _HEALTH}}],
    }
    return {"name": "envoy.filters.http.health_check", "typed_config": config}
