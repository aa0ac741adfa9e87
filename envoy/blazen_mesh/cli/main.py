"""The command ``blazen-mesh``: parse, call, translate. Exit codes: 0 done, 1 problems found or the mesh failed, 2 wrong use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from blazen_mesh.cli.check import check
from blazen_mesh.cli.diff import diff
from blazen_mesh.cli.doctor import doctor
from blazen_mesh.cli.explain import explain
from blazen_mesh.cli.outcome import DONE, PROBLEMS, WRONG_USE, print_json
from blazen_mesh.cli.ready import ready
from blazen_mesh.cli.render import render
from blazen_mesh.cli.sidecar import sidecar
from blazen_mesh.cli.up import up
from blazen_mesh.discovery import PublishError
from blazen_mesh.mesh import MeshError
from blazen_mesh.sidecar import StartError
from blazen_peer.errors import BlazenError

__all__ = ["app", "entry", "main"]

# Typer carries click's classes under different module names from release to release; its own subclass always leads to them.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="blazen-mesh",
    help="The sidecars: who may call whom, as Envoy configuration.\n\n"
    "[bold]Example[/bold]\n\n"
    "  blazen-mesh check --mesh mesh.toml\n\n"
    "  blazen-mesh up --mesh mesh.toml",
    epilog="Exit codes: 0 done, 1 problems found or a process of the mesh failed, 2 wrong use.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(check)
app.command()(explain)
app.command()(diff)
app.command()(render)
app.command()(up)
app.command()(sidecar)
app.command()(ready)
app.command()(doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (None: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments or ["--help"], prog_name="blazen-mesh", standalone_mode=False)
    except _UsageError as error:
        return _fail(arguments, WRONG_USE, "Usage", f"{error.format_message()} See: blazen-mesh --help")
    except (MeshError, PublishError, StartError) as error:
        return _fail(arguments, PROBLEMS, error.kind, str(error))
    except BlazenError as error:
        return _fail(arguments, WRONG_USE, error.kind, str(error))
    except OSError as error:
        return _fail(arguments, WRONG_USE, "File", f"{error.filename or 'input or output'}: {error.strerror or error}")
    if not arguments:
        return WRONG_USE  # the help was shown; nothing was done
    return code if isinstance(code, int) else DONE


def entry() -> None:
    """The console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(arguments: Sequence[str], code: int, kind: str, message: str) -> int:
    if "--json" in arguments:
        print_json({"error": {"kind": kind, "message": message}})
    for line in message.splitlines():
        print(f"blazen-mesh: {line}", file=sys.stderr)
    return code
