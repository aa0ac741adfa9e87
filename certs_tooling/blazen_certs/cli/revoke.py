"""``blazen-certs revoke`` and ``crl``: take a certificate back, and the lists that say so."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store, dir_option
from blazen_certs.cli.output import CHECK_FAILED, print_json, print_lines
from blazen_certs.crl import crl_number, revoked_serials
from blazen_certs.facts import name_text, time_text, timespan_text
from blazen_certs.upkeep import Kept, keep_lists, keep_nodes, local_nodes, revoke_node, revoke_serial
from blazen_peer.errors import ValidationError

__all__ = ["crl", "revoke"]

_BITES = (
    "new connections are refused within 1 s of a node's having the list; open ones end with the sidecar's limit on their age; "
    "nodes elsewhere have the list within 1 s where blazen-certs serve runs here"
)


def revoke(
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Every certificate of it that is still good.")] = None,
    serial: Annotated[
        str | None, typer.Option("--serial", metavar="HEX", help="One certificate, by its serial number.")
    ] = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Revoke a node's certificates, sign the list, and bring it to every node of the store. It cannot be taken back.

    Join codes that were made for the node, and not used, end too: this is also how a code is taken back that got lost.

    The node is not renewed any more; to let it in again, issue it a new one: blazen-certs issue NODE.

    [bold]Example[/bold]

      blazen-certs revoke analyst

      blazen-certs revoke --serial 3682f7fcd35ec99b2b60d10a402f2d8ce2e06dee
    """
    if (node is None) == (serial is None):
        raise ValidationError("say what to revoke: a node, or --serial HEX")
    authority, now = Authority.open(directory), datetime.now(UTC)
    done = revoke_serial(authority, _number(serial), now=now) if serial else revoke_node(authority, node or "", now=now)
    failed = [kept for kept in done.published if kept.action == "failed"]
    if as_json:
        print_json(
            {
                "revoked": [f"{certificate.serial_number:x}" for certificate in done.revoked],
                "codes_ended": done.codes,
                "already_revoked": [f"{certificate.serial_number:x}" for certificate in done.already],
                "published": [kept.node for kept in done.published if kept.action != "failed"],
                "failed": {kept.node: kept.detail for kept in failed},
                "bites": _BITES,
            }
        )
    else:
        for certificate in done.revoked:
            until = time_text(certificate.not_valid_after_utc)
            print_lines([Text.assemble(("revoked  ", "green"), f"{certificate.serial_number:x}, which was good until {until}")])
        if done.codes:
            print_lines(
                [Text.assemble(("ended    ", "green"), f"{done.codes} join code{'s' if done.codes > 1 else ''} of {node}")]
            )
        elif not done.revoked:
            what = "revoked already" if done.already else "nothing of it is still good"
            print_lines([Text(f"nothing to revoke: {what}", "yellow")])
        _show_published(done.published)
        if done.revoked:
            print_lines([f"it bites: {_BITES}"])
    if failed:
        raise typer.Exit(CHECK_FAILED)


def crl(
    force: Annotated[bool, typer.Option("--force", help="Sign the lists even if none is six hours old.")] = False,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Sign the revocation lists again where they are due (every 6 hours; each is good for 24), and bring them to every node.

    A list that ended makes every sidecar refuse everybody: run this from a timer, or leave it to blazen-certs watch.

    [bold]Example[/bold]

      blazen-certs crl --force
    """
    authority, now = Authority.open(directory), datetime.now(UTC)
    signed = {(issuer.region, issuer.version) for issuer in keep_lists(authority, now=now, force=force)}
    published = keep_nodes(authority, local_nodes(authority), now=now)
    lists: list[dict[str, Any]] = []
    for issuer in authority.trust().issuers:
        end = issuer.crl.next_update_utc
        lists.append(
            {
                "issuer": name_text(issuer.certificate.subject),
                "region": issuer.region,
                "number": crl_number(issuer.crl),
                "signed_now": (issuer.region, issuer.version) in signed,
                "revoked": [f"{number:x}" for number in revoked_serials(issuer.crl)],
                "next_update": None if end is None else time_text(end),
                "seconds_left": None if end is None else int((end - now).total_seconds()),
            }
        )
    failed = [kept for kept in published if kept.action == "failed"]
    if as_json:
        print_json({"lists": lists, "failed": {kept.node: kept.detail for kept in failed}})
    else:
        for item, issuer in zip(lists, authority.trust().issuers, strict=True):
            word = Text("signed  ", "green") if item["signed_now"] else Text("kept    ")
            end = issuer.crl.next_update_utc
            left = (
                "no end"
                if end is None
                else f"until {time_text(end)}" + (f", {timespan_text(end - now)} left" if end > now else "")
            )
            print_lines(
                [Text.assemble(word, f" {item['issuer']}  number {item['number']}, {len(item['revoked'])} revoked, {left}")]
            )
        _show_published(published)
        if any(item["seconds_left"] is not None and item["seconds_left"] < 0 for item in lists):
            print_lines([f"a list ended: sign it on the machine with that CA's key{dir_option(directory)}"])
    if failed or any(item["seconds_left"] is not None and item["seconds_left"] < 0 for item in lists):
        raise typer.Exit(CHECK_FAILED)


def _show_published(published: list[Kept] | tuple[Kept, ...]) -> None:
    good = [f"{kept.node} (v{kept.version})" for kept in published if kept.action != "failed"]
    if good:
        print_lines([f"at          {', '.join(good)}"])
    for kept in published:
        if kept.action == "failed":
            print_lines([Text.assemble(("not at      ", "bold red"), f"{kept.node}: {kept.detail}")])


def _number(text: str) -> int:
    try:
        return int(text.replace(":", ""), 16)
    except ValueError as error:
        raise ValidationError(f"--serial {text!r} is no serial number: use the hex digits that inspect shows") from error
