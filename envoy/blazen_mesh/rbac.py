"""Who may call which methods: Envoy's RBAC filter, compiled from the flows.

The filter itself denies all. What it allows stands in the routes, one for each data class, which Envoy reads anew for every
call: a narrowed policy bites the next call of a connection that is open already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blazen_mesh.tls import ANY
from blazen_peer.identity import PeerId
from blazen_peer.policy import METHODS

__all__ = ["RBAC", "deny_all", "rules_for"]

RBAC = "envoy.filters.http.rbac"
_TYPE = f"{ANY}envoy.extensions.filters.http.rbac.v3."


def deny_all() -> dict[str, Any]:
    """Return the HTTP filter. ``rules`` stands there empty, which denies all; without it all would be allowed."""
    return {"name": RBAC, "typed_config": {"@type": f"{_TYPE}RBAC", "rules": _rules({})}}


def rules_for(callers: Iterable[PeerId], what: str) -> dict[str, Any]:
    """Return what a route says instead: *callers*, each by its certificate's name, may call the methods of a peer.

    Args:
        what: What the rule is called.
    """
    policy = {
        "permissions": [{"url_path": {"path": {"exact": method}}} for method in METHODS],
        "principals": [{"authenticated": {"principal_name": {"exact": str(caller)}}} for caller in callers],
    }
    return {RBAC: {"@type": f"{_TYPE}RBACPerRoute", "rbac": {"rules": _rules({what: policy})}}}


def _rules(policies: dict[str, Any]) -> dict[str, Any]:
    return {"action": "ALLOW", "policies": policies}
