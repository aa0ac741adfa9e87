"""``blazen-certs code``: a one-time code by which one node may join."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store
from blazen_certs.cli.output import print_json
from blazen_certs.codes import CodeBook
from blazen_certs.facts import time_text
from blazen_certs.profile import LeafRequest
from blazen_certs.remote import service_peer
from blazen_certs.service_audit import write_audit
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

__all__ = ["code"]


def code(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node that may join with it.")],
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="N", help="How long it is good: at most 10080 (7 days).")
    ] = 15.0,
    dns: Annotated[
        list[str] | None,
        typer.Option("--dns", metavar="NAME", help="DNS name, in place of NODE.TRUST-DOMAIN. May be given several times."),
    ] = None,
    region: Annotated[str | None, typer.Option("--region", metavar="NAME", help="Its region, in a mesh with regions.")] = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a code by which NODE joins, once: blazen-certs join takes it on the node's machine. It is a secret until it is used.

    The code also names the mesh's root, so that the node tells it to no other service.

    [bold]Example[/bold]

      blazen-certs code analyst > analyst.code

      blazen-certs code gpu --region us --minutes 60
    """
    trust = Authority.open(directory).trust()
    peer = PeerId(trust.issuer(region).trust_domain, node)
    if peer == service_peer(peer.trust_domain):
        raise ValidationError(f"{node} is the certificate service's own name")
    if not minutes > 0:
        raise ValidationError(f"--minutes {minutes:g} is not allowed: use more than 0 and at most 10080")
    names = LeafRequest(peer, tuple(dns or ())).dns_names
    now, lifetime = datetime.now(UTC), timedelta(minutes=min(minutes, 1e6))
    made = CodeBook.of(directory).make(peer, trust.root.certificate, dns_names=names, lifetime=lifetime, now=now)
    write_audit(directory, "code", code=made.id, spiffe_id=str(peer), good_until=time_text(now + lifetime))
    if as_json:
        print_json(
            {"code": made.text(), "node": node, "spiffe_id": str(peer), "id": made.id, "not_after": time_text(now + lifetime)}
        )
        return
    print(made.text())
    print(f"for {peer}, once, until {time_text(now + lifetime)}", file=sys.stderr)
