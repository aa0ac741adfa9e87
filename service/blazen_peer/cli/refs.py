"""``blazen-peer refs``: what a peer holds for this caller, one value's bytes, and a release."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blazen_peer.cli.connection import DataClass, PeersFile, connected
from blazen_peer.cli.options import Address, AsJson, NodeId
from blazen_peer.cli.outcome import print_json, printable
from blazen_peer.cli.show import PIPE_COLUMNS
from blazen_peer.cli.tls import TlsCa, TlsCert, TlsKey, TlsServerName
from blazen_peer.errors import RefNotFoundError, ValidationError
from blazen_peer.ref_calls import DEREF_TIMEOUT_SECS
from blazen_peer.ref_listing import HeldRef
from blazen_peer.runtime.refs import RemoteRef

__all__ = ["ref_object", "refs_app"]

EXIT_CODES: Final = "Exit codes: 0 done, 2 wrong use, 3 refused, 5 transport, 7 no such session ref, 1 any other failure."

refs_app = typer.Typer(
    rich_markup_mode="rich",
    help="The session refs that a peer holds for this caller, which is the --node-id that made the run.",
)

RefUuid = Annotated[str, typer.Argument(metavar="UUID", help="The ref's uuid, as run --json and refs list show it.")]


@refs_app.command("list", epilog=EXIT_CODES)
def list_(
    address: Address,
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
    as_json: AsJson = False,
) -> None:
    """Show the session refs that the peer holds for this caller, oldest first.

    [bold]Example[/bold]

      blazen-peer refs list http://127.0.0.1:16001 --node-id intake
    """
    with connected(address, node_id, data, peers_file, tls_cert, tls_key, tls_ca, tls_server_name) as client:
        held = client.list_refs_blocking()
    if as_json:
        print_json({"refs": [_object(item) for item in held]})
        return
    table = Table("uuid", "type tag", "created (UTC)", "lifetime", "bytes", "lease left", box=SIMPLE_HEAD)
    for item in held:
        left = "its run lives" if item.lease_left_secs is None else f"{item.lease_left_secs:.0f} s"
        ref = item.ref
        cells = (str(ref.uuid), ref.type_tag, _utc(ref.created_at_epoch_ms), item.lifetime, f"{item.size_bytes:,}", left)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS, highlight=False).print(table)


@refs_app.command(epilog=EXIT_CODES)
def deref(
    address: Address,
    uuid: RefUuid,
    output: Annotated[
        str, typer.Option("--output", metavar="FILE|-", help="Where the bytes go; the file is made only when they are whole.")
    ] = "-",
    type_tag: Annotated[
        str,
        typer.Option("--type-tag", metavar="TAG", help="The ref's type tag, which Blazen's own bindings put before the bytes."),
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECS", help="What the reading may take.")
    ] = DEREF_TIMEOUT_SECS,
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
) -> None:
    """Fetch a value's bytes, in constant memory, and check them; reading renews the ref's lease.

    [bold]Example[/bold]

      blazen-peer refs deref http://127.0.0.1:16001 6f1f0d0e-8a52-4c0b-8f5a-3c0c6f8f7c11 --output model.bin
    """
    ref = RemoteRef(_parsed(uuid), "", type_tag, 0)
    with connected(address, node_id, data, peers_file, tls_cert, tls_key, tls_ca, tls_server_name) as client:
        if output == "-":
            client.deref_to_blocking(ref, sys.stdout.buffer, timeout_secs=timeout)
            return
        whole = Path(output)
        part = whole.with_name(f"{whole.name}.part-{os.getpid()}")
        try:
            with part.open("xb") as file:
                client.deref_to_blocking(ref, file, timeout_secs=timeout)
            part.replace(whole)
        except OSError as error:
            raise ValidationError(f"cannot write {output}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)


@refs_app.command(epilog=EXIT_CODES)
def release(
    address: Address,
    uuid: RefUuid,
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
    as_json: AsJson = False,
) -> None:
    """Let the peer forget a session ref. Where there is none (any more), the exit code is 7.

    [bold]Example[/bold]

      blazen-peer refs release http://127.0.0.1:16001 6f1f0d0e-8a52-4c0b-8f5a-3c0c6f8f7c11
    """
    ref = RemoteRef(_parsed(uuid), "", "", 0)
    with connected(address, node_id, data, peers_file, tls_cert, tls_key, tls_ca, tls_server_name) as client:
        if not client.release_blocking(ref):
            raise RefNotFoundError(f"session ref {ref.uuid} not found")
    if as_json:
        print_json({"released": True})


def _parsed(uuid: str) -> UUID:
    try:
        return UUID(uuid)
    except ValueError:
        raise ValidationError(f"{uuid[:64]!r} is not the uuid of a session ref") from None


def _utc(epoch_ms: int) -> str:
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # a peer may say anything
        return str(epoch_ms)


def ref_object(ref: RemoteRef) -> dict[str, object]:
    """Return *ref* as ``run --json`` prints it."""
    return {
        "uuid": str(ref.uuid),
        "origin_node_id": ref.origin_node_id,
        "type_tag": ref.type_tag,
        "created_at_epoch_ms": ref.created_at_epoch_ms,
    }


def _object(held: HeldRef) -> dict[str, object]:
    return {
        **ref_object(held.ref),
        "lifetime": held.lifetime,
        "size_bytes": held.size_bytes,
        "lease_left_secs": held.lease_left_secs,
    }
