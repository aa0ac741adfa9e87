"""What people see of a mesh: the console, and the tables."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blazen_mesh.address_book import address_book
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
            "region": peer.region,
            "sidecar": str(peer.sidecar),
            "peer": [str(address) for address in peer.listens],
            "egress": address_book(mesh, name)["peers"],
        }
        for name, peer in sorted(mesh.peers.items())
    ]


def mesh_table(mesh: Mesh) -> Table:
    """Return the nodes and their addresses as a table."""
    table = Table()
    for heading in ("node", "SPIFFE id", "sidecar", "peer", "egress"):
        table.add_column(heading, overflow="fold")  # an address cut short is of no use
    for name, peer in sorted(mesh.peers.items()):
        ways = [f"{way.address} -> {way.name.removeprefix('egress ')}" for way in mesh.ways(name)]
        rows = (name, str(mesh.identity(name)), str(peer.sidecar), "\n".join(map(str, peer.listens)), "\n".join(ways))
        table.add_row(*map(escape, rows))
    return table
