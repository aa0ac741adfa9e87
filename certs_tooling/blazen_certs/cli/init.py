"""``blazen-certs init``: the authority."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.cli.options import (
    DEFAULT_STORE,
    AsJson,
    PassphraseFile,
    RootDir,
    Store,
    dir_option,
    root_keys,
)
from blazen_certs.cli.output import print_json, print_lines
from blazen_certs.facts import name_text, sha256, time_text
from blazen_certs.profile import WHOLE_MESH

__all__ = ["init"]


def init(
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="What every identity begins with: spiffe://NAME/peer/...")
    ],
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region", metavar="NAME", help="A region, such as eu: its nodes are spiffe://eu.NAME/peer/.... Repeat it."
        ),
    ] = None,
    root_dir: RootDir = None,
    passphrase_file: PassphraseFile = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make the authority: a root (10 years), and below it an issuing CA (90 days) for each region. Never overwrites one.

    Each issuing CA can name nodes of its own region only. The root's key signs issuing CAs and nothing else: with --root-dir it
    goes to a directory that may be taken away, and with a passphrase it is encrypted.

    [bold]Example[/bold]

      blazen-certs init --trust-domain mesh.example

      blazen-certs init --trust-domain mesh.example --region eu --region us --root-dir /media/safe --passphrase-file secret
    """
    keys = root_keys(root_dir, passphrase_file)
    authority = Authority.create(directory, trust_domain, regions=tuple(region or ()), keys=keys)
    trust = authority.trust()
    root, key = trust.root, keys.path(trust.root)
    if as_json:
        print_json(
            {
                "trust_domain": trust_domain,
                "certificate": str(root.directory / store.ROOT_CERTIFICATE),
                "key": str(key),
                "encrypted": keys.passphrase is not None,
                "not_after": time_text(root.certificate.not_valid_after_utc),
                "sha256": sha256(root.certificate),
                "issuing": [
                    {
                        "region": None if issuer.region == WHOLE_MESH else issuer.region,
                        "trust_domain": issuer.trust_domain,
                        "certificate": str(issuer.directory / store.CA_CERTIFICATE),
                        "key": str(issuer.directory / store.CA_KEY),
                        "not_after": time_text(issuer.certificate.not_valid_after_utc),
                    }
                    for issuer in trust.issuers
                ],
            }
        )
        return
    guarded = "encrypted; it is needed again in 60 days" if keys.passphrase is not None else "not encrypted: take it away"
    end = time_text(root.certificate.not_valid_after_utc)
    lines: list[Text | str] = [
        Text.assemble("made the CA of ", (trust_domain, "cyan"), f": {name_text(root.certificate.subject)}"),
        f"  root         {root.directory / store.ROOT_CERTIFICATE}  valid until {end}",
        f"  its key      {key}  {guarded}",
    ]
    for issuer in trust.issuers:
        end = time_text(issuer.certificate.not_valid_after_utc)
        lines.append(f"  issuing CA   {issuer.directory}  for spiffe://{issuer.trust_domain}/, valid until {end}")
    example = f" --region {trust.regions[0]}" if len(trust.regions) > 1 else ""
    lines.append(Text.assemble("next: ", (f"blazen-certs issue NODE{example}{dir_option(directory)}", "bold")))
    print_lines(lines)
