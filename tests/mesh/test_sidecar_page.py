"""``docs/running-a-sidecar.md`` is true: its commands run in order, against a real Envoy, with the numbers of the code."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import DRAIN_NOTICE_SECS, END_SECS
from blazen_mesh.supervisor import FAILED_STARTS
from blazen_mesh.watch import STUCK_SECS

PAGE = (Path(__file__).parents[2] / "docs" / "running-a-sidecar.md").read_text(encoding="utf-8")
PORTS = ("15001", "15002", "50051", "50052", "16001")


@pytest.fixture
def home(short_dir: Path) -> Iterator[Path]:
    """An empty directory; the processes whose ids are written in it are gone in the end."""
    yield short_dir
    for path in short_dir.glob("*.pid"):
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.envoy
@pytest.mark.slow
def test_sidecar_page(
    home: Path, envoy: Path, ports: Callable[[], int], console_commands: Callable[..., Sequence[Any]]
) -> None:
    """Each command prints what stands below it, with the exit code behind it."""
    assert envoy
    page = PAGE
    for written in PORTS:
        page = page.replace(written, str(ports()))
    block = re.search(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    (home / "mesh.toml").write_text(block[1])
    commands = console_commands(page)
    for command in commands:
        command.run(home)
    assert len(commands) >= 18


@pytest.mark.parametrize(
    "words",
    [
        f"`--wait-secs` ({Settings().wait_secs:g})",
        f"`--drain-secs` ({Settings().drain_secs:g})",
        f"killed after {END_SECS:g} seconds",
        pytest.param("six times in a row", id="failed-starts"),
        pytest.param("after five seconds", id="stuck"),
        pytest.param("For a second new connections", id="notice"),
    ],
)
def test_numbers(words: str) -> None:
    """Each number of the page is the one in the code."""
    assert words in PAGE
    assert (FAILED_STARTS, STUCK_SECS, DRAIN_NOTICE_SECS) == (6, 5.0, 1)
