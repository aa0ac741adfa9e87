"""``docs/deploy.md`` is true: its commands are run, on four machines that are folders of one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deploy.md"
LAN = Path(__file__).parent / "lan.yaml"
MACHINES = ("a", "b", "c", "d")
# What a clone has and the engine is sent, and the files that are copied in the walk.
CLONE = (".dockerignore", ".env.example", "compose.node.yaml", "pyproject.toml", "requirements.txt", "requirements-build.txt")
CLONE += ("README.md", "LICENSE", "service", "envoy", "certs_tooling", "examples")
# Copies between the folders, as scp does between machines: scp -r FILE... MACHINE:blazen/
SCP = """#!/bin/sh
for to; do :; done
machine=${to%%:*}
[ "$1" = -r ] && shift
while [ $# -gt 1 ]; do cp -r "$1" "$MACHINES/$machine/"; shift; done
"""


@dataclass(frozen=True)
class Command:
    """One command of the page: its machine (none in the first part), its text, its exit code, what is shown of it."""

    machine: str
    text: str
    code: int
    shown: str


def commands() -> list[Command]:
    """The page's commands in order; a here-document belongs to its command."""
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^(?=[a-d]?\$ )", block, flags=re.MULTILINE)[1:]:
            machine, _, rest = part.partition("$ ")
            text, _, shown = rest.partition("\n")
            if "<<'END'" in text:
                document, _, shown = shown.partition("END\n")
                text += f"\n{document}END"
            said = re.search(r"\s+# exits ([0-9]+)$", text)
            found.append(Command(machine, re.sub(r"\s+# exits [0-9]+$", "", text), int(said[1]) if said else 0, shown))
    return found


def run(command: Command, directory: Path, env: dict[str, str]) -> str:
    """Run *command* in *directory*; its exit code is what the page says."""
    done = subprocess.run(
        ["bash", "-c", command.text],
        cwd=directory,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == command.code, f"{command.machine}$ {command.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_on_one_machine(
    engine: str, left_of: Callable[[str], Any], free_port: int, matches: Callable[[str, str], bool]
) -> None:
    """The commands for a mesh on one machine, from nothing; the last of them leaves nothing."""
    mine = [command for command in commands() if not command.machine]
    last = mine.pop([command.text for command in mine].index("docker compose down -v"))
    project = f"blazen-test-{os.getpid()}-one"
    env = {"COMPOSE_PROJECT_NAME": project, "JAEGER_PORT": str(free_port)}
    try:
        for command in mine:
            printed = run(command, ROOT, env)
            assert matches(command.shown or "...", printed), f"$ {command.text}\n{printed}"
    finally:
        run(last, ROOT, env)
    assert left_of(project) == {"containers": [], "volumes": [], "networks": []}


@pytest.fixture
def machines(
    engine: str, tmp_path: Path, left_of: Callable[[str], Any], network: Callable[[], str]
) -> Iterator[dict[str, Any]]:
    """Four folders with a clone each, and the variables that make an engine's corner of each of them; all taken down."""
    lan = network()
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    (bin_directory / "scp").write_text(SCP)
    (bin_directory / "scp").chmod(0o755)
    found: dict[str, Any] = {}
    for name in MACHINES:
        home = tmp_path / name
        home.mkdir()
        for part in CLONE:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, home / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, home / part)
        env = {
            "COMPOSE_FILE": f"compose.node.yaml{os.pathsep}{LAN}",
            "COMPOSE_PROJECT_NAME": f"blazen-test-{os.getpid()}-{name}",
            # Compose labels an image with the project that built it: the next "machine" to build would change this one's.
            "PAUSE_IMAGE": f"blazen-test-pause-{name}",
            "LAN": lan,
            "MACHINES": str(tmp_path),
            "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        }
        found[name] = (home, env)
    yield found
    for home, env in found.values():
        if (home / ".env").exists():
            down = "docker compose --profile '*' down --volumes --timeout 1"
            run(Command("", down, 0, ""), home, env)
        run(Command("", f"docker image rm --force {env['PAUSE_IMAGE']}", 0, ""), home, env)
        assert left_of(env["COMPOSE_PROJECT_NAME"]) == {"containers": [], "volumes": [], "networks": []}


def test_walk(machines: dict[str, Any], matches: Callable[[str, str], bool]) -> None:
    """Three machines, a fourth added while they run, and taken out again: each command ends and prints as the page shows."""
    walk = [command for command in commands() if command.machine]
    assert {command.machine for command in walk} == set(MACHINES)
    namespaces: set[str] = set()
    for command in walk:
        printed = run(command, *machines[command.machine])
        if command.shown.strip():
            assert matches(command.shown, printed), f"{command.machine}$ {command.text}\n{printed}"
        if command.machine == "b" and " up " in command.text:
            namespaces.add(run(Command("b", "docker compose ps --quiet node", 0, ""), *machines["b"]))
    assert len(namespaces) == 1, "the update of b has replaced the container that holds its network"
