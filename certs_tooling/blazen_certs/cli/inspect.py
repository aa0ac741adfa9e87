"""``blazen-certs inspect``: what is in PEM files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store
from blazen_certs.cli.output import print_json, print_lines
from blazen_certs.cli.targets import file_of
from blazen_certs.describe import describe
from blazen_certs.pem import read_pem_file
from blazen_certs.show import object_table

__all__ = ["inspect"]


def inspect(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE_OR_NODE...", help="PEM files, or nodes of the store. ./NAME is always a file.")
    ],
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show what PEM files hold: certificates, chains, bundles, keys (never the key itself), requests, CRLs.

    The SHA-256 of a certificate is what Envoy writes as Hash= into its identity header.

    [bold]Example[/bold]

      blazen-certs inspect analyst

      blazen-certs inspect .mesh/certs/ca/ca.crt --json
    """
    now = datetime.now(UTC)
    found = [item for name in files for item in describe(read_pem_file(file_of(name, directory)), now=now)]
    if as_json:
        print_json({"objects": found})
        return
    for index, item in enumerate(found):
        print_lines(["", object_table(item)] if index else [object_table(item)])
