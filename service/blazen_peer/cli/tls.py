"""The options of direct TLS: files that go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blazen_peer.errors import ValidationError
from blazen_peer.transport.tls import ClientTls, ServerTls, load_client_tls, load_server_tls

__all__ = ["TlsCa", "TlsCert", "TlsKey", "TlsServerName", "client_tls", "server_tls"]

TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", help="Without a sidecar: this end's certificate, PEM, for mutual TLS."),
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="The certificate's private key, PEM.")]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", metavar="FILE", help="The CAs of the other end's certificate, PEM.")]
TlsServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name", metavar="NAME", help="The DNS name in the peer's certificate, such as analyst.mesh.example."
    ),
]


def server_tls(cert: Path | None, key: Path | None, ca: Path | None) -> ServerTls | None:
    """Return what the three options give; None where none of them is there.

    Raises:
        ValidationError: One or two of them are missing, or a file is not usable.
    """
    files = _together(cert, key, ca)
    return None if files is None else load_server_tls(*files)


def client_tls(cert: Path | None, key: Path | None, ca: Path | None, server_name: str | None) -> ClientTls | None:
    """Return what the four options give; None where none of them is there.

    Raises:
        ValidationError: Files are missing, or one is not usable, or the name is none.
    """
    files = _together(cert, key, ca)
    if files is None:
        if server_name is not None:
            raise ValidationError("--tls-server-name needs --tls-cert, --tls-key and --tls-ca")
        return None
    return load_client_tls(*files, server_name=server_name)


def _together(cert: Path | None, key: Path | None, ca: Path | None) -> tuple[Path, Path, Path] | None:
    if cert is not None and key is not None and ca is not None:
        return cert, key, ca
    given = {"--tls-cert": cert, "--tls-key": key, "--tls-ca": ca}
    missing = [name for name, file in given.items() if file is None]
    if len(missing) == len(given):
        return None
    raise ValidationError(f"--tls-cert, --tls-key and --tls-ca go together: {' and '.join(missing)} is missing")
