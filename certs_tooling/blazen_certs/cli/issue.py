"""``blazen-certs issue``: a node's key and certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store
from blazen_certs.cli.output import print_json, print_lines
from blazen_certs.facts import sha256, time_text, timespan_text
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
    identity = Authority.open(directory).issue(
        node, now=now, lifetime=timedelta(hours=lifetime_hours), dns_names=tuple(dns or ()), region=region
    )
    end = identity.certificate.not_valid_after_utc
    if as_json:
        print_json(
            {
                "node": node,
                "spiffe_id": str(identity.peer),
                "directory": str(identity.path),
                "version": identity.version,
                "certificate": str(identity.certificate_path),
                "key": str(identity.key_path),
                "bundle": str(identity.bundle_path),
                "crl": str(identity.crl_path),
                "serial": f"{identity.certificate.serial_number:x}",
                "not_after": time_text(end),
                "sha256": sha256(identity.certificate),
            }
        )
        return
    current = identity.path / store.CURRENT
    names = ", ".join((store.CERTIFICATE, store.KEY, store.BUNDLE, store.CRL))
    print_lines(
        [
            Text.assemble("issued ", (str(identity.peer), "cyan")),
            f"  files        {current} -> v{identity.version}  ({names})",
            f"  valid until  {time_text(end)}  ({timespan_text(end - now)})",
        ]
    )
