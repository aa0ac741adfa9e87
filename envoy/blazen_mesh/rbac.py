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


def rules_for(callers: Iterable[PeerId], what: str, *, header: tuple[str, str] | None = None) -> dict[str, Any]:
    """Return what a route says instead: *callers*, each by its certificate's name, may call the methods of a peer.

    Args:
        what: What the rule is called.
        header: A name and the value that must come, once and alone.
    """
    policy: dict[str, Any] = {
        "permissions": [{"url_path": {"path": {"exact": method}}} for method in METHODS],
        "principals": [{"authenticated": {"principal_name": {"exact": str(caller)}}} for caller in callers],
    }
    if header is not None:
        policy["condition"] = _exactly(*header)
    return {RBAC: {"@type": f"{_TYPE}RBACPerRoute", "rbac": {"rules": _rules({what: policy})}}}


def _exactly(name: str, value: str) -> dict[str, Any]:
    """Return ``request.headers[name] == value`` as ``google.api.expr.v1alpha1.Expr``.

    Envoy's header matchers (1.40, of routes and of RBAC) look at each value of a header that came twice, and take it when
    one of them fits. An expression sees them joined by a comma, which no name holds.
    """
    headers = {"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": "headers"}}
    came = {"call_expr": {"function": "_[_]", "args": [headers, {"const_expr": {"string_value": name}}]}}
    return {"call_expr": {"function": "_==_", "args": [came, {"const_expr": {"string_value": value}}]}}


def _rules(policies: dict[str, Any]) -> dict[str, Any]:
    return {"action": "ALLOW", "policies": policies}
