"""``docs/data-classes.md`` is true: its mesh, application, commands and Python are run in order, with real sidecars."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.envoy, pytest.mark.slow]

PAGE = (Path(__file__).parents[3] / "docs" / "data-classes.md").read_text(encoding="utf-8")
PORTS = ("15001", "15002", "16001", "16002", "50051", "50052")
UP = "blazen-mesh up &"
EXPORT = "export "
START_SECS = 60.0


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_page(
    short_dir: Path,
    ports: Callable[[], int],
    envoy: Path,
    console_commands: Callable[..., Sequence[Any]],
    start_peer: Callable[..., Any],
    matches: Callable[[str, str], bool],
) -> None:
    """Each command prints what stands below it; the line of the log is there; then the Python runs beside the mesh."""
    page = PAGE
    for port in PORTS:
        page = page.replace(port, str(ports()))
    app, *python = blocks(page, "python")
    (short_dir / "my_app.py").write_text(app)
    (short_dir / "mesh.toml").write_text(blocks(page, "toml")[0])
    env: dict[str, str] = {}
    mesh: Any = None
    commands = console_commands(page)
    assert len(commands) == 14
    for command in commands:
        if command.command == UP:
            up = ("-m", "blazen_mesh", "up", "--mesh", "mesh.toml", "--envoy", str(envoy), "--ready-file", "ready")
            mesh = start_peer(sys.executable, *up, cwd=short_dir, env={"PYTHONPATH": str(short_dir)})
            until = time.monotonic() + START_SECS
            while not (short_dir / "ready").exists():
                assert mesh.process.poll() is None, mesh.log
                assert time.monotonic() < until, mesh.log
                time.sleep(0.05)
        elif command.command.startswith(EXPORT):
            env = dict(item.split("=") for item in command.command.removeprefix(EXPORT).split())
        else:
            command.run(short_dir, env)
    [line] = blocks(page, "text")
    assert line.strip() in mesh.log
    code = "\n".join(python)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=short_dir,
        env={**env, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert mesh.end(signal.SIGTERM, secs=60) == 0
