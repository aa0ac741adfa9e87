"""What a sidecar writes about calls and connections: one JSON object a line, on standard output.

Names, sizes, durations and reasons. Never a payload, and of the headers only ``:path``, the ids of the request and the
invocation, the workflow's name, the data class and the gRPC status.
"""

from __future__ import annotations

from typing import Any

from blazen_mesh.tls import ANY

__all__ = ["call_log", "connection_log"]

LONGEST = 256
"""Characters of what a caller chose itself: a log line stays one line of bounded length."""

_EVERYWHERE = {
    "time": "%START_TIME%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "flags": "%RESPONSE_FLAGS%",
    "from_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "connection_id": "%CONNECTION_ID%",
    "tls_version": "%DOWNSTREAM_TLS_VERSION%",
    "peer_uri": "%DOWNSTREAM_PEER_URI_SAN%",
    "local_uri": "%DOWNSTREAM_LOCAL_URI_SAN%",
    "peer_serial": "%DOWNSTREAM_PEER_SERIAL%",
}


def call_log(
    node: str, hop: str, *, caller: str = "%DOWNSTREAM_PEER_URI_SAN%", data_class: str | None = None
) -> list[dict[str, Any]]:
    """Return the log of calls at *hop* (``egress analyst``, ``ingress``) of *node*.

    Health checks that pass the ingress's filter for them are logged when they fail: other sidecars make one every few seconds.

    Args:
        caller: Who calls: the certificate's name, where it is not the node itself.
        data_class: What this hop stamps; the call's own stamp where it stamps none.
    """
    failed = {"grpc_status_filter": {"statuses": ["OK"], "exclude": True}}
    worth_a_line = {"or_filter": {"filters": [{"not_health_check_filter": {}}, failed]}}
    return _stdout(
        {
            **_EVERYWHERE,
            "log": "call",
            "node": node,
            "hop": hop,
            "caller": caller,
            "data_class": data_class or "%REQ(X-BLAZEN-DATA-CLASS):64%",
            "workflow": f"%REQ(BLAZEN-WORKFLOW):{LONGEST}%",  # as the client says; the server holds it against the payload
            "invocation_id": f"%REQ(BLAZEN-INVOCATION-ID):{LONGEST}%",
            "method": f"%REQ(:PATH):{LONGEST}%",
            "grpc_status": "%GRPC_STATUS%",  # the HTTP status of a gRPC call is always 200
            "details": "%RESPONSE_CODE_DETAILS%",
            "request_id": f"%REQ(X-REQUEST-ID):{LONGEST}%",  # the caller's own, where it sends one
            "trace_id": "%TRACE_ID%",
            "upstream": "%UPSTREAM_HOST%",
            "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",  # as the other end logs where a connection came from
            "upstream_attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
            "upstream_tls_version": "%UPSTREAM_TLS_VERSION%",
            "upstream_uri": "%UPSTREAM_PEER_URI_SAN%",
        },
        worth_a_line,
    )


def connection_log(node: str) -> list[dict[str, Any]]:
    """Return the log of connections to *node*'s ingress: the only place that tells why a handshake was refused."""
    return _stdout(
        {
            **_EVERYWHERE,
            "log": "connection",
            "node": node,
            "hop": "ingress",
            "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
            "closed_by": "%DOWNSTREAM_LOCAL_CLOSE_REASON%",
        }
    )


def _stdout(fields: dict[str, str], only: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    config = {
        "@type": f"{ANY}envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        "log_format": {"json_format": fields},
    }
    return [{"name": "envoy.access_loggers.stdout", **({"filter": only} if only else {}), "typed_config": config}]
