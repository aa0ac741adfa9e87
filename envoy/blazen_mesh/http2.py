"""HTTP/2 as both hops speak it: the listener and its connection manager."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits
from blazen_mesh.address import Address
from blazen_mesh.tls import ANY

__all__ = [
    "PROOF_HEADER",
    "WHY_NOT_CONNECTED",
    "connection_manager",
    "credential_injector",
    "filter_chain",
    "http2_options",
    "listener",
    "same_host",
]

PROOF_HEADER = "x-blazen-sidecar-proof"
_WHY = "%LOCAL_REPLY_BODY%, transport failure reason: %UPSTREAM_TRANSPORT_FAILURE_REASON%"
WHY_NOT_CONNECTED = {
    # Envoy leaves the reason of a failed connection out of its reply. By it a caller tells a bad certificate from a dead host,
    # and a peer's process that is gone from one that cannot be reached.
    "mappers": [
        {
            "filter": {"response_flag_filter": {"flags": ["UF"]}},
            "body_format_override": {"text_format_source": {"inline_string": _WHY}},
        }
    ]
}


def connection_manager(
    name: str,
    *,
    routes: dict[str, Any],
    filters: list[dict[str, Any]],
    options: dict[str, Any],
    keepalive: bool,
    strip: tuple[str, ...],
    access_log: list[dict[str, Any]],
    tracing: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the network filter of the listener *name*, which passes gRPC calls by way of *filters*.

    Args:
        routes: Its ``route_config``, or the ``rds`` that it reads one by.
        options: What differs from hop to hop, laid over the rest.
        keepalive: HTTP/2 pings; for the hop between sidecars alone.
        strip: Headers that a caller may not set. Envoy's own ``x-envoy-`` ones, which steer retries and timeouts, go as well.
    """
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{ANY}envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": True},
    }
    manager: dict[str, Any] = {
        "@type": f"{ANY}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2",
        "http2_protocol_options": http2_options(keepalive=keepalive),
        "early_header_mutation_extensions": [_strip(strip)],
        "http_filters": [*filters, router],
        **routes,
        "access_log": access_log,
        "use_remote_address": True,
        "skip_xff_append": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "preserve_external_request_id": True,
        "max_request_headers_kb": limits.MAX_HEADERS_KIB,
        "common_http_protocol_options": {"max_headers_count": limits.MAX_HEADERS},
        "request_headers_timeout": limits.REQUEST_HEADERS_TIMEOUT,
        "stream_idle_timeout": "0s",  # the caller's deadline ends a call, nothing else
        **options,
    }
    if tracing is not None:
        manager["tracing"] = tracing
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def filter_chain(manager: dict[str, Any], transport_socket: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the chain that a listener hands its connections to; a handshake is bounded where there is one."""
    chain: dict[str, Any] = {"filters": [manager]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
        chain["transport_socket_connect_timeout"] = limits.HANDSHAKE_TIMEOUT
    return chain


def listener(name: str, address: Address, chain: dict[str, Any]) -> dict[str, Any]:
    """Return a listener that fails to start where another one has the port, instead of sharing it."""
    return {
        "name": name,
        "address": address.to_envoy(),
        "filter_chains": [chain],
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": limits.BUFFER_BYTES,
    }


def credential_injector(secret: dict[str, Any], header: str, prefix: str = "") -> dict[str, Any]:
    """Return the HTTP filter that sets *header* to *secret*, whatever the caller sent; without the secret calls are refused."""
    generic = {
        "@type": f"{ANY}envoy.extensions.http.injected_credentials.generic.v3.Generic",
        "credential": secret,
        "header": header,
        **({"header_value_prefix": prefix} if prefix else {}),
    }
    config = {
        "@type": f"{ANY}envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        "overwrite": True,
        "credential": {"name": "envoy.http.injected_credentials.generic", "typed_config": generic},
    }
    return {"name": f"inject {header}", "typed_config": config}


def same_host(header: str) -> dict[str, Any]:
    """Return the HTTP filter that tells in *header* which of a cluster's hosts has answered, and by which a later call that
    brings it goes to that host: healthy or not, as the cluster's ``override_host_status`` says. Any other value is as none."""
    state = {"@type": f"{ANY}envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState", "name": header}
    config = {
        "@type": f"{ANY}envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
        "session_state": {"name": "envoy.http.stateful_session.header", "typed_config": state},
    }
    return {"name": "envoy.filters.http.stateful_session", "typed_config": config}


def http2_options(*, keepalive: bool) -> dict[str, Any]:
    """Return HTTP/2's own numbers, the same for both ends of every hop. *keepalive*: pings, between sidecars alone."""
    return {
        "max_concurrent_streams": limits.MAX_STREAMS,
        "initial_stream_window_size": limits.STREAM_WINDOW_BYTES,
        "initial_connection_window_size": limits.CONNECTION_WINDOW_BYTES,
        **({"connection_keepalive": limits.KEEPALIVE} if keepalive else {}),
    }


def _strip(names: tuple[str, ...]) -> dict[str, Any]:
    mutations: list[dict[str, Any]] = [{"remove": name} for name in names]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}})
    config = {
        "@type": f"{ANY}envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": mutations,
    }
    return {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}
