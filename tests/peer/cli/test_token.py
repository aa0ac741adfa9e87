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


def test_brought_from_elsewhere(command: Command, one_line: Callable[..., str], tmp_path: Path) -> None:
    """``--from`` puts a token in place of the one before; what no peer would take is refused, and changes nothing."""
    file, brought = tmp_path / "token", tmp_path / "brought"
    assert command("token", "--out", str(file), "--group").code == 0
    assert file.stat().st_mode & 0o777 == 0o640
    brought.write_text("t" * 43 + "\n")
    assert command("token", "--out", str(file), "--from", str(brought)) == (0, f"wrote {file}\n", "")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("t" * 43, 0o600)
    brought.write_text("short")
    refused = command("token", "--out", str(file), "--from", str(brought))
    assert refused.code == 2
    assert "short" not in one_line(refused)
    brought.write_text("\n")
    assert one_line(command("token", "--out", str(file), "--from", str(brought))).endswith(
        "make a token with blazen-peer token"
    )
    assert file.read_text() == "t" * 43
    assert one_line(command("token", "--group")) == "--from and --group go with --out FILE"
