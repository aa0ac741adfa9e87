"""``blazen-mesh doctor``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blazen_mesh.cli.options import DEFAULT_MESH, AsJson, MeshFile
from blazen_mesh.cli.outcome import DONE, PROBLEMS, print_json
from blazen_mesh.cli.show import console
from blazen_mesh.doctor import NodeFiles, Report, Visit, examine, find_nodes, read_entries
from blazen_mesh.mesh import load_mesh
from blazen_peer.errors import ValidationError

__all__ = ["doctor"]

_STYLES = {"fine": "green", "problem": "bold red", "warning": "yellow", "unseen": "dim"}
_TOKEN_VARIABLES = ("BLAZEN_PEER_TOKEN", "BLAZEN_PEER_TOKEN_FILE")


def doctor(
    *,
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Only the hops from and to this node.")] = None,
    mesh_file: MeshFile = DEFAULT_MESH,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where `blazen-mesh up` keeps its mesh.")] = Path(
        ".mesh"
    ),
    config_dirs: Annotated[
        list[Path] | None,
        typer.Option("--config-dir", metavar="DIR", help="What `render --out` wrote: a node of this machine."),
    ] = None,
    logs: Annotated[
        list[str] | None, typer.Option("--log", metavar="FILE", help="More log of a sidecar, of any node; - is standard input.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="The token to try; else the environment's, else the mesh's."),
    ] = None,
    since_mins: Annotated[float, typer.Option("--since", min=0, metavar="MINUTES", help="How far back in the logs.")] = 60,
    timeout_secs: Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECS", help="How long one probe may take.")] = 3,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong between the nodes of a mesh, and what mends it.

    Every hop is walked with its caller's own certificate: port, name, TCP, TLS, clocks, policy, token, the peer. Of nodes
    whose files are on this machine, identity and sidecar are looked at too. Both ends' logs are joined, since TLS 1.3 tells a
    caller little. Nothing is changed, and no workflow runs.

    [bold]Example[/bold]

      blazen-mesh doctor --mesh envoy/mesh.toml

      blazen-mesh doctor --node analyst --config-dir /etc/blazen/sidecar --log /var/log/blazen/sidecar.log
    """
    mesh = load_mesh(mesh_file)
    given = logs or []
    files = find_nodes(directory, config_dirs or ())
    if not files and not given:
        raise ValidationError(
            f"no node's files are in {directory}: say where `blazen-mesh up` keeps its mesh with --dir, "
            "or what the sidecar of this machine was given with --config-dir"
        )
    visit = Visit(
        mesh,
        node,
        files=files,
        log_files=[
            *(kept.log for kept in files.values() if kept.log is not None),
            *(Path(name) for name in given if name != "-"),
        ],
        entries=list(read_entries(sys.stdin)) if "-" in given else [],
        since=timedelta(minutes=since_mins),
        timeout_secs=timeout_secs,
    )
    visit = replace(visit, token=_token(token_file, os.environ, files))
    if as_json:
        report = asyncio.run(examine(visit))
        print_json(report.as_object())
        return PROBLEMS if report.problems else DONE
    out = console()
    with out.status("looking") as status:
        report = asyncio.run(examine(replace(visit, on_done=lambda subject: status.update(f"looked at {escape(subject)}"))))
    _show(out, report)
    return PROBLEMS if report.problems else DONE


def _token(given: Path | None, environment: Mapping[str, str], files: Mapping[str, NodeFiles]) -> dict[str, str]:
    """Return the environment that gives ``blazen-peer`` the token.

    Raises:
        ValidationError: *given* is no file.
    """
    if given is not None:
        if not given.is_file():
            raise ValidationError(f"--token-file {given} is no file")
        return {"BLAZEN_PEER_TOKEN_FILE": str(given)}
    if found := {name: environment[name] for name in _TOKEN_VARIABLES if name in environment}:
        return found
    kept = [node.token_file for node in files.values() if node.token_file is not None and node.token_file.is_file()]
    return {"BLAZEN_PEER_TOKEN_FILE": str(kept[0])} if kept else {}


def _show(out: Console, report: Report) -> None:
    table = Table("", "where", "what", box=None, pad_edge=False, header_style="bold")
    table.add_column("found", overflow="fold")
    before = None
    for finding in report.findings:
        found = Text(finding.detail)
        if finding.fix:
            found.append(f"\n-> {finding.fix}", style="cyan" if finding.state != "unseen" else "dim cyan")
        subject = "" if finding.subject == before else finding.subject
        table.add_row(Text(finding.state, style=_STYLES[finding.state]), Text(subject), Text(finding.check), found)
        before = finding.subject
    out.print(table)
    count = {state: sum(finding.state == state for finding in report.findings) for state in _STYLES}
    told = ", ".join(f"{count[state]} {state}" for state in _STYLES if count[state])
    if report.problems:
        causes = ", ".join(dict.fromkeys(finding.cause or "" for finding in report.problems))
        out.print(Text.assemble(("problems: ", "bold red"), f"{causes} ({told})"))
    else:
        out.print(
            Text.assemble(
                ("all fine" if not count["unseen"] else "nothing wrong is to be seen from here", "bold green"), f" ({told})"
            )
        )
