"""What people see of a mesh: the console, and the tables."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blazen_mesh.mesh import Mesh

__all__ = ["console", "mesh_table", "node_objects"]

PIPE_COLUMNS: Final = 120


def console() -> Console:
    """Return the console; in a pipe it is wide enough for the tables."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS)


def node_objects(mesh: Mesh) -> list[dict[str, Any]]:
    """Return every node with its addresses, for JSON."""
    return [
        {
            "node": name,
            "spiffe_id": str(mesh.identity(name)),
            "sidecar": str(peer.sidecar),
            "peer": str(peer.listen),
            "egress": {callee: f"127.0.0.1:{way.port}" for callee, way in sorted(peer.egress.items())},
        }
        for name, peer in sorted(mesh.peers.items())
    ]


def mesh_table(mesh: Mesh) -> Table:
    """Return the nodes and their addresses as a table."""
    table = Table()
    for heading in ("node", "SPIFFE id", "sidecar", "peer", "egress"):
        table.add_column(heading, overflow="fold")  # an address cut short is of no use
    for node in node_objects(mesh):
        ways = "\n".join(f"{address} -> {callee}" for callee, address in node["egress"].items())
        table.add_row(*(escape(node[key]) for key in ("node", "spiffe_id", "sidecar", "peer")), ways)
    return table
