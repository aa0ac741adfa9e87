"""What ``blazen-mesh check`` looks at beyond the mesh file itself: Envoy's own opinion of every node's configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path

from blazen_mesh.binary import validate
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import ensure_secret, render_node, write_files

__all__ = ["notes", "refused_by_envoy"]


def refused_by_envoy(mesh: Mesh, envoy: Path) -> list[str]:
    """Return what *envoy* has against the nodes' configurations, one line each, the node first; empty when it takes all.

    They are rendered into a temporary directory with throwaway secrets. Certificates are not looked at.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bm") as root:
        for node in sorted(mesh.peers):
            home = Path(root) / node
            identity = home / "identity"
            identity.mkdir(parents=True)
            paths = NodePaths(str(identity), str(home), f"{root}/admin.sock", f"{home}/sidecar-proof", f"{home}/token")
            ensure_secret(Path(paths.proof_file))
            ensure_secret(home / "token")
            write_files(render_node(mesh, node, paths), home)
            problems += [f"{node}: Envoy says: {line}" for line in validate(envoy, home / "envoy.json")]
    return problems


def notes(mesh: Mesh) -> list[str]:
    """Return what is allowed and yet worth knowing."""
    found = [] if mesh.flows else ["no flows: nobody may call anybody"]
    for node, peer in sorted(mesh.peers.items()):
        found += [
            f"peers.{node}.egress.{callee}: injects the token, so every process that reaches 127.0.0.1:{way.port} is {node}"
            for callee, way in sorted(peer.egress.items())
            if way.inject_token
        ]
        if peer.run and not peer.run.require_identity:
            found.append(f"peers.{node}.run: local programs that hold the token may call {peer.listen} past the sidecar")
        if not peer.ingress_bind.is_loopback and not mesh.callers(node):
            found.append(f"peers.{node}: nobody may call it, and its ingress is open on {peer.ingress_bind}; it denies all")
    return found
