"""``docs/interop.md`` is true: its programs and its command run, and print what it shows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import ServerSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:16001"
RUN_SECS = 60


def blocks(text: str, language: str) -> list[str]:
    """Return each block of *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def printed(*argv: str, environ: dict[str, str] | None = None) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=RUN_SECS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def my_app(tmp_path: Path, start_peer: Callable[..., Any]) -> str:
    """The address of a peer that serves the README's ``my_app``."""
    (tmp_path / "my_app.py").write_text(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")[0])
    command = ("blazen-peer", "serve", "--app", "my_app", "--node-id", "analyst", "--listen", "127.0.0.1:0")
    return str(start_peer(*command, cwd=tmp_path).address)


@pytest.mark.envoy
def test_mesh(tmp_path: Path, envoy: Path, console_commands: Callable[..., Sequence[Any]]) -> None:
    """The page's mesh file passes the check, which tells of the injected token."""
    [mesh] = blocks(PAGE, "toml")
    (tmp_path / "mesh.toml").write_text(mesh)
    [command] = console_commands(PAGE)
    command.run(tmp_path)


@pytest.mark.interop
@pytest.mark.timeout(120, func_only=True)
def test_rust(programs: Any, my_app: str) -> None:
    """The Rust program is the file that it names, and prints what its comment says."""
    [shown] = blocks(PAGE, "rust")
    assert shown == (ROOT / "tests/interop/rust/src/bin/interop-docs.rs").read_text(encoding="utf-8")
    assert printed(str(programs.docs), my_app) == '{"words":3}'
    assert ADDRESS in shown


@pytest.mark.interop
@pytest.mark.timeout(120, func_only=True)
def test_python(wheel: Any, my_app: str) -> None:
    """The binding's program prints what its comment says."""
    [shown] = blocks(PAGE, "python")
    assert ADDRESS in shown
    assert printed(*wheel.argv, "-c", shown.replace(ADDRESS, my_app), environ=wheel.environ) == "{'words': 3}"


@pytest.mark.parametrize(
    "words",
    [
        f"the server's default holds ({ServerSettings().default_timeout_secs:g} s)",
        f"Requests of up to {ServerSettings().max_message_bytes >> 20} MiB reach our server",
    ],
)
def test_numbers(words: str) -> None:
    """Each number of ours is the one in the code."""
    assert words in PAGE
