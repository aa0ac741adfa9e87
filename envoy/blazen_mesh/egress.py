"""The way out: one loopback port per callee and data class, mutual TLS to that callee's sidecar and no other.

What no flow allows is not there: no port, no cluster.
"""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.access_log import call_log
from blazen_mesh.address import TcpAddress
from blazen_mesh.clusters import cluster, protocol_options
from blazen_mesh.http2 import (
    PROOF_HEADER,
    WHY_NOT_CONNECTED,
    connection_manager,
    credential_injector,
    filter_chain,
    listener,
)
from blazen_mesh.mesh import Mesh, Way
from blazen_mesh.paths import NodePaths
from blazen_mesh.routes import STAMP, route_table, routes
from blazen_peer.errors import ValidationError

__all__ = ["callee_cluster", "egress_listener"]

IDENTITY_HEADER = "x-forwarded-client-cert"


def egress_listener(mesh: Mesh, node: str, way: Way, paths: NodePaths, tracing: dict[str, Any] | None) -> dict[str, Any]:
    """Return the loopback listener of *way*, by which *node* reaches a callee.

    What only sidecars may say is taken off every call: the stamp, the proof, the identity.

    Raises:
        ValidationError: It is to inject the token, and *paths* name no token file.
    """
    name = way.name
    if way.inject_token and paths.token_file is None:
        raise ValidationError(f"peers.{node}.egress.{way.callee} injects the token: say where it is with --token-file")
    token = credential_injector(tls.sds_config(tls.TOKEN, paths), "authorization", "Bearer ") if way.inject_token else None
    manager = connection_manager(
        name,
        routes={"route_config": _routes(mesh, way)},
        filters=[token] if token else [],
        options={"forward_client_cert_details": "SANITIZE", "local_reply_config": WHY_NOT_CONNECTED},
        keepalive=False,
        strip=(PROOF_HEADER, IDENTITY_HEADER, STAMP),
        access_log=call_log(node, name, caller=str(mesh.identity(node)), data_class=way.data_class),
        tracing=tracing,
    )
    return listener(name, TcpAddress("127.0.0.1", way.port), filter_chain(manager))


def callee_cluster(mesh: Mesh, way: Way, paths: NodePaths) -> dict[str, Any]:
    """Return the cluster of the callee's sidecar as *way* leads to it."""
    address = mesh.peer(way.callee).sidecar
    stamp = [] if way.data_class is None else [(STAMP, way.data_class)]
    return {
        **cluster(way.name, [address], connect_timeout=limits.SIDECAR_CONNECT_TIMEOUT, stamp=stamp),
        "transport_socket": tls.upstream(mesh.identity(way.callee), paths),
        "typed_extension_protocol_options": protocol_options(keepalive=True, age_secs=mesh.connection_age_secs),
    }


def _routes(mesh: Mesh, way: Way) -> dict[str, Any]:
    """Return the routes of *way*: they stamp its data class on each call, and on each answer for the client to learn it."""
    stamp = [
        {"header": {"key": STAMP, "value": way.data_class}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
    ]
    stamps: dict[str, Any] = {"request_headers_to_add": stamp, "response_headers_to_add": stamp}
    if way.data_class is None:
        stamps = {"response_headers_to_remove": [STAMP]}
    return route_table(way.name, routes(way.name, age_secs=mesh.connection_age_secs, egress=True), **stamps)
