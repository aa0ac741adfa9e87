"""``docs/sidecars.md`` is true: its commands, its Python, its numbers, and a test for each trap."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh import cli, limits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sidecars.md").read_text(encoding="utf-8")
TRAPS = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
NUMBERS = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def tests() -> str:
    """Every test function's name, a line each."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return "\n".join(name for source in sources for name in re.findall(r"def (test_\w+)", source))


def test_every_trap_has_a_row() -> None:
    """The table has the numbers 1 to 24, each once."""
    assert [int(number) for number, _ in TRAPS] == list(range(1, 25))


@pytest.mark.parametrize(("number", "held"), TRAPS, ids=[number for number, _ in TRAPS])
def test_every_trap_is_held(number: str, held: str, tests: str) -> None:
    """What a row names are tests that exist; those with a number have the row's."""
    for name in re.findall(r"`(test_\w+)`", held):
        assert re.search(rf"^{name}", tests, re.MULTILINE), name
        assert not name.startswith("test_trap_") or name == f"test_trap_{int(number):02}"
    assert "`test_" in held


@pytest.mark.parametrize(("name", "value"), NUMBERS, ids=[name for name, _ in NUMBERS])
def test_numbers(name: str, value: str) -> None:
    """The numbers are those that are rendered."""
    assert str(getattr(limits, name)) == value


def test_commands_and_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    console_commands: Callable[..., Sequence[Any]],
    matches: Callable[[str, str], bool],
) -> None:
    """The command prints what is shown, and the Python runs after it."""
    shutil.copytree(ROOT / "envoy", tmp_path / "envoy", ignore=shutil.ignore_patterns("blazen_mesh", "rendered"))
    monkeypatch.chdir(tmp_path)
    (command,) = console_commands(PAGE)
    assert cli.main(command.command.split()[1:]) == command.code
    assert matches(command.shown, capsys.readouterr().out)
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(snippet, "docs/sidecars.md", "exec"), {})  # noqa: S102 - our own page
