"""The one-shot job of ``compose.yaml``: an authority, each node's identity, and the secret between its sidecar and its peer.

What is there is kept: it may run any number of times. On real machines there is no such job: each node joins with a code, and
its keys never leave it (docs/deploy.md).
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from blazen_certs import Authority
from blazen_mesh.mesh import load_mesh
from blazen_mesh.render import replace_file


def main(mesh_file: Path, certs: Path, config: Path) -> None:
    """Make what is missing for each node of *mesh_file*."""
    mesh = load_mesh(mesh_file)
    if (certs / "root" / "current").exists():
        authority = Authority.open(certs)
    else:
        authority = Authority.create(certs, mesh.trust_domain, regions=mesh.regions)
        print(f"made the authority of {mesh.trust_domain}")
    for node, peer in sorted(mesh.peers.items()):
        if not (certs / "nodes" / node / "current").exists():
            print(f"issued {authority.issue(node, region=peer.region).peer}")
        proof = config / node / "sidecar-proof"
        if not proof.exists():
            replace_file(proof, secrets.token_urlsafe(32).encode(), 0o640)  # the sidecar's own, and by the group its peer's
            print(f"made the secret between {node} and its sidecar")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
