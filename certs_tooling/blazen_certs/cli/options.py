"""Arguments and options that several commands have."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from blazen_certs.keys import RootKeys
from blazen_peer.errors import ValidationError

__all__ = ["DEFAULT_STORE", "AsJson", "PassphraseFile", "RootDir", "Store", "dir_option", "root_keys"]

PASSPHRASE = "BLAZEN_CERTS_PASSPHRASE"  # noqa: S105 - the variable's name

Store = Annotated[
    Path,
    typer.Option("--dir", metavar="DIR", envvar="BLAZEN_CERTS_DIR", help="The store: where the CA and the nodes' files are."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
RootDir = Annotated[
    Path | None,
    typer.Option(
        "--root-dir", metavar="DIR", envvar="BLAZEN_CERTS_ROOT_DIR", help="Where the root's key is, when not in the store."
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        envvar="BLAZEN_CERTS_PASSPHRASE_FILE",
        help=f"Holds the passphrase of the root's key. Or set {PASSPHRASE}.",
    ),
]
DEFAULT_STORE = Path(".mesh/certs")


def dir_option(directory: Path) -> str:
    """Return how a command that the user may copy names this store: empty for the default one."""
    return "" if directory == DEFAULT_STORE else f" --dir {shlex.quote(str(directory))}"


def root_keys(root_dir: Path | None, passphrase_file: Path | None) -> RootKeys:
    """Return where the roots' keys are, and their passphrase: from the file, or from the environment.

    Raises:
        ValidationError: The passphrase is empty.
        OSError: The file cannot be read.
    """
    text = os.environ.get(PASSPHRASE) if passphrase_file is None else passphrase_file.read_text(encoding="utf-8").rstrip("\r\n")
    if text == "":
        source = PASSPHRASE if passphrase_file is None else str(passphrase_file)
        raise ValidationError(f"{source} is empty: a passphrase of no characters guards nothing")
    return RootKeys(root_dir, None if text is None else text.encode())
