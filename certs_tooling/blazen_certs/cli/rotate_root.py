"""``blazen-certs rotate-root``: replace the root in three guarded phases."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, PassphraseFile, RootDir, Store, dir_option, root_keys
from blazen_certs.cli.output import CHECK_FAILED, print_json, print_lines
from blazen_certs.cli.sidecars import Sidecars, SidecarSecs, await_sidecars, sidecars_of
from blazen_certs.issued import known_nodes
from blazen_certs.rotation import Rotation, advance_rotation, read_rotation
from blazen_certs.sidecar import look_at_sidecar
from blazen_certs.upkeep import Kept

__all__ = ["Action", "rotate_root"]

_WORDS = {
    "none": "one root, generation {new}",
    "trust-both": "phase 1 of 3: every node is to trust both roots, generation {old} and {new}; nothing comes from {new} yet",
    "issue-new": "phase 2 of 3: identities come from generation {new}; generation {old} is still trusted",
}
_UNASKED_SECS = 1.0  # what a sidecar that nobody asks gets to take up a publication: ten times what it needs
_NEXT = {
    "none": "begin: trust a second root",
    "trust-both": "issue from the new root",
    "issue-new": "phase 3 of 3: drop the old root",
}


class Action(StrEnum):
    """What ``rotate-root`` is to do."""

    NEXT = "next"
    STATUS = "status"


def rotate_root(
    action: Annotated[
        Action, typer.Argument(metavar="[next|status]", help="Take the next step, or say where it stands and what blocks it.")
    ] = Action.NEXT,
    sidecar: Sidecars = None,
    sidecar_secs: SidecarSecs = 10.0,
    root_dir: RootDir = None,
    passphrase_file: PassphraseFile = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Replace the root without a refused call: trust both, issue from the new, drop the old. Run it once for each phase.

    A phase begins only when every node whose certificate is good shows what it depends on: the new bundle and lists, then a new
    certificate; with --sidecar, when its sidecar serves that. Otherwise exit code 1, and the nodes are named. A call that was
    killed is simply repeated.

    [bold]Example[/bold]

      blazen-certs rotate-root --sidecar analyst=/run/blazen/analyst/admin.sock

      blazen-certs rotate-root status
    """
    authority, now = Authority.open(directory, keys=root_keys(root_dir, passphrase_file)), datetime.now(UTC)
    sidecars = sidecars_of(sidecar, known_nodes(directory))
    if action is Action.STATUS:
        found = read_rotation(authority, now=now, sidecars=sidecars)
        _show(found, None, (), as_json, dir_option(directory))
        return
    before = {node: look_at_sidecar(path) for node, path in sidecars.items()}
    step = advance_rotation(authority, now=now, sidecars=sidecars)
    await_sidecars(authority, step.nodes, sidecars, before, sidecar_secs)
    if any(kept.action in ("renewed", "republished") and kept.node not in sidecars for kept in step.nodes):
        time.sleep(_UNASKED_SECS)
    after = read_rotation(authority, now=now, sidecars=sidecars) if step.advanced else step.after
    _show(after, step.advanced, step.nodes, as_json, dir_option(directory))
    if not step.advanced or any(kept.action == "failed" for kept in step.nodes):
        raise typer.Exit(CHECK_FAILED)


def _show(found: Rotation, advanced: bool | None, nodes: tuple[Kept, ...], as_json: bool, where: str) -> None:
    if as_json:
        value: dict[str, Any] = {
            "phase": found.phase,
            "old": found.old,
            "new": found.new,
            "next": found.next,
            "blocking": dict(found.blocking),
        }
        if advanced is not None:
            value |= {"advanced": advanced, "nodes": {kept.node: kept.action for kept in nodes}}
        print_json(value)
        return
    lines: list[Text | str] = []
    if advanced is False:
        lines.append(Text("not advanced: a node is not ready", "bold red"))
    lines.append(Text(_WORDS[found.phase].format(old=found.old, new=found.new), "bold"))
    lines += [
        Text.assemble(
            (f"  {kept.action.ljust(11)} ", "bold red" if kept.action == "failed" else ""), f"{kept.node}  {kept.detail}"
        )
        for kept in nodes
    ]
    lines += [Text.assemble(("  blocks      ", "yellow"), f"{node}: {reason}") for node, reason in found.blocking.items()]
    if found.phase != "none" or advanced is None:
        ready = "" if not found.blocking else " (once nothing blocks it)"
        lines.append(Text.assemble(f"next: {_NEXT[found.phase]}{ready}: ", (f"blazen-certs rotate-root{where}", "bold")))
    print_lines(lines)
