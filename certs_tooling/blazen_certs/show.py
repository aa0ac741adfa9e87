"""The human form of what the commands found, as rich renderables. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from blazen_certs.facts import printable, timespan_text
from blazen_certs.verify import Report

__all__ = ["object_table", "report_lines"]

_TITLES = {"request": "signing request", "crl": "revocation list", "private-key": "private key", "public-key": "public key"}
_SOON = timedelta(hours=8)  # a third of a leaf's life, after which a renewal should have come


def object_table(found: dict[str, Any]) -> RenderableType:
    """Return one described object (``describe.describe``) under its title."""
    kind = found["kind"]
    title = ("CA certificate" if found["ca"] else "certificate") if kind == "certificate" else _TITLES[kind]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(found):
        table.add_row(f"  {label}", printable(value) if isinstance(value, str) else value)
    return Group(Text.assemble((title, "bold"), "  ", (found["source"], "dim")), table)


def report_lines(report: Report) -> Iterator[Text]:
    """Yield one line for each check, its fix on a line below, and the verdict."""
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        word = Text("OK   ", "green") if check.ok else Text("FAIL ", "bold red")
        yield Text.assemble(word, " ", (check.name.ljust(width), "" if check.ok else "bold"), "  ", printable(check.detail))
        if check.fix:
            yield Text.assemble(" " * (width + 8), ("fix: ", "dim"), check.fix)
    failed = sum(not check.ok for check in report.checks)
    if failed:
        yield Text(f"not valid: {failed} of {len(report.checks)} checks failed", "bold red")
    else:
        yield Text(f"valid: all {len(report.checks)} checks hold", "bold green")


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, Text | str]]:
    if "spiffe_id" in found:
        yield "SPIFFE id", _spiffe(found["uris"], found["spiffe_id"])
        yield "DNS names", _joined(found["dns_names"])
    for label, key in (("subject", "subject"), ("issuer", "issuer"), ("serial", "serial"), ("number", "number")):
        if found.get(key) is not None:
            yield label, str(found[key])
    for label, key in (
        ("not before", "not_before"),
        ("not after", "not_after"),
        ("last update", "last_update"),
        ("next update", "next_update"),
    ):
        if found.get(key) is not None:
            yield label, found[key]
    if found.get("seconds_left") is not None:
        yield "time left", _time_left(found["seconds_left"])
    if "revoked" in found:
        for entry in found["revoked"]:
            yield "revoked", f"{entry['serial']} since {entry['since']}"
        if not found["revoked"]:
            yield "revoked", "none"
    if "purposes" in found:
        yield "purposes", _joined(found["purposes"])
    if "path_length" in found:
        yield "CAs below it", "any number" if found["path_length"] is None else str(found["path_length"] or "none")
    if "may_name" in found:
        critical = "" if found["names_critical"] else " (not critical: some readers let others pass)"
        yield "may name", (_joined(found["may_name"]) if found["may_name"] else "everything") + critical
        if found["may_not_name"]:
            yield "may not name", _joined(found["may_not_name"])
    if found.get("encrypted"):
        yield "encrypted", Text("yes: a sidecar cannot read it", "yellow")
    if "key_type" in found:
        yield "key type", found["key_type"]
        yield "key SHA-256", found["public_key_sha256"]
    if "sha256" in found:
        yield "SHA-256", found["sha256"]


def _spiffe(uris: list[str], spiffe_id: str | None) -> Text:
    if spiffe_id is not None:
        return Text(printable(spiffe_id), "cyan")
    if not uris:
        return Text("none", "yellow")
    return Text(printable(f"none (exactly one URI makes one): {', '.join(uris)}"), "yellow")


def _joined(values: Iterable[str]) -> str:
    return ", ".join(values) or "none"


def _time_left(seconds: int) -> Text:
    span = timedelta(seconds=abs(seconds))
    if seconds < 0:
        return Text(f"none: it ended {timespan_text(span)} ago", "bold red")
    return Text(timespan_text(span), "yellow" if span < _SOON else "green")
