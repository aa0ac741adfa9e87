"""``blazen-mesh check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blazen_mesh.binary import HOW_TO_GET_IT, find_envoy
from blazen_mesh.check import notes, refused_by_envoy
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
    problems: tuple[str, ...] = ()
    try:
        mesh = load_mesh(mesh_file)
    except MeshError as error:
        problems = error.problems
    binary = None if no_envoy else find_envoy(envoy)
    if mesh and binary:
        problems = tuple(refused_by_envoy(mesh, binary))
    if as_json:
        print_json(_as_object(mesh, problems, binary))
        return PROBLEMS if problems else DONE
    out = console()
    if mesh:
        out.print(_flow_table(mesh))
        for note in notes(mesh):
            out.print(Text.assemble(("note: ", "yellow"), note))
    for problem in problems:
        out.print(Text.assemble(("problem: ", "bold red"), problem))
    if problems:
        return PROBLEMS
    if binary:
        out.print(f"fine: the file, and Envoy takes the configuration of every node ({len(mesh.peers) if mesh else 0})")
    else:
        out.print("fine: the file; Envoy was not asked" + ("" if no_envoy else f", since there is none: {HOW_TO_GET_IT}"))
    return DONE


def _flow_table(mesh: Mesh) -> Table:
    table = Table("from", "by", "to", "at", "why", title=f"who may call whom in {mesh.trust_domain}", title_justify="left")
    for flow in mesh.flows:
        port = mesh.peers[flow.caller].egress[flow.callee].port
        table.add_row(
            flow.caller, f"127.0.0.1:{port}", flow.callee, str(mesh.peers[flow.callee].sidecar), escape(flow.why.strip())
        )
    return table


def _as_object(mesh: Mesh | None, problems: Sequence[str], envoy: Path | None) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": list(problems),
        "notes": notes(mesh) if mesh else [],
        "envoy": str(envoy) if envoy else None,
        "nodes": node_objects(mesh) if mesh else [],
        "flows": [{"from": flow.caller, "to": flow.callee, "why": flow.why} for flow in mesh.flows] if mesh else [],
    }
