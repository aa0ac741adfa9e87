"""``blazen-certs init``: the authority."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store, dir_option
from blazen_certs.cli.output import print_json, print_lines
from blazen_certs.facts import name_text, sha256, time_text

__all__ = ["init"]


def init(
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="What every identity begins with: spiffe://NAME/peer/...")
    ],
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make the CA: a P-256 root that is valid for 10 years. An existing one is never overwritten.

    [bold]Example[/bold]

      blazen-certs init --trust-domain mesh.example
    """
    authority = Authority.create(directory, trust_domain)
    home, certificate = store.ca_directory(directory), authority.certificate
    if as_json:
        print_json(
            {
                "trust_domain": trust_domain,
                "certificate": str(home / store.CA_CERTIFICATE),
                "key": str(home / store.CA_KEY),
                "not_after": time_text(certificate.not_valid_after_utc),
                "sha256": sha256(certificate),
            }
        )
        return
    print_lines(
        [
            Text.assemble("made the CA of ", (trust_domain, "cyan"), f": {name_text(certificate.subject)}"),
            f"  certificate  {home / store.CA_CERTIFICATE}  valid until {time_text(certificate.not_valid_after_utc)}",
            f"  key          {home / store.CA_KEY}  whoever has it can be any node: keep it on this machine",
            Text.assemble("next: ", (f"blazen-certs issue NODE{dir_option(directory)}", "bold")),
        ]
    )
