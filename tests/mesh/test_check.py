"""What ``blazen-mesh check`` finds in a sound file: exceptions that are over, and what is worth knowing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh import cli
from blazen_mesh.check import expired, notes
from blazen_mesh.mesh import parse_mesh

POLICY = Path(__file__).with_name("policy.toml")
DAY = date(2026, 11, 1)
PolicyTable = Callable[..., dict[str, Any]]


def test_nothing_to_say(policy_table: PolicyTable) -> None:
    """A mesh in which every class flows, every region has a peer and no exception ends soon gives no note."""
    mesh = parse_mesh(policy_table())
    assert (notes(mesh, DAY), expired(mesh, DAY)) == ([], [])


NOTES = [
    pytest.param({"crl": False}, "crl: no revocation list is looked at", id="crl"),
    pytest.param({"regions": ["eu", "us", "asia"]}, "regions: no peer is in asia", id="region-without-peer"),
    pytest.param(
        {"data.3": {"name": "open", "regions": ["eu"], "why": "x"}}, "data: no flow carries open data", id="class-nobody-uses"
    ),
    pytest.param(
        {"flows": [], "peers.intake.egress": {}},
        "no flows: nobody may call anybody",
        id="no-flows",
    ),
    pytest.param(
        {"flows.2.until": date(2026, 11, 8)}, "flows[2].until: intake -> gpu-1 ends with 2026-11-08, in 7 days", id="ends-soon"
    ),
    pytest.param({"flows.2.until": DAY}, "flows[2].until: intake -> gpu-1 ends with 2026-11-01, in 0 days", id="ends-today"),
    pytest.param(
        {"peers.intake.egress.gpu-1.internal": {"port": 16003, "inject_token": True}},
        "peers.intake.egress.gpu-1.internal: injects the token, so every process that reaches 127.0.0.1:16003 is intake",
        id="token",
    ),
    pytest.param(
        {"peers.analyst.listen": ["127.0.0.1:50052", "127.0.0.1:50062"]},
        "peers.analyst.listen: 2 replicas: a client without invocation ids, such as Blazen's own,",
        id="replicas",
    ),
    pytest.param(
        {"peers.analyst.run": {"app": "app", "require_identity": False}},
        "peers.analyst.run: local programs that hold the token may call 127.0.0.1:50052 past the sidecar",
        id="past-the-sidecar",
    ),
    pytest.param(
        {"peers.archive.sidecar": "archive.internal:15001"},
        "peers.archive: nobody may call it, and its ingress is open on 0.0.0.0:15001; it denies all",
        id="open-for-nobody",
    ),
]


@pytest.mark.parametrize(("changes", "note"), NOTES)
def test_notes(changes: dict[str, Any], note: str, policy_table: PolicyTable) -> None:
    """What is allowed and yet worth knowing is told, with its place."""
    found = notes(parse_mesh(policy_table(changes)), DAY)
    assert any(line.startswith(note) for line in found), found


def test_expired(policy_table: PolicyTable) -> None:
    """An exception is over from the day after its last one."""
    mesh = parse_mesh(policy_table())
    assert expired(mesh, date(2027, 1, 31)) == []
    (line,) = expired(mesh, date(2027, 2, 1))
    assert line.startswith("flows[2].until: intake -> gpu-1 ended on 2027-01-31: give it a new date and reason, or remove it")


def test_command_refuses_an_exception_that_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is sound, and its flows are shown; the exception makes the exit code 1 all the same."""
    path = tmp_path / "mesh.toml"
    path.write_text(POLICY.read_text().replace("2027-01-31", "2026-01-31"))
    assert cli.main(["check", "--mesh", str(path), "--no-envoy"]) == 1
    shown = capsys.readouterr().out
    assert "problem: flows[2].until: intake -> gpu-1 ended on 2026-01-31" in shown
    assert "no GPU in the EU yet" in shown


def test_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The table has every workflow, class, port and end."""
    path = tmp_path / "mesh.toml"
    path.write_text(POLICY.read_text().replace("2027-01-31", "9999-01-31"))
    assert cli.main(["check", "--mesh", str(path), "--no-envoy"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "who may call what in mesh.test",
        "analyze",
        "embed",
        "translate",
        "personal",
        "16001",
        "16002",
        "9999-01-31",
    ):
        assert words in shown
