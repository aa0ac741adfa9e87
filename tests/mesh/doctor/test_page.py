"""``docs/diagnosis.md`` is true: its commands print what stands there, and its dictionary is the doctor's own."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.doctor import CAUSES

PAGE = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
WAIT_SECS = 60.0


def dictionary() -> list[str]:
    """Return the table that the page must hold."""
    rows = ["| cause | what it is | what mends it |", "|---|---|---|"]
    for cause in CAUSES.values():
        title, fix = (re.sub(r"\{(\w+)\}", r"*\1*", text) for text in (cause.title, cause.fix))
        rows.append(f"| `{cause.key}` | {title} | {fix} |")
    return rows


def test_dictionary() -> None:
    """The page's dictionary is that of the code, word for word and in its order."""
    section = PAGE.split("## The dictionary")[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == dictionary()


def test_causes_that_the_page_names() -> None:
    """Every cause that the table of logs names exists."""
    section = PAGE.split("## What the logs alone tell")[1]
    named = {name for line in section.splitlines() for name in re.findall(r"`([a-z-]+)`", line.rpartition(" | ")[2])}
    assert named
    assert named <= set(CAUSES)


def settled(command: Any, cwd: Path) -> None:
    """Run *command* until it does what the page says: what was revoked a moment ago may still be on its way."""
    until = time.monotonic() + WAIT_SECS
    while True:
        try:
            return command.run(cwd)
        except AssertionError:
            if "doctor" not in command.command or time.monotonic() > until:
                raise


@pytest.mark.envoy
@pytest.mark.slow
@pytest.mark.usefixtures("envoy")
def test_commands(short_dir: Path, ports: Callable[[], int], start_peer: Any, console_commands: Any) -> None:
    """The page's mesh runs, and every command of the page ends as it says and prints what it shows."""
    text = PAGE
    for port in sorted(set(re.findall(r"(?<=127\.0\.0\.1:)[0-9]{5}|(?<=analyst = )[0-9]{5}", text))):
        text = text.replace(port, str(ports()))
    for block in re.findall(r"^```(?:toml|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        (short_dir / block.split("\n")[0].removeprefix("# ")).write_text(block)
    commands = console_commands(text)
    assert len(commands) >= 6
    running = []
    for command in commands:
        if command.command.endswith(" &"):
            running.append(start_peer("/bin/sh", "-c", f"exec {command.command.removesuffix(' &')}", cwd=short_dir))
            running[-1].wait_for("ready; Ctrl-C stops it", WAIT_SECS)
        else:
            settled(command, short_dir)
    for process in running:
        assert process.end(signal.SIGTERM, secs=WAIT_SECS) == 0
