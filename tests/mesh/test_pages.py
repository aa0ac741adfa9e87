"""``docs/policy.md`` and ``docs/mesh.md`` are true: their meshes, commands and output, the Python, the table of keys."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest

from blazen_mesh import cli
from blazen_mesh.check import SOON_DAYS
from blazen_mesh.mesh import Mesh, load_mesh, parse_mesh
from blazen_mesh.mesh_tables import Flow, Peer, Run

ROOT = Path(__file__).parents[2]
POLICY = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
MESH = (ROOT / "docs" / "mesh.md").read_text(encoding="utf-8")
DAYS = {"2027-01-31": 60, "2027-02-01": 61}


def block(text: str, language: str) -> str:
    """Return the first block of *language* in *text*."""
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def policy_page() -> str:
    """Return the page with its exception still to end, whenever the test runs."""
    text = POLICY
    for written, days in DAYS.items():
        text = text.replace(written, str(datetime.now(UTC).date() + timedelta(days=days)))
    return text


RunCommands = Callable[[str], int]


@pytest.fixture
def run_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    console_commands: Callable[..., Sequence[Any]],
    matches: Callable[[str, str], bool],
) -> RunCommands:
    """Run a page's commands in an empty directory, ours in this process; each must print and exit as said. Returns how many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(text: str) -> int:
        commands = console_commands(text)
        for command in commands:
            if command.command.startswith("blazen-mesh "):
                assert cli.main(shlex.split(command.command)[1:]) == command.code, command.command
                captured = capsys.readouterr()
                printed = captured.out + captured.err
                assert matches(command.shown, printed), f"{command.command}\n{printed}"
            else:
                command.run(tmp_path)
        return len(commands)

    return run


def test_policy_page(run_commands: RunCommands, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command prints what stands below it, with the exit code behind it; the Python at the end runs on the result."""
    text = policy_page()
    Path("mesh.toml").write_text(block(text, "toml"))
    assert run_commands(text) >= 15
    exec(compile(block(text, "python"), "policy.md", "exec"), {})  # noqa: S102
    assert "no flow names the workflow 'delete'" in capsys.readouterr().out


@pytest.mark.envoy
def test_mesh_page(run_commands: RunCommands, envoy: Path) -> None:
    """Each command prints what stands below it, with the exit code behind it, and Envoy is asked."""
    assert envoy
    Path("envoy").mkdir()
    Path("envoy/mesh.toml").write_bytes((ROOT / "envoy" / "mesh.toml").read_bytes())
    assert run_commands(MESH) >= 4


def test_mesh_page_shows_the_example() -> None:
    """The file on the page is ``envoy/mesh.toml``, with comments."""
    assert parse_mesh(tomllib.loads(block(MESH, "toml"))) == load_mesh(ROOT / "envoy" / "mesh.toml")


def keys_of(model: type[pydantic.BaseModel]) -> set[str]:
    """Return the keys of a table as the file writes them."""
    return {field.alias or name for name, field in model.model_fields.items()}


def test_mesh_page_names_every_key() -> None:
    """The table of keys has each key of the file, and none else."""
    table = MESH.split("| key | meaning |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    peer = {f"peers.N.{key}" for key in keys_of(Peer) - {"egress", "run"}} | {"peers.N.egress.M"}
    run = {f"peers.N.run.{key}" for key in keys_of(Run)}
    assert sorted(named) == sorted((keys_of(Mesh) - {"peers", "telemetry"}) | {"telemetry.otlp"} | peer | run)
    (flows,) = (line for line in table.splitlines() if line.startswith("| `flows`"))
    assert set(re.findall(r"`(\w+)`", flows)) == {"flows", *keys_of(Flow)}


def test_numbers() -> None:
    """Each number of the page is the one in the code."""
    assert f"ends within {SOON_DAYS} days" in POLICY
