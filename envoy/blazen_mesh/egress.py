"""The way out: one loopback port per callee, mutual TLS to that callee's sidecar and no other."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits, tls
from blazen_mesh.access_log import call_log
from blazen_mesh.address import TcpAddress
from blazen_mesh.http2 import (
    PROOF_HEADER,
    connection_manager,
    credential_injector,
    filter_chain,
    listener,
    plain_cluster,
    protocol_options,
)
from blazen_mesh.mesh import Mesh, Way
from blazen_mesh.paths import NodePaths
from blazen_peer.errors import ValidationError

__all__ = ["callee_cluster", "egress_listener"]

IDENTITY_HEADER = "x-forwarded-client-cert"
_WHY = "%LOCAL_REPLY_BODY%, transport failure reason: %UPSTREAM_TRANSPORT_FAILURE_REASON%"
_WHY_NOT_CONNECTED = {
    # Envoy leaves the reason of a failed handshake out of its reply; a caller tells a bad certificate from a dead host by it.
    "mappers": [
        {
            "filter": {"response_flag_filter": {"flags": ["UF"]}},
            "body_format_override": {"text_format_source": {"inline_string": _WHY}},
        }
    ]
}


def egress_listener(node: str, way: Way, paths: NodePaths, tracing: dict[str, Any] | None) -> dict[str, Any]:
    """Return the loopback listener of *node* that leads *way*.

    Raises:
        ValidationError: It is to inject the token, and *paths* name no token file.
    """
    if way.inject_token and paths.token_file is None:
        raise ValidationError(f"peers.{node}.egress.{way.callee} injects the token: say where it is with --token-file")
    token = credential_injector(tls.sds_config(tls.TOKEN, paths), "authorization", "Bearer ") if way.inject_token else None
    manager = connection_manager(
        way.name,
        cluster=way.name,
        filters=[token] if token else [],
        options={"forward_client_cert_details": "SANITIZE", "local_reply_config": _WHY_NOT_CONNECTED},
        keepalive=False,
        strip=(PROOF_HEADER, IDENTITY_HEADER),
        access_log=call_log(node, way.name),
        tracing=tracing,
    )
    return listener(way.name, TcpAddress("127.0.0.1", way.port), filter_chain(manager))


def callee_cluster(mesh: Mesh, way: Way, paths: NodePaths) -> dict[str, Any]:
    """Return the cluster of the sidecar that *way* leads to."""
    address = mesh.peer(way.callee).sidecar
    return {
        **plain_cluster(way.name, address, connect_timeout=limits.SIDECAR_CONNECT_TIMEOUT),
        "transport_socket": tls.upstream(mesh.identity(way.callee), paths),
        "typed_extension_protocol_options": protocol_options(keepalive=True, max_connection_secs=mesh.connection_age_secs),
    }
