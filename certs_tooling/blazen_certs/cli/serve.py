"""``blazen-certs serve``: certificates for nodes on other machines, from the one that has the CA."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, Store
from blazen_certs.cli.output import print_event, print_event_text
from blazen_certs.facts import time_text
from blazen_certs.remote import ServiceAddress
from blazen_certs.service import CertificateService
from blazen_certs.service_issuer import ServiceIssuer
from blazen_peer.errors import ValidationError

__all__ = ["serve", "until_signalled"]

_MAX_LIFETIME_HOURS = 2160


def serve(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where the other machines reach it. Port 0 picks a free one.")
    ],
    lifetime_hours: Annotated[
        float, typer.Option(metavar="HOURS", help="How long a certificate is valid: at most 2160 (90 days).")
    ] = 24.0,
    directory: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")] = False,
) -> None:
    """Serve certificates to nodes on other machines: the first by a code, the next by the one before. Ends on SIGTERM.

    Keys stay on their nodes; the CA's stays here. Each certificate leaves a line of JSON in audit.jsonl of the store. What
    other commands do here (revoke, rotate-root) reaches the nodes at once.

    [bold]Example[/bold]

      blazen-certs serve --listen 10.0.0.1:9443
    """
    if not 0 < lifetime_hours <= _MAX_LIFETIME_HOURS:
        raise ValidationError(
            f"--lifetime-hours {lifetime_hours:g} is not allowed: use more than 0 and at most {_MAX_LIFETIME_HOURS}"
        )
    address = ServiceAddress.parse(listen, free_port=True)
    say = print_event if as_json else print_event_text
    issuer = ServiceIssuer(Authority.open(directory), lifetime=timedelta(hours=lifetime_hours), log=say)

    async def run() -> None:
        async with CertificateService(issuer, say).serving(address.host, address.port) as where:
            say({"time": time_text(datetime.now(UTC)), "event": "serving", "message": f"listens on {where}"})
            await until_signalled()
        say({"time": time_text(datetime.now(UTC)), "event": "stopped"})

    asyncio.run(run())


async def until_signalled() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    with ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
            handlers.callback(loop.remove_signal_handler, number)
        await stop.wait()
