"""How long a call may take, when it is sent again, and what is stamped on it: the routes of both hops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blazen_mesh import limits
from blazen_peer.policy import METHODS

__all__ = [
    "INVOCATION_ID",
    "MAX_STREAM_SECS",
    "READING",
    "REPLICA",
    "REPLICAS",
    "STAMP",
    "STREAMING",
    "route_table",
    "routes",
]

STAMP = "x-blazen-data-class"
INVOCATION_ID = "blazen-invocation-id"
MAX_STREAM_SECS = "x-blazen-max-stream-secs"
"""On each answer that is a stream: how long it may last. A client opens its next lane before that."""
REPLICAS = "x-blazen-replicas"
"""Likewise: how many peers stand behind the sidecar, where there are several. A client opens as many lanes."""
REPLICA = "x-blazen-replica"
"""Which of several peers has answered. Sent along with a call, it leads there whatever the health checks say of that peer: what
a lane began goes on at the process that has it, though that one drains."""

STREAMING = tuple(
    method
    for method in METHODS
    if method.rpartition("/")[2] in ("StreamSubWorkflowEvents", "Attach", "DerefChunks", "Watch", "Lane")
)
"""Methods whose answers come one after another. Their clients go on where they stopped: by cursor, by id, or from the start."""

READING = tuple(
    method for method in METHODS if method.rpartition("/")[2] in ("DerefSessionRef", "Describe", "ListRefs", "Check")
)
"""Methods that change nothing, however often they run."""


def route_table(name: str, found: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Return ``envoy.config.route.v3.RouteConfiguration`` with *found* as its routes; *options* are the virtual host's."""
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": list(found), **options}]}


def routes(
    cluster: str,
    *,
    age_secs: int,
    egress: bool,
    replicas: int = 1,
    headers: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> list[dict[str, Any]]:
    """Return the routes of every gRPC method to *cluster*.

    Args:
        age_secs: The mesh's connection age, which a stream must not outlive.
        egress: Whether this is the caller's own sidecar: it is patient with one that is restarted, and sends again what changes
            nothing.
        replicas: How many peers the calls are spread over.
        headers: What else must match.
        options: Laid over each route.
    """
    pace = limits.PATIENT if egress else limits.QUICK
    safe, reading = {"retry_on": limits.SAFE_RETRIES, **pace}, {"retry_on": limits.READING_RETRIES, **pace}
    stream_secs = limits.stream_secs(age_secs)
    streaming = _route(_one_of(STREAMING), _action(cluster, safe, stream_secs=stream_secs))
    found = [streaming]
    if not egress:
        told = {MAX_STREAM_SECS: f"{stream_secs:g}", **({REPLICAS: str(replicas)} if replicas > 1 else {})}
        streaming["response_headers_to_add"] = [
            {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for name, value in told.items()
        ]
    if egress:
        found.append(_route(_one_of(READING), _action(cluster, reading)))
    found.append(_route({"prefix": "/"}, _action(cluster, safe)))
    for route in found:
        if headers:
            route["match"]["headers"] = list(headers)
        route.update(options)
    return found


def _one_of(methods: Sequence[str]) -> dict[str, Any]:
    # By their last names, which no two share. Envoy refuses longer expressions; a route for each would repeat all the rules.
    return {"safe_regex": {"regex": f"/[^/]+/({'|'.join(method.rpartition('/')[2] for method in methods)})"}}


def _route(match: dict[str, Any], action: dict[str, Any]) -> dict[str, Any]:
    return {"match": {**match, "grpc": {}}, "route": action}


def _action(cluster: str, retries: dict[str, Any], *, stream_secs: float = 0.0) -> dict[str, Any]:
    # 0: no limit of the sidecar's own; the caller's grpc-timeout holds exactly as it was sent. A stream has both.
    bound = limits.duration(stream_secs)
    return {
        "cluster": cluster,
        "timeout": "0s",
        "idle_timeout": "0s",
        "max_stream_duration": {"max_stream_duration": bound, "grpc_timeout_header_max": bound},
        # Of several hosts, the one that has this run; any of them for a call without an id. The ids of a lane's calls begin
        # with the lane's own, up to a tilde, so that what asks for one of its runs later finds the same host.
        "hash_policy": [
            {"header": {"header_name": INVOCATION_ID, "regex_rewrite": {"pattern": {"regex": "~.*"}, "substitution": ""}}}
        ],
        "retry_policy": {
            **retries,
            # To another host than the one that just failed, where there is another.
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": "3",
        },
    }
