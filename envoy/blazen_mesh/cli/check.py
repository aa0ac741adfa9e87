"""``blazen-mesh check``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blazen_mesh.binary import HOW_TO_GET_IT, find_envoy
from blazen_mesh.check import expired, notes, refused_by_envoy
from blazen_mesh.cli.options import DEFAULT_MESH, AsJson, EnvoyBinary, MeshFile
from blazen_mesh.cli.outcome import DONE, PROBLEMS, print_json
from blazen_mesh.cli.show import console, node_objects
from blazen_mesh.mesh import Mesh, MeshError, load_mesh

__all__ = ["check"]


def check(
    mesh_file: MeshFile = DEFAULT_MESH,
    envoy: EnvoyBinary = None,
    no_envoy: Annotated[bool, typer.Option("--no-envoy", help="Do not ask Envoy what it thinks.")] = False,
    as_json: AsJson = False,
) -> int:
    """Look for mistakes and contradictions in a mesh file, and show who may call whom.

    Every node's configuration is rendered with throwaway secrets and given to Envoy, where there is one.

    [bold]Example[/bold]

      blazen-mesh check --mesh envoy/mesh.toml
    """
    mesh: Mesh | None = None
    problems: Sequence[str] = ()
    day = datetime.now(UTC).date()
    try:
        mesh = load_mesh(mesh_file)
    except MeshError as error:
        problems = error.problems
    binary = None if no_envoy else find_envoy(envoy)
    if mesh:
        problems = expired(mesh, day) + (refused_by_envoy(mesh, binary) if binary else [])
    known = notes(mesh, day) if mesh else []
    if as_json:
        print_json(_as_object(mesh, problems, known, binary))
        return PROBLEMS if problems else DONE
    out = console()
    if mesh:
        out.print(_flow_table(mesh))
        for note in known:
            out.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    for problem in problems:
        out.print(Text.assemble(("problem: ", "bold red"), problem), soft_wrap=True)
    if problems:
        return PROBLEMS
    if binary:
        out.print(f"fine: the file, and Envoy takes the configuration of every node ({len(mesh.peers) if mesh else 0})")
    else:
        out.print("fine: the file; Envoy was not asked" + ("" if no_envoy else f", since there is none: {HOW_TO_GET_IT}"))
    return DONE


def _flow_table(mesh: Mesh) -> Table:
    """Return every flow; the columns on data and ends are there where the mesh has any."""
    ends = any(flow.until for flow in mesh.flows)
    headings = ["from", "by", "to", "workflows", *(["data"] if mesh.data else []), *(["until"] if ends else []), "why"]
    table = Table(*headings, title=f"who may call what in {mesh.trust_domain}", title_justify="left")
    for flow in mesh.flows:
        ways = [mesh.way(flow.caller, flow.callee, name) for name in mesh.classes if name in flow.data]
        ways = ways or [mesh.way(flow.caller, flow.callee)]
        row = [flow.caller, "\n".join(way.address for way in ways), flow.callee, "\n".join(flow.workflows)]
        row += ["\n".join(str(way.data_class) for way in ways)] if mesh.data else []
        row += [str(flow.until or "")] if ends else []
        table.add_row(*map(escape, (*row, flow.reason)))
    return table


def _as_object(mesh: Mesh | None, problems: Sequence[str], known: Sequence[str], envoy: Path | None) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": list(problems),
        "notes": list(known),
        "envoy": str(envoy) if envoy else None,
        "nodes": node_objects(mesh) if mesh else [],
        "flows": [flow.model_dump(mode="json", by_alias=True) for flow in mesh.flows] if mesh else [],
    }
