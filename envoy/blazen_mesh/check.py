"""What ``blazen-mesh check`` looks at beyond the mesh file itself: its dates, what is worth knowing, Envoy's opinion."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from blazen_mesh.discovery import objections
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import render_node

__all__ = ["expired", "notes", "refused_by_envoy"]

SOON_DAYS = 14


_PATHS = NodePaths("/identity", "/sidecar", "/sidecar/admin.sock", "/sidecar/sidecar-proof", "/sidecar/token")


def refused_by_envoy(mesh: Mesh, envoy: Path) -> list[str]:
    """Return what *envoy* has against the nodes' configurations, one line each, the node first; empty when it takes all.

    They are rendered with paths that need not be there. Certificates and secrets are not looked at.
    """
    return [
        f"{node}: Envoy says: {line}"
        for node in sorted(mesh.peers)
        for line in objections(render_node(mesh, node, _PATHS), envoy)
    ]


def expired(mesh: Mesh, day: date) -> list[str]:
    """Return the exceptions that are over on *day* (UTC), one line each. Sidecars and peers leave them out by themselves."""
    return [
        f"flows[{index}].until: {flow} ended on {flow.until}: give it a new date and reason, or remove it with its port"
        for index, flow in enumerate(mesh.flows)
        if flow.until and flow.until < day
    ]


def notes(mesh: Mesh, day: date) -> list[str]:
    """Return what is allowed and yet worth knowing on *day* (UTC)."""
    return [*_about_the_mesh(mesh, day), *(line for node in sorted(mesh.peers) for line in _about_a_node(mesh, node))]


def _about_the_mesh(mesh: Mesh, day: date) -> list[str]:
    found = [] if mesh.flows else ["no flows: nobody may call anybody"]
    if not mesh.crl:
        found.append("crl: no revocation list is looked at; a stolen certificate is good until it ends")
    used = {peer.region for peer in mesh.peers.values()}
    found += [f"regions: no peer is in {region}" for region in mesh.regions if region not in used]
    carried = {name for flow in mesh.flows for name in flow.data}
    found += [f"data: no flow carries {name} data" for name in mesh.classes if name not in carried]
    for index, flow in enumerate(mesh.flows):
        if flow.until and 0 <= (left := (flow.until - day).days) <= SOON_DAYS:
            found.append(f"flows[{index}].until: {flow} ends with {flow.until}, in {left} days")
    return found


def _about_a_node(mesh: Mesh, node: str) -> list[str]:
    peer = mesh.peers[node]
    found = [
        f"peers.{node}.{way.name.replace(' ', '.')}: injects the token, so every process that reaches {way.address} is {node}"
        for way in mesh.ways(node)
        if way.inject_token
    ]
    if len(peer.listens) > 1:
        found.append(
            f"peers.{node}.listen: {len(peer.listens)} replicas: a client without invocation ids, such as Blazen's own, "
            "may not find its session refs again: its calls are spread"
        )
    if peer.run and not peer.run.require_identity:
        found.append(f"peers.{node}.run: local programs that hold the token may call {peer.listen} past the sidecar")
    if not peer.ingress_bind.is_loopback and not mesh.callers(node):
        found.append(f"peers.{node}: nobody may call it, and its ingress is open on {peer.ingress_bind}; it denies all")
    return found
