"""How the commands that call a peer connect: by an address, or by the node's address book and a data class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from blazen_peer.address_book import PEERS_FILE
from blazen_peer.cli.tls import client_tls
from blazen_peer.client import PeerClient
from blazen_peer.errors import PeerError
from blazen_peer.transport.lanes import LaneMode

__all__ = ["DataClass", "PeersFile", "connected", "named", "why_alone"]

UNNAMED: Final = "cli"

DataClass = Annotated[
    str | None,
    typer.Option("--data", metavar="CLASS", help="The class of what goes there; the port must stamp it, or a stricter one."),
]
PeersFile = Annotated[
    Path | None,
    typer.Option("--peers-file", metavar="FILE", envvar=PEERS_FILE, help="The node's address book, for peer:NAME."),
]


def named(node_id: str | None) -> str:
    """Return what this end calls itself in traces."""
    return node_id or UNNAMED


def connected(
    address: str,
    node_id: str | None,
    data_class: str | None,
    peers_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    tls_server_name: str | None,
    lane: LaneMode = "never",
) -> PeerClient:
    """Connect as a command's own options say; without a name given, as the node whose address book it is, or as ``cli``.

    One call gains nothing by a lane.

    Raises:
        ValidationError, PeerError: As for :func:`client_tls` and ``PeerClient.connect``.
    """
    if node_id is None and not address.startswith("peer:"):
        node_id = UNNAMED
    tls = client_tls(tls_cert, tls_key, tls_ca, tls_server_name)
    return PeerClient.connect(address, node_id, tls=tls, data_class=data_class, peers_file=peers_file, lane=lane)


def why_alone(client: PeerClient) -> str | None:
    """Open a lane; return why calls cannot go by one, or None where it opened."""
    try:
        client.open_lane_blocking()
    except PeerError as error:
        return str(error)
    return None
