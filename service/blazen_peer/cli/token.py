"""``blazen-peer token``: make the secret that all peers of a mesh share, or bring it to where a peer reads it."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from blazen_peer.auth import TokenKeys
from blazen_peer.errors import ValidationError

__all__ = ["token"]

_MAX_BYTES = 4096


def token(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there, for its owner alone; keep a token that is there."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE|-", help="With --out: write this one, in place of what is there."),
    ] = None,
    group: Annotated[bool, typer.Option("--group", help="With --out: let the owner's group read it too.")] = False,
) -> None:
    """Make a token: 256 random bits, for BLAZEN_PEER_TOKEN, or BLAZEN_PEER_TOKEN_FILE, on every node.

    [bold]Example[/bold]

      blazen-peer token --out token

      ssh node-b blazen-peer token --out token --from - < token
    """
    if out is None:
        if source is not None or group:
            raise ValidationError("--from and --group go with --out FILE")
        print(secrets.token_urlsafe(32))
        return
    given = None if source is None else _given(source)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o640 if group else 0o600)
            file.write(given or secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        if given is not None:
            draft.replace(out)
            print(f"wrote {out}")
            return
        try:
            os.link(draft, out)  # unlike a rename, it never replaces one
            print(f"made {out}")
        except FileExistsError:
            print(f"kept {out}")
        finally:
            draft.unlink()
    except OSError as error:
        raise ValidationError(f"cannot write {out}: {error.strerror}") from None


def _given(source: Path) -> str:
    """Return the token in *source*, once it is one that a peer takes."""
    name = "standard input" if str(source) == "-" else str(source)
    try:
        if str(source) == "-":
            raw = sys.stdin.buffer.read(_MAX_BYTES)
        else:
            with source.open("rb") as file:
                raw = file.read(_MAX_BYTES)
        text = raw.decode("ascii").strip()
    except OSError as error:
        raise ValidationError(f"cannot read the token from {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValidationError(f"{name} holds no token: make one with blazen-peer token") from None
    if not text:
        raise ValidationError(f"{name} is empty: make a token with blazen-peer token")
    TokenKeys.from_tokens(text)
    return text
