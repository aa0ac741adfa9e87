"""The option ``--sidecar``: which admin socket is which node's, and what the sidecar says after a publication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from blazen_certs.authority import Authority
from blazen_certs.sidecar import SidecarView, wait_until_served
from blazen_certs.upkeep import Kept
from blazen_peer.errors import ValidationError

__all__ = ["SidecarSecs", "Sidecars", "await_sidecars", "sidecars_of"]

Sidecars = Annotated[
    list[str] | None,
    typer.Option(
        "--sidecar",
        metavar="[NODE=]SOCKET",
        help="Its sidecar's admin socket: asked, after a publication, what it serves. NODE= where there are several nodes.",
    ),
]

SidecarSecs = Annotated[float, typer.Option(metavar="SECS", help="How long a sidecar may take to serve what was published.")]


def sidecars_of(values: Sequence[str] | None, nodes: Sequence[str]) -> dict[str, Path]:
    """Return the admin socket of each node that *values* name.

    Raises:
        ValidationError: A value without a node, and not exactly one node; or a node that is not among *nodes*.
    """
    found: dict[str, Path] = {}
    for value in values or ():
        node, equals, path = value.partition("=")
        if not equals:
            if len(nodes) != 1:
                raise ValidationError(f"--sidecar {value}: there are {len(nodes)} nodes, say whose it is: NODE={value}")
            node, path = nodes[0], value
        if node not in nodes:
            raise ValidationError(f"--sidecar {value}: {node} is none of {', '.join(nodes) or 'no nodes'}")
        found[node] = Path(path)
    return found


def await_sidecars(
    authority: Authority, nodes: Sequence[Kept], sidecars: Mapping[str, Path], before: Mapping[str, SidecarView], secs: float
) -> dict[str, str | None]:
    """Wait until each of *sidecars* serves what its node has now; return, for each, why it does not, or None.

    Args:
        authority: The store.
        nodes: What was done for each node.
        sidecars: Admin sockets.
        before: What each of them said before that.
        secs: How long one may take.
    """
    roots = authority.trust().root_certificates
    asked = ("renewed", "republished", "kept")
    return {
        kept.node: wait_until_served(
            sidecars[kept.node], kept.certificate.serial_number, roots, before=before[kept.node], secs=secs
        )
        for kept in nodes
        if kept.node in sidecars and kept.certificate is not None and kept.action in asked
    }
