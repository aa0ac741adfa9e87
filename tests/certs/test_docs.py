"""``docs/identities.md`` is true: each command in it is run, in order, in an empty directory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "identities.md"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_commands_do_what_is_said(tmp_path: Path, console_commands: Callable[..., Sequence[Any]]) -> None:
    """All commands of the page end with the exit code and print the output that stand there, but for times and numbers."""
    commands = console_commands(DOCUMENT.read_text(encoding="utf-8"))
    assert len(commands) >= 20
    for command in commands:
        printed = command.output(tmp_path)
        assert not command.shown or _lasting(printed) == _lasting(command.shown), command.command


def _lasting(text: str) -> str:
    """Return *text* with a word for each thing that is new with each run, and one space for many."""
    for pattern, word in (
        (r"\d{4}-\d{2}-\d{2}T[\d:]+Z", "TIME"),
        (r"\b[A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}\b", "TIME"),
        (r"\b\d+ (h|min|d|s)( \d+ (h|min))?\b", "SPAN"),
        (r"\d+\.\d years", "SPAN"),
        (r"\b[0-9a-f]{8,64}\b", "HEX"),
        (r"(?m)^([l-][rwx-]{9}|d[rwx-]{9}) \d+ \S+ \S+ +\d+", "MODE"),
        (r"(?m)^total \d+$", "total"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def test_python_on_the_page_runs(tmp_path: Path) -> None:
    """The page's Python runs as it stands."""
    block = re.search(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block is not None
    done = subprocess.run(
        [sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "spiffe://eu.mesh.example/peer/analyst" in done.stdout
    assert done.stdout.splitlines()[1:] == ["kept", "1"]


def test_checks_of_the_page_are_those_of_the_command(tmp_path: Path) -> None:
    """The table names each check that ``verify`` makes, and none else."""
    from blazen_certs import Authority, verify_identity

    authority = Authority.create(tmp_path / "certs", "mesh.test")
    identity = authority.issue("analyst")
    made = verify_identity(identity.path, at=identity.certificate.not_valid_before_utc).checks
    table = DOCUMENT.read_text(encoding="utf-8").split("| check | holds when |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(check.name for check in made)
