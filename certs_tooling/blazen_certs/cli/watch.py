"""``blazen-certs watch``: keeps identities good until it is told to end. For a container, or a unit of the system's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, PassphraseFile, RootDir, Store, root_keys
from blazen_certs.cli.output import print_event, print_event_text
from blazen_certs.cli.sidecars import Sidecars, sidecars_of
from blazen_certs.cli.watch_from import watch_from
from blazen_certs.remote import ServiceAddress
from blazen_certs.upkeep import local_nodes
from blazen_certs.watch import Watch

__all__ = ["until_told", "watch"]


def watch(
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NODE...]", help="Which nodes. None: all in the store, new ones too.")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option("--from", metavar="HOST:PORT", help="Get them from blazen-certs serve there: this machine has no CA."),
    ] = None,
    sidecar: Sidecars = None,
    root_dir: RootDir = None,
    passphrase_file: PassphraseFile = None,
    directory: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")] = False,
) -> None:
    """Renew each certificate at two thirds of its life, sign revocation lists every 6 hours, and bring both to the nodes.

    What fails is tried again after 10 seconds, later every 5 minutes. Issuing CAs are renewed too, where the root's key
    is there; where it is not, the log says what to do. Ends with 0 on SIGTERM and Ctrl-C.

    [bold]Example[/bold]

      blazen-certs watch --json

      blazen-certs watch analyst --sidecar /run/blazen/analyst/admin.sock

      blazen-certs watch analyst --from 10.0.0.1:9443
    """
    if service is not None:
        watch_from(ServiceAddress.parse(service), directory, nodes, sidecar, print_event if as_json else print_event_text)
        return
    authority = Authority.open(directory, keys=root_keys(root_dir, passphrase_file))
    known = nodes or local_nodes(authority)
    say = print_event if as_json else print_event_text
    with until_told() as stop:
        keeper = Watch(authority, say, nodes=nodes, sidecars=sidecars_of(sidecar, known))
        say(
            {
                "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "event": "watching",
                "nodes": known,
                "directory": str(directory),
            }
        )
        keeper.run(stop)
        say({"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "event": "stopped"})


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
