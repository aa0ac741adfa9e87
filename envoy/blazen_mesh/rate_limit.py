"""How many calls a second one caller may make: the ingress's local rate limit, a bucket for each certificate's name."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from blazen_mesh import limits
from blazen_mesh.tls import ANY
from blazen_peer.identity import PeerId

__all__ = ["RATE_LIMIT", "limit_for", "rate_limit"]

RATE_LIMIT = "envoy.filters.http.local_ratelimit"
_TYPE = f"{ANY}envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_CALLER = "caller"
_TEXT = "local_rate_limited"  # Envoy's own; a client compares it with the text in the details
_RESOURCE_EXHAUSTED = 8


def rate_limit() -> dict[str, Any]:
    """Return the HTTP filter; without what a route says it limits nothing."""
    return {"name": RATE_LIMIT, "typed_config": {"@type": _TYPE, "stat_prefix": "calls"}}


def limit_for(callers: Iterable[PeerId], calls_per_sec: int) -> dict[str, Any]:
    """Return what a route says: *calls_per_sec* for each of *callers*, in one burst or spread.

    A call over it gets RESOURCE_EXHAUSTED and, as the peer's own such answers have it, the time to wait.
    """
    bucket = {"max_tokens": calls_per_sec, "tokens_per_fill": calls_per_sec, "fill_interval": "1s"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    uri = {
        "@type": f"{ANY}envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor",
        "descriptor_key": _CALLER,
        "text": "connection.uri_san_peer_certificate",
    }
    config = {
        "@type": _TYPE,
        "stat_prefix": "calls",
        "filter_enabled": always,
        "filter_enforced": always,
        "token_bucket": bucket,
        "always_consume_default_token_bucket": False,
        "rate_limits": [{"actions": [{"extension": {"name": "envoy.rate_limit_descriptors.expr", "typed_config": uri}}]}],
        "descriptors": [{"entries": [{"key": _CALLER, "value": str(caller)}], "token_bucket": bucket} for caller in callers],
        "rate_limited_as_resource_exhausted": True,
        "response_headers_to_add": [{"header": {"key": "grpc-status-details-bin", "value": _details()}}],
    }
    return {RATE_LIMIT: config}


def _details() -> str:
    status = Status(code=_RESOURCE_EXHAUSTED, message=_TEXT)
    status.details.add().Pack(ErrorInfo(reason="OVERLOADED", domain="blazen.peer.v1"))
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=limits.OVERLOADED_RETRY_SECS)))
    return base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")
