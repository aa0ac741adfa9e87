"""The command ``blazen-mesh doctor``: exit codes, what it prints, where it finds files, logs and the token."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh import cli
from blazen_mesh.doctor import CAUSES

TOKEN = "the-shared-token-of-this-mesh-0123456789"
EXAMPLE = str(Path(__file__).parents[3] / "envoy" / "mesh.toml")


def argv(mesh: Any, *more: str, at: tuple[str, ...] = ("intake", "analyst")) -> list[str]:
    """Return the arguments for *mesh* with the files of the nodes *at* hand."""
    here = [part for node in at for part in ("--config-dir", str(mesh.root / node))]
    return ["doctor", "--mesh", str(mesh.write_toml()), "--dir", str(mesh.root / "none"), *here, *more]


@pytest.mark.envoy
async def test_all_fine(start_pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A healthy mesh: exit code 0, a line for each station, and the token found where the sidecars were told of it."""
    mesh = await start_pair()
    assert await asyncio.to_thread(cli.main, argv(mesh)) == 0
    shown = capsys.readouterr().out
    assert "all fine" in shown
    assert "the token is good" in shown
    assert TOKEN not in shown


@pytest.mark.envoy
async def test_problem(start_pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A problem: exit code 1, the cause in words, the fix below it, and the same as one JSON object."""
    mesh = await start_pair(serve=["intake"])
    assert await asyncio.to_thread(cli.main, argv(mesh)) == 1
    shown = capsys.readouterr().out
    assert "the peer behind the callee's sidecar does not run" in shown
    assert "-> on analyst's machine: start its peer" in shown
    assert "problems: peer-down" in shown
    assert await asyncio.to_thread(cli.main, argv(mesh, "--json")) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert {finding["cause"] for finding in found["findings"] if finding["state"] == "problem"} == {"peer-down"}
    assert set(found["findings"][0]) == {"subject", "check", "state", "detail", "cause", "fix"}


@pytest.mark.envoy
async def test_one_machine(start_pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With one node's files the end of the output does not claim that all is fine."""
    mesh = await start_pair()
    assert await asyncio.to_thread(cli.main, argv(mesh, "--node", "analyst", at=("analyst",))) == 0
    shown = capsys.readouterr().out
    assert "nothing wrong is to be seen from here" in shown
    assert "run on intake's machine: blazen-mesh doctor --node intake" in shown


@pytest.mark.envoy
async def test_log_from_standard_input(
    start_pair: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is piped in, with what `up` or `docker compose logs` puts in front of its lines, is read too."""
    mesh = await start_pair()
    entry = {
        **{"time": "2099-01-01T00:00:00.000Z", "log": "call", "node": "intake", "hop": "egress analyst", "flags": "-"},
        **{"method": "/x/Y", "grpc_status": "DeadlineExceeded", "details": "max_duration_timeout"},
    }
    lines = f"starting 2 nodes\nintake sidecar | {json.dumps(entry)}\nintake sidecar | {{not json\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert await asyncio.to_thread(cli.main, argv(mesh, "--log", "-", "--json")) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["cause"] for finding in found if finding["state"] == "problem"] == ["deadline"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_log_cannot_steer_the_terminal(options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a stranger's certificate says of itself is printed without its control characters, and in full length never."""
    entry = {
        **{"time": "2099-01-01T00:00:00.000Z", "log": "connection", "node": "analyst", "hop": "ingress"},
        **{"failure": "TLS_error:certificate_revoked", "peer_uri": f"spiffe://x/\x1b[31mred\x07{'x' * 5000}"},
    }
    (tmp_path / "log").write_text(json.dumps(entry))
    given = ["doctor", "--mesh", EXAMPLE, "--dir", str(tmp_path / "none"), "--log", str(tmp_path / "log"), *options]
    assert cli.main(given) == 1
    shown = capsys.readouterr().out
    assert "red" in shown
    assert "\x1b" not in shown
    assert "\\u001b" not in shown
    assert shown.count("x") < 3000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param([], 2, "say where `blazen-mesh up` keeps its mesh with --dir", id="nothing-here"),
        pytest.param(["--node", "nobody", "--log", EXAMPLE], 1, "there is no [peers.nobody]", id="no-such-node"),
        pytest.param(["--mesh", "/no/such"], 1, "/no/such: cannot be read", id="no-such-mesh"),
        pytest.param(["--config-dir", "{tmp}"], 2, "name what blazen-mesh render --out has written", id="no-config"),
        pytest.param(["--log", "/no/such"], 2, "/no/such: No such file", id="no-such-log"),
        pytest.param(["--token-file", "/no/such", "--log", EXAMPLE], 2, "--token-file /no/such is no file", id="no-such-token"),
        pytest.param(["--timeout", "0"], 2, "--timeout", id="no-time"),
    ],
)
def test_failure(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A wrong mesh is exit code 1, wrong use 2; each is one line that says what to do."""
    given = [part.replace("{tmp}", str(tmp_path)) for part in arguments]
    given = ["doctor", "--dir", str(tmp_path / "none"), *(["--mesh", EXAMPLE] if "--mesh" not in given else []), *given]
    assert cli.main(given) == code
    errors = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors


def test_unreadable_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not a rendered node is refused in one line."""
    (tmp_path / "envoy.json").write_text("[]")
    (tmp_path / "sds").mkdir()
    for name in ("leaf", "bundle"):
        (tmp_path / "sds" / f"{name}.json").write_text("{}")
    assert cli.main(["doctor", "--mesh", EXAMPLE, "--config-dir", str(tmp_path)]) == 2
    assert "render the node anew" in capsys.readouterr().err


@pytest.mark.parametrize("key", CAUSES)
def test_every_cause_can_be_said(key: str) -> None:
    """Title and fix of every cause take the names of nodes, and hold no other placeholder."""
    from blazen_mesh.doctor.findings import Names

    finding = Names("a -> b", "n", "a", "b", "127.0.0.1:1").wrong("check", key, "detail")
    assert "{" not in finding.detail + finding.fix
    assert finding.fix
