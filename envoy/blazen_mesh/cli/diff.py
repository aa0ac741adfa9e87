"""``blazen-mesh diff``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from blazen_mesh.cli.options import AsJson
from blazen_mesh.cli.outcome import DONE, PROBLEMS, print_json
from blazen_mesh.cli.show import console
from blazen_mesh.diff import diff as compared
from blazen_mesh.mesh import Mesh, MeshError, load_mesh
from blazen_peer.errors import ValidationError

__all__ = ["diff"]

_SUMMARY = {
    "widened": "wider: somebody has to agree to this",
    "narrowed": "narrower: nothing is allowed that was not",
    "moved": "the same is allowed",
    "same": "no difference",
}


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The mesh file as it was.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The mesh file as it is to be.")],
    as_json: AsJson = False,
) -> int:
    """Say in words what a change of the mesh file widens, what it narrows, and what it merely moves.

    Exit code 0 when nothing is allowed that was not, 1 when something is, 2 when a file cannot be read: it can gate a merge.

    [bold]Example[/bold]

      blazen-mesh diff main.toml envoy/mesh.toml
    """
    found = compared(_load(old), _load(new), datetime.now(UTC).date())
    if as_json:
        print_json(found.to_object())
    else:
        out = console()
        for sign, style, lines in (("+", "red", found.widened), ("-", "green", found.narrowed), ("~", "cyan", found.moved)):
            for line in lines:
                out.print(Text.assemble((f"{sign} ", f"bold {style}"), line), soft_wrap=True, highlight=False)
        out.print(_SUMMARY[found.verdict], soft_wrap=True, highlight=False)
    return PROBLEMS if found.widened else DONE


def _load(path: Path) -> Mesh:
    # Exit code 1 is an answer here, so a file that cannot be compared must not give it.
    try:
        return load_mesh(path)
    except MeshError as error:
        lines = (line if line.startswith(f"{path}: ") else f"{path}: {line}" for line in error.problems)
        raise ValidationError("\n".join(lines)) from None
