"""``blazen-mesh explain``."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated

import typer
from rich.text import Text

from blazen_mesh.cli.options import DEFAULT_MESH, AsJson, MeshFile
from blazen_mesh.cli.outcome import DONE, PROBLEMS, print_json
from blazen_mesh.cli.show import console
from blazen_mesh.explain import Call, Explanation, method_path
from blazen_mesh.explain import explain as explained
from blazen_mesh.mesh import load_mesh
from blazen_peer.errors import ValidationError

__all__ = ["explain"]


def explain(
    *,
    caller: Annotated[str, typer.Option("--from", metavar="NODE", help="Who calls.")],
    callee: Annotated[str, typer.Option("--to", metavar="NODE", help="Whom.")],
    workflow: Annotated[str, typer.Option("--workflow", metavar="NAME", help="What.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="CLASS", help="With data of which class, in a mesh that has classes.")
    ] = None,
    declares: Annotated[
        str | None,
        typer.Option("--declares", metavar="CLASS", help="What the workflow declares; as lax as the call needs, otherwise."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="The gRPC method, or its whole path.")
    ] = "InvokeSubWorkflow",
    on: Annotated[str | None, typer.Option("--on", metavar="DAY", help="Ask about that day (UTC), such as 2027-01-31.")] = None,
    mesh_file: MeshFile = DEFAULT_MESH,
    as_json: AsJson = False,
) -> int:
    """Say whether a call is allowed, by which flow, at which place it is refused, and what would have to change.

    [bold]Example[/bold]

      blazen-mesh explain --from intake --to analyst --workflow analyze-pipeline
    """
    call = Call(caller, callee, workflow, data, declares, method_path(method))
    found = explained(load_mesh(mesh_file), call, _day(on))
    if as_json:
        print_json(found.to_object())
    else:
        out = console()
        for line in _lines(found):
            out.print(line, soft_wrap=True, highlight=False)
    return DONE if found.decision.allowed else PROBLEMS


def _day(text: str | None) -> date:
    try:
        return date.fromisoformat(text) if text is not None else datetime.now(UTC).date()
    except ValueError:
        raise ValidationError(f"--on: {text!r} is not a day like 2027-01-31") from None


def _lines(found: Explanation) -> list[Text]:
    decision, call = found.decision, found.call
    if decision.allowed and decision.flow:
        until = f" (until {decision.flow.until})" if decision.flow.until else ""
        lines = [Text.assemble(("ALLOW", "bold green"), f" by flows[{found.flow}] {decision.flow}{until}: {decision.flow.why}")]
    else:
        node = call.caller if decision.place == "egress" else call.callee
        lines = [Text.assemble(("DENY", "bold red"), f" at the {decision.place} of {node}: {decision.reason}")]
    told = {decision.reason}
    for one, where in zip(found.places, found.where, strict=True):
        word = ("allow", "green") if one.allowed else ("deny", "red")
        text = where if one.allowed else "" if one.reason in told else one.reason
        told.add(one.reason)
        lines.append(Text.assemble(f"  {one.place + ':':<9}", word, f"  {text}" if text else ""))
    changes = (("change" if not place else "and", text) for place, text in enumerate(found.changes))
    rows = (("if", found.assumes), *changes, ("instead", ", ".join(found.instead)))
    return [*lines, *(Text.assemble((f"  {name + ':':<9}", "bold"), text) for name, text in rows if text)]
