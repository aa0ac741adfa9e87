"""The commands: a server with a policy, and peers by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer.cli import main
from blazen_peer.cli.show import description_object, show_description
from blazen_peer.transport.proto import control_pb2
from tests.peer.policy.guarded import flow, policy_of

PROBLEM = "policy: Invalid JSON: \x1b[31mEOF"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``blazen-peer serve`` of an application, with more options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    app = tmp_path / "policy_app.py"
    app.write_text(
        "from blazen_peer import registered_steps, step, StartEvent, StopEvent\n\n"
        "if not registered_steps():\n    @step('s')\n    async def s(event: StartEvent) -> StopEvent: ...\n"
    )
    return lambda *options: main(["serve", "--app", "policy_app", "--node-id", "analyst", "--listen", "127.0.0.1:0", *options])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(None, "cannot use the policy policy.json: No such file or directory", id="missing"),
        pytest.param("{", "cannot use the policy policy.json: policy: Invalid JSON", id="broken"),
        pytest.param(policy_of(flow("a", "analyst", ["w"], "personal")).to_json(), "a policy demands a token", id="no-token"),
    ],
)
def test_serve(serve: Callable[..., int], tmp_path: Path, capfd: Any, text: str | None, error: str) -> None:
    """A policy that cannot be enforced lets no server start: wrong use, one line."""
    if text is not None:
        (tmp_path / "policy.json").write_text(text)
    assert serve("--policy", "policy.json") == 2
    printed = capfd.readouterr().err
    assert f"blazen-peer: {error}" in printed
    assert "Traceback" not in printed


COMMANDS = [["describe"], ["run"], ["cancel"], ["refs", "list"], ["refs", "deref"], ["refs", "release"]]


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_by_name(argv: list[str], tmp_path: Path, capfd: Any) -> None:
    """Each command that calls finds peers by the address book, and says what is in it where it does not."""
    book = {"node": "intake", "data": ["x"], "peers": {"analyst": [{"data_class": "x", "address": "127.0.0.1:1"}]}}
    (tmp_path / "peers.json").write_text(json.dumps(book))
    rest = {"run": ["w"], "cancel": ["i"], "deref": ["0" * 32], "release": ["0" * 32]}.get(argv[-1], [])
    assert main([*argv, "peer:gpu", *rest, "--data", "x", "--peers-file", str(tmp_path / "peers.json")]) == 2
    assert "intake may call no peer 'gpu': its address book has analyst (x)" in capfd.readouterr().err
    assert main([*argv, "peer:analyst", *rest, "--data", "x"]) == 2
    assert "set BLAZEN_PEERS_FILE" in capfd.readouterr().err


def test_describe_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """A policy file that is not in force shows, with what a terminal would obey as escapes."""
    policy = control_pb2.LoadedPolicy(digest="ab" * 32, loaded_at_epoch_ms=1, data_classes=["x", "y"], problem=PROBLEM)
    workflow = control_pb2.Workflow(name="w", step_ids=["s"], data_class="x")
    described = control_pb2.DescribeResponse(node_id="analyst", policy=policy, workflows=[workflow])
    show_description(described)
    printed = capsys.readouterr().out
    assert "policy: abababababab, data x, y" in printed
    assert "its file is not in force: policy: Invalid JSON: \\x1b[31mEOF" in printed
    shown = description_object(described)
    assert shown["policy"] == {
        "digest": "ab" * 32,
        "loaded_at_epoch_ms": 1,
        "data_classes": ["x", "y"],
        "problem": PROBLEM,
    }
    assert shown["workflows"] == [{"name": "w", "step_ids": ["s"], "data_class": "x", "data_class_by_input": False}]
