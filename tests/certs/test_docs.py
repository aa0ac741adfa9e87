"""``docs/identities.md`` is true: each command in it is run, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "identities.md"
EXITS = re.compile(r"\s+# exits ([0-9]+)$")


def commands_of(text: str) -> list[tuple[str, int]]:
    """Return each command of the ``console`` blocks, with the exit code that it says, 0 where it says none."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                said = EXITS.search(line)
                found.append((EXITS.sub("", line[2:]), int(said[1]) if said else 0))
    return found


def test_commands_do_what_is_said(tmp_path: Path) -> None:
    """All commands of the page end with the exit code that stands there."""
    commands = commands_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(commands) >= 10
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command, code in commands:
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"


def test_python_on_the_page_runs(tmp_path: Path) -> None:
    """The page's Python runs as it stands."""
    block = re.search(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block is not None
    done = subprocess.run(
        [sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "spiffe://mesh.example/peer/analyst" in done.stdout


def test_checks_of_the_page_are_those_of_the_command(tmp_path: Path) -> None:
    """The table names each check that ``verify`` makes, and none else."""
    from blazen_certs import Authority, verify_identity

    authority = Authority.create(tmp_path / "certs", "mesh.test")
    identity = authority.issue("analyst")
    made = verify_identity(identity.path, at=identity.certificate.not_valid_before_utc).checks
    table = DOCUMENT.read_text(encoding="utf-8").split("| check | holds when |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(check.name for check in made)
