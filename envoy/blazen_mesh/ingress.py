"""The way in: mutual TLS from other sidecars, the flows of the mesh, the caller's proven name, then the peer on loopback."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.access_log import call_log, connection_log
from blazen_mesh.http2 import PROOF_HEADER, connection_manager, credential_injector, filter_chain, listener, plain_cluster
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths

__all__ = ["ingress_listener", "peer_cluster", "rbac"]

PEER = "peer"


def ingress_listener(mesh: Mesh, node: str, paths: NodePaths, tracing: dict[str, Any] | None) -> dict[str, Any]:
    """Return *node*'s ingress.

    TLS takes the names of the mesh's nodes and no other; which of them may call is the flows' to say, so that a known node
    without a flow gets a clear PERMISSION_DENIED.
    """
    manager = connection_manager(
        "ingress",
        cluster=PEER,
        filters=[rbac(mesh, node), credential_injector(tls.sds_config(tls.PROOF, paths), PROOF_HEADER)],
        options={
            # The identity header is written anew from the certificate, whatever came.
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"uri": True},
            # Certificates and revocation are looked at when a connection opens: none may live for ever.
            "common_http_protocol_options": {"max_connection_duration": f"{mesh.connection_age_secs}s"},
        },
        keepalive=True,
        strip=(PROOF_HEADER,),
        access_log=call_log(node, "ingress"),
        tracing=tracing,
    )
    known = [mesh.identity(name) for name in sorted(mesh.peers)]
    chain = filter_chain(manager, tls.downstream(known, paths))
    found = listener("ingress", mesh.peer(node).ingress_bind, chain)
    return {**found, "access_log": connection_log(node)}


def rbac(mesh: Mesh, node: str) -> dict[str, Any]:
    """Return the HTTP filter that lets *node*'s callers in, each by its certificate's name, and nobody else.

    ``rules`` stands there even without a caller: empty rules deny all, absent ones would allow all.
    """
    policies = {
        f"{caller} -> {node}": {
            "permissions": [{"any": True}],
            "principals": [{"authenticated": {"principal_name": {"exact": str(mesh.identity(caller))}}}],
        }
        for caller in mesh.callers(node)
    }
    config = {
        "@type": f"{tls.ANY}envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "ALLOW", "policies": policies},
    }
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def peer_cluster(mesh: Mesh, node: str) -> dict[str, Any]:
    """Return the cluster of *node*'s own plain-text peer."""
    return plain_cluster(PEER, mesh.peer(node).listen, connect_timeout=limits.PEER_CONNECT_TIMEOUT)
