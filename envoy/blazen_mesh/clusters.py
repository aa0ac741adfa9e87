"""Where calls go on to: one HTTP/2 server, or several of which the healthy ones get the calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blazen_mesh import limits
from blazen_mesh.address import Address, TcpAddress
from blazen_mesh.http2 import http2_options
from blazen_mesh.tls import ANY

__all__ = ["cluster", "protocol_options"]


def cluster(
    name: str,
    addresses: Sequence[Address],
    *,
    connect_timeout: str,
    stamp: Sequence[tuple[str, str]] = (),
    watched: bool = True,
) -> dict[str, Any]:
    """Return the cluster of the HTTP/2 servers at *addresses*.

    A single address is taken as it is: with one host there is nothing to choose, and nothing to eject it for. Several, or a
    name, which may stand for several, are watched, and a call with an invocation id goes where that id went before.

    STRICT_DNS looks a name up again and again; LOGICAL_DNS would keep connections to where it once led.

    Args:
        stamp: Headers of the health checks, which come by no listener that would set them.
        watched: Whether several are watched: False for what is no peer, and has no health to tell.
    """
    by_name = any(isinstance(address, TcpAddress) and not address.is_ip for address in addresses)
    threshold = {
        "max_connections": limits.MAX_CONNECTIONS,
        "max_pending_requests": limits.MAX_STREAMS,
        "max_requests": limits.MAX_STREAMS,
        "max_retries": limits.MAX_RETRIES_IN_FLIGHT,
    }
    endpoints = [{"endpoint": {"address": address.to_envoy()}} for address in addresses]
    found = {
        "name": name,
        "type": "STRICT_DNS" if by_name else "STATIC",
        **({"dns_lookup_family": "V4_PREFERRED"} if by_name else {}),
        "connect_timeout": connect_timeout,
        "per_connection_buffer_limit_bytes": limits.BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [threshold]},
        # One locality, one priority: no call is ever sent to another place because this one is down.
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": protocol_options(keepalive=False),
    }
    return {**found, **_choice(stamp)} if watched and (by_name or len(addresses) > 1) else found


def protocol_options(*, keepalive: bool, age_secs: int | None = None) -> dict[str, Any]:
    """Return a cluster's HTTP/2 options. *age_secs*: the mesh's connection age, where it bounds these connections."""
    common: dict[str, Any] = {"max_headers_count": limits.MAX_HEADERS, "max_response_headers_kb": limits.MAX_HEADERS_KIB}
    if age_secs is not None:
        common["max_connection_duration"] = limits.duration(limits.connection_secs(age_secs))
    options: dict[str, Any] = {
        "@type": f"{ANY}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2_options(keepalive=keepalive)},
        "common_http_protocol_options": common,
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _choice(stamp: Sequence[tuple[str, str]]) -> dict[str, Any]:
    check: dict[str, Any] = {
        "timeout": f"{limits.HEALTH_TIMEOUT_SECS}s",
        "interval": f"{limits.HEALTH_INTERVAL_SECS}s",
        # Envoy's own is a minute: the first call after a quiet night would go to a host that died in it.
        "no_traffic_interval": f"{limits.HEALTH_INTERVAL_SECS}s",
        "unhealthy_interval": f"{limits.RECHECK_SECS}s",
        "unhealthy_threshold": limits.UNHEALTHY_AFTER,
        "healthy_threshold": 1,
        "grpc_health_check": {
            # Envoy's own is the cluster's name, whose blanks the other side refuses as a malformed header.
            "authority": "blazen",
            "initial_metadata": [{"header": {"key": key, "value": value}} for key, value in stamp],
        },
    }
    outlier = {
        "split_external_local_origin_errors": True,
        "consecutive_gateway_failure": limits.EJECT_AFTER,
        "enforcing_consecutive_gateway_failure": 100,
        "consecutive_local_origin_failure": limits.EJECT_AFTER,
        "enforcing_consecutive_local_origin_failure": 100,
        # A workflow's own INTERNAL says nothing of its host; rates need more hosts than there are.
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": f"{limits.EJECTION_INTERVAL_SECS}s",
        "base_ejection_time": f"{limits.EJECTION_SECS}s",
        "max_ejection_time": f"{limits.MAX_EJECTION_SECS}s",
        "max_ejection_percent": 100,
    }
    return {
        "lb_policy": "RING_HASH",
        "common_lb_config": {
            "healthy_panic_threshold": {"value": limits.PANIC_PERCENT},
            "update_merge_window": "0s",
            # A call that names its host is for a run that is there: a host that drains answers it, a dead one is found dead.
            "override_host_status": {"statuses": ["UNKNOWN", "HEALTHY", "DEGRADED", "UNHEALTHY", "DRAINING", "TIMEOUT"]},
        },
        "health_checks": [check],
        "outlier_detection": outlier,
    }
