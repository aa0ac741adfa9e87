"""HTTP/2 as both hops speak it: the connection manager, the route, the cluster."""

from __future__ import annotations

from typing import Any

from blazen_mesh import limits
from blazen_mesh.address import Address, TcpAddress
from blazen_mesh.tls import ANY

__all__ = [
    "PROOF_HEADER",
    "connection_manager",
    "credential_injector",
    "filter_chain",
    "listener",
    "plain_cluster",
    "protocol_options",
]

PROOF_HEADER = "x-blazen-sidecar-proof"


def connection_manager(
    stat_prefix: str,
    *,
    cluster: str,
    filters: list[dict[str, Any]],
    options: dict[str, Any],
    keepalive: bool,
    strip: tuple[str, ...],
    access_log: list[dict[str, Any]],
    tracing: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the network filter that passes every gRPC call to *cluster* by way of *filters*.

    Args:
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
        "stat_prefix": stat_prefix,
        "codec_type": "HTTP2",
        "http2_protocol_options": _http2(keepalive=keepalive),
        "early_header_mutation_extensions": [_strip(strip)],
        "http_filters": [*filters, router],
        "route_config": {"name": stat_prefix, "virtual_hosts": [_virtual_host(cluster)]},
        "access_log": access_log,
        "use_remote_address": True,
        "skip_xff_append": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "preserve_external_request_id": True,
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


def plain_cluster(name: str, address: Address, *, connect_timeout: str) -> dict[str, Any]:
    """Return the cluster of one HTTP/2 server at *address*. With one host there is nothing to eject it for.

    STRICT_DNS looks a name up again and again; LOGICAL_DNS would keep connections to where it once led.
    """
    by_name = isinstance(address, TcpAddress) and not address.is_ip
    threshold = {
        "max_connections": limits.MAX_CONNECTIONS,
        "max_pending_requests": limits.MAX_STREAMS,
        "max_requests": limits.MAX_STREAMS,
        "max_retries": limits.MAX_RETRIES_IN_FLIGHT,
    }
    return {
        "name": name,
        "type": "STRICT_DNS" if by_name else "STATIC",
        **({"dns_lookup_family": "V4_PREFERRED"} if by_name else {}),
        "connect_timeout": connect_timeout,
        "per_connection_buffer_limit_bytes": limits.BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [threshold]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address.to_envoy()}}]}],
        },
        "typed_extension_protocol_options": protocol_options(keepalive=False),
    }


def protocol_options(*, keepalive: bool, max_connection_secs: int | None = None) -> dict[str, Any]:
    """Return a cluster's HTTP/2 options."""
    options: dict[str, Any] = {
        "@type": f"{ANY}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": _http2(keepalive=keepalive)},
    }
    if max_connection_secs is not None:
        options["common_http_protocol_options"] = {"max_connection_duration": f"{max_connection_secs}s"}
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _http2(*, keepalive: bool) -> dict[str, Any]:
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


def _virtual_host(cluster: str) -> dict[str, Any]:
    route = {
        "cluster": cluster,
        # 0: no limit of the sidecar's own; the caller's grpc-timeout holds exactly as it was sent.
        "timeout": "0s",
        "idle_timeout": "0s",
        "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
        "retry_policy": {
            "retry_on": limits.SAFE_RETRIES,
            "num_retries": limits.RETRIES,
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        },
    }
    return {"name": cluster, "domains": ["*"], "routes": [{"match": {"prefix": "/", "grpc": {}}, "route": route}]}
