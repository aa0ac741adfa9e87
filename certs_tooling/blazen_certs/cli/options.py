"""Arguments and options that several commands have."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEFAULT_STORE", "AsJson", "Store", "dir_option"]

Store = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The store: where the CA and the nodes' files are.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
DEFAULT_STORE = Path(".mesh/certs")


def dir_option(directory: Path) -> str:
    """Return how a command that the user may copy names this store: empty for the default one."""
    return "" if directory == DEFAULT_STORE else f" --dir {shlex.quote(str(directory))}"
