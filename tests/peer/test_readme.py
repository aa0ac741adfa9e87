"""``README.md`` is true: its Python and its commands run, its stations and folders exist."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(console_commands: Callable[..., Sequence[Any]]) -> list[str]:
    return [command.command for command in console_commands(README)]


def test_steps_are_served_and_called(
    tmp_path: Path, console_commands: Callable[..., Sequence[Any]], start_peer: Callable[..., Any], free_port: int
) -> None:
    """The first block is served by the README's own command, the second calls it and prints what its comment says."""
    app, caller = python_blocks()
    (tmp_path / "my_app.py").write_text(app)
    (serve,) = (command for command in commands(console_commands) if command.startswith("blazen-peer serve"))
    peer = start_peer(*shlex.split(serve.replace("50051", str(free_port))), "--lame-duck-secs", "0", cwd=tmp_path)
    assert peer.address == f"http://127.0.0.1:{free_port}"
    done = subprocess.run(
        [sys.executable, "-c", caller.replace("50051", str(free_port))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = re.search(r"print\(.*\)\s+# (.+)", caller)
    assert said is not None
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said[1]}\n", "")
    assert peer.end(signal.SIGTERM) == 0


def test_commands_are_targets(console_commands: Callable[..., Sequence[Any]]) -> None:
    """``make demo`` and ``make test`` come first; each ``make`` named is a target; CI runs `make test`."""
    assert [command for command in commands(console_commands) if command.startswith("make")] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert "-m examples.demo" in makefile


def test_stations_exist() -> None:
    """Each of the six stations of a call lives where the table says."""
    table = README.split("| station of a call |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([①-⑥]) .*\| ([^|]+) \|$", table, re.MULTILINE)
    assert "".join(number for number, _ in rows) == "①②③④⑤⑥"
    for number, cell in rows:
        places = re.findall(r"`([^`]+)`", cell)
        assert places, number
        for place in places:
            path = ROOT / place
            assert path.is_dir() if place.endswith("/") else path.is_file(), place


@pytest.mark.parametrize("folder", re.findall(r"`([a-z_]+/)`", README.split("The folders: ")[1]))
def test_folders_exist(folder: str) -> None:
    """Each folder that the README names is there."""
    assert (ROOT / folder).is_dir()


def test_scripts_are_the_projects() -> None:
    """Each command ``blazen-...`` of the README is a console script of the project."""
    scripts = set(re.findall(r"^(blazen-[a-z]+) = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    said = set(re.findall(r"`(blazen-[a-z]+)[ `]", README)) | set(re.findall(r"^\$ (blazen-[a-z]+)", README, re.MULTILINE))
    assert said == scripts
