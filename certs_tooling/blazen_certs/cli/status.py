"""``blazen-certs status``: every node and CA of a store at a glance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store
from blazen_certs.cli.output import CHECK_FAILED, print_json, print_lines
from blazen_certs.errors import StoreError
from blazen_certs.facts import printable, timespan_text
from blazen_certs.status import read_status

__all__ = ["status"]

_STYLES = {"ok": "green", "due": "yellow", "coming": "cyan", "retired": "dim", "revoked": "magenta"}


def status(directory: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show every node: its certificate's serial and time left, its root's generation, revocation, and the age of its lists.

    Exit code 1 when something is due, expired or broken. Works on a node's own machine too, for what is there.

    [bold]Example[/bold]

      blazen-certs status

      blazen-certs status --json
    """
    found = read_status(directory, now=datetime.now(UTC))
    if not found["nodes"] and not found["roots"]:
        raise StoreError(f"there is nothing in {directory}: make a CA with blazen-certs init, or name the store with --dir")
    if as_json:
        print_json(found)
    else:
        print_lines([_authority(found), "", _nodes(found)] if found["roots"] else [_nodes(found)])
        rotation = found["rotation"]
        if rotation is not None and rotation["phase"] != "none":
            print_lines(
                [Text(f"the root is being replaced ({rotation['phase']}): see blazen-certs rotate-root status", "cyan")]
            )
        for node in found["nodes"]:
            if node["problem"]:
                print_lines([Text.assemble((f"{node['node']}: ", "bold red"), printable(node["problem"]))])
    if not found["ok"]:
        raise typer.Exit(CHECK_FAILED)


def _authority(found: dict[str, Any]) -> Table:
    table = _table("authority", "condition", "time left", "renewal in", "root", "revoked", "lists left", "key")
    at = datetime.fromisoformat(found["at"])
    for root in found["roots"]:
        table.add_row(
            _short(root["subject"]), _word("ok"), _left(root["seconds_left"]), "", str(root["generation"]), "", "", ""
        )
    for item in found["issuing"]:
        table.add_row(
            _short(item["subject"]),
            _word(item["condition"]),
            _left(item["seconds_left"]),
            _until(item["renewal"], at) if item["condition"] in ("ok", "due") else "",
            str(item["root_generation"]),
            str(item["revoked"]),
            _until(item["list_until"], at),
            "here" if item["key_here"] else "elsewhere",
        )
    return table


def _nodes(found: dict[str, Any]) -> Table:
    table = _table("node", "condition", "time left", "renewal in", "root", "serial", "lists' age", "where")
    at = datetime.fromisoformat(found["at"])
    for node in found["nodes"]:
        age = node["lists_age_seconds"]
        renewing = node["condition"] in ("ok", "due") and node["serial"]
        table.add_row(
            node["node"],
            _word(node["condition"]),
            _left(node["seconds_left"]) if node["serial"] else "",
            _until(node["renewal"], at) if renewing else "",
            str(node["root_generation"] or ""),
            (node["serial"] or "")[:8],
            "" if age is None else timespan_text(timedelta(seconds=max(age, 0))),
            "here" if node["here"] else f"seen {node['seen'] or 'never'}",
        )
    return table


def _short(subject: str) -> str:
    """Return the common name of a CA of ours, which is unique; otherwise the whole name."""
    first = subject.split(",", maxsplit=1)[0]
    return printable(first.removeprefix("CN="))


def _until(moment: str | None, at: datetime) -> Text:
    return Text("") if moment is None else _left(int((datetime.fromisoformat(moment) - at).total_seconds()), "now")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _word(condition: str) -> Text:
    return Text(condition, _STYLES.get(condition, "bold red"))


def _left(seconds: int, over: str = "ended") -> Text:
    return Text(timespan_text(timedelta(seconds=seconds))) if seconds >= 0 else Text(over, "bold red")
