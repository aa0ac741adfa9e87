"""``peers.json``: where a node's clients reach each peer that its flows allow, by data class.

    {"node": "intake", "region": "eu", "data": ["personal", "internal"],
     "peers": {"analyst": [{"data_class": "personal", "address": "127.0.0.1:16001"}]}}

``PeerClient.connect("peer:analyst", data_class="personal")`` reads it. ``data`` is every data class, strictest first: a client
tells by it whether a port's class is as strict as a run's.
"""

from __future__ import annotations

from typing import Any

from blazen_mesh.mesh import Mesh

__all__ = ["address_book"]


def address_book(mesh: Mesh, node: str) -> dict[str, Any]:
    """Return *node*'s address book; ``region`` and ``data_class`` are null in a mesh without.

    Raises:
        MeshError: There is no such node.
    """
    peers: dict[str, list[dict[str, str | None]]] = {}
    for way in mesh.ways(node):
        peers.setdefault(way.callee, []).append({"data_class": way.data_class, "address": way.address})
    return {"node": node, "region": mesh.peer(node).region, "data": [each.name for each in mesh.data], "peers": peers}
