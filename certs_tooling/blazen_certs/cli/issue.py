"""``blazen-certs issue``: a node's key and certificate."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store
from blazen_certs.cli.output import CHECK_FAILED, identity_value, print_json, print_lines
from blazen_certs.cli.sidecars import SidecarSecs
from blazen_certs.facts import printable, time_text, timespan_text
from blazen_certs.sidecar import SidecarView, look_at_sidecar, wait_until_served
from blazen_peer.errors import ValidationError

__all__ = ["issue"]

_MAX_LIFETIME_HOURS = 2160


def issue(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id: letters, digits, '.', '_', '-'.")],
    dns: Annotated[
        list[str] | None,
        typer.Option("--dns", metavar="NAME", help="DNS name, in place of NODE.TRUST-DOMAIN. May be given several times."),
    ] = None,
    lifetime_hours: Annotated[
        float, typer.Option(metavar="HOURS", help="How long it is valid: at most 2160 (90 days), and never longer than the CA.")
    ] = 24.0,
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="NAME", help="Its region. Not needed again, nor in a mesh without regions."),
    ] = None,
    sidecar: Annotated[
        Path | None,
        typer.Option(
            "--sidecar", metavar="SOCKET", help="Its sidecar's admin socket: asked, afterwards, whether it serves this."
        ),
    ] = None,
    sidecar_secs: SidecarSecs = 10.0,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a node's key and certificate. Again: makes new ones, which take the old ones' place in one step.

    [bold]Example[/bold]

      blazen-certs issue analyst

      blazen-certs issue analyst --region eu --dns analyst.internal --lifetime-hours 8
    """
    if not 0 < lifetime_hours <= _MAX_LIFETIME_HOURS:
        raise ValidationError(
            f"--lifetime-hours {lifetime_hours:g} is not allowed: use more than 0 and at most {_MAX_LIFETIME_HOURS}"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    before = SidecarView() if sidecar is None else look_at_sidecar(sidecar)
    authority = Authority.open(directory)
    identity = authority.issue(
        node, now=now, lifetime=timedelta(hours=lifetime_hours), dns_names=tuple(dns or ()), region=region
    )
    problem = None
    if sidecar is not None:
        serial, roots = identity.certificate.serial_number, authority.trust().root_certificates
        problem = wait_until_served(sidecar, serial, roots, before=before, secs=sidecar_secs)
    end = identity.certificate.not_valid_after_utc
    if as_json:
        print_json(
            {
                **identity_value(identity),
                **({} if sidecar is None else {"sidecar": problem or "serves it"}),
            }
        )
        _require_served(problem)
        return
    current = identity.path / store.CURRENT
    names = ", ".join((store.CERTIFICATE, store.KEY, store.BUNDLE, store.CRL))
    print_lines(
        [
            Text.assemble("issued ", (str(identity.peer), "cyan")),
            f"  files        {current} -> v{identity.version}  ({names})",
            f"  valid until  {time_text(end)}  ({timespan_text(end - now)})",
            *([] if sidecar is None or problem else ["  sidecar      serves it"]),
        ]
    )
    _require_served(problem)


def _require_served(problem: str | None) -> None:
    if problem is not None:
        print(f"blazen-certs: it is published, but {printable(problem)}; repeat the command", file=sys.stderr)
        raise typer.Exit(CHECK_FAILED)
