"""``blazen-certs join``: a node's first identity, from the certificate service of another machine."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store, dir_option
from blazen_certs.cli.output import identity_value, print_json, print_lines
from blazen_certs.codes import JoinCode
from blazen_certs.facts import time_text, timespan_text
from blazen_certs.join import join as join_service
from blazen_certs.remote import ServiceAddress

__all__ = ["join"]

_MAX_CODE_BYTES = 1024


def join(
    service: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where blazen-certs serve listens.")],
    code_file: Annotated[
        Path | None,
        typer.Option(
            "--code-file", metavar="FILE", help="Holds the code. Without it: standard input, or asked for on a terminal."
        ),
    ] = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Get this machine's node its first identity, with a code of blazen-certs code. The key is made here, and stays here.

    Exit code 0: joined. 1: the service was not reached, is not the one that made the code, or refused it.

    [bold]Example[/bold]

      blazen-certs join 10.0.0.1:9443 < analyst.code

      blazen-certs watch analyst --from 10.0.0.1:9443
    """
    address = ServiceAddress.parse(service)
    identity = asyncio.run(join_service(address, JoinCode.parse(_code(code_file)), directory))
    end = identity.certificate.not_valid_after_utc
    if as_json:
        print_json(identity_value(identity))
        return
    names = ", ".join((store.CERTIFICATE, store.KEY, store.BUNDLE, store.CRL))
    keep = f"blazen-certs watch {identity.peer.node_id} --from {address}{dir_option(directory)}"
    print_lines(
        [
            Text.assemble("joined as ", (str(identity.peer), "cyan")),
            f"  files        {identity.path / store.CURRENT} -> v{identity.version}  ({names})",
            f"  valid until  {time_text(end)}  ({timespan_text(end - datetime.now(UTC))})",
            Text.assemble("next: ", (keep, "bold")),
        ]
    )


def _code(file: Path | None) -> str:
    if file is not None:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_MAX_CODE_BYTES)
    if sys.stdin.isatty():
        return str(typer.prompt("code", hide_input=True, err=True))
    return sys.stdin.read(_MAX_CODE_BYTES)
