"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Address", "AsJson", "NodeId"]

Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS",
        help="http://host:port (behind a sidecar: its egress port), https://host:port (direct TLS), unix:PATH or peer:NAME.",
    ),
]
NodeId = Annotated[
    str | None,
    typer.Option(
        "--node-id",
        metavar="NODE",
        envvar="BLAZEN_NODE_ID",
        help="This end's name; behind a sidecar, the node of its certificate; for peer:NAME, the address book's node.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for scripts.")]
