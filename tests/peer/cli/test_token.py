"""``blazen-peer token``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blazen_peer.auth import TokenKeys

Command = Callable[..., Any]


def test_printed(command: Command) -> None:
    """Each token is another, and good for a peer."""
    first, second = command("token"), command("token")
    assert (first.code, first.err) == (0, "")
    assert first.out != second.out
    assert TokenKeys.from_tokens(first.out.strip(), second.out.strip())


def test_written_once(command: Command, tmp_path: Path) -> None:
    """The file is its owner's alone; a second time keeps it, and nothing else is left beside it."""
    file = tmp_path / "secrets" / "token"
    assert command("token", "--out", str(file)) == (0, f"made {file}\n", "")
    made = file.read_text()
    assert TokenKeys.from_tokens(made)
    assert file.stat().st_mode & 0o777 == 0o600
    assert command("token", "--out", str(file)) == (0, f"kept {file}\n", "")
    assert file.read_text() == made
    assert list(file.parent.iterdir()) == [file]


def test_no_place(command: Command, one_line: Callable[..., str], tmp_path: Path) -> None:
    """One line says why it could not be written."""
    (tmp_path / "file").write_text("")
    outcome = command("token", "--out", str(tmp_path / "file" / "token"))
    assert outcome.code == 2
    assert one_line(outcome) == f"cannot write {tmp_path}/file/token: File exists"
