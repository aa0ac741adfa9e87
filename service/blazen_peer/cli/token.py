"""``blazen-peer token``: make the secret that all peers of a mesh share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from blazen_peer.errors import ValidationError

__all__ = ["token"]


def token(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there, for its owner alone; keep a token that is there."),
    ] = None,
) -> None:
    """Make a token: 256 random bits, for BLAZEN_PEER_TOKEN, or BLAZEN_PEER_TOKEN_FILE, on every node.

    [bold]Example[/bold]

      blazen-peer token --out token
    """
    made = secrets.token_urlsafe(32)
    if out is None:
        print(made)
        return
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made)
            os.fsync(file.fileno())
        try:
            os.link(draft, out)  # unlike a rename, it never replaces one
            print(f"made {out}")
        except FileExistsError:
            print(f"kept {out}")
        finally:
            draft.unlink()
    except OSError as error:
        raise ValidationError(f"cannot write {out}: {error.strerror}") from None
