"""How ``blazen-peer`` takes its arguments: help, wrong use, and what ``serve`` refuses to start with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import isolated_registry

GOOD_APP = """
from blazen_peer import StartEvent, StopEvent, step

@step("good::step")
async def good(event: StartEvent) -> StopEvent:
    return StopEvent()
"""
Command = Callable[..., Any]
OneLine = Callable[[Any], str]


@pytest.mark.parametrize("name", ["", "serve", "run", "describe", "token", "trace"])
def test_help(name: str, command: Command) -> None:
    """Each help text has an example that begins with the command, and the exit codes."""
    outcome = command(*([name] if name else []), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"blazen-peer {name}".strip() in outcome.out.split("Example")[1]
    assert "Exit codes: 0 " in outcome.out
    assert outcome.out == command(*([name] if name else []), "-h").out


def test_no_arguments(command: Command) -> None:
    """Without arguments the help is shown, and nothing was done: exit code 2."""
    outcome = command()
    assert (outcome.code, outcome.err) == (2, "")
    assert "describe" in outcome.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(["run"], "Missing argument 'ADDRESS'. See: blazen-peer run --help", id="missing-argument"),
        pytest.param(["serve", "--node-id", "b"], "Missing option '--app'. See: blazen-peer serve --help", id="missing-option"),
        pytest.param(["describe", "a", "b"], "unexpected extra argument", id="too-many"),
        pytest.param(["run", "a", "b", "--timeout", "soon"], "Invalid value for '--timeout'", id="not-a-number"),
        pytest.param(["run", "a", "b", "--wait"], "No such option", id="unknown-option"),
        pytest.param(["fly"], "No such command 'fly'. See: blazen-peer --help", id="unknown-command"),
        pytest.param(["run", "a", "b", "--node-id", "-"], "node id '-' is not valid", id="bad-node-id"),
    ],
)
def test_wrong_use(argv: list[str], words: str, command: Command, one_line: OneLine) -> None:
    """Wrong use is one line and exit code 2; with ``--json`` one object, also when the arguments could not be parsed."""
    outcome = command(*argv)
    assert outcome.code == 2
    assert words in one_line(outcome)
    if argv[0] in {"run", "describe"}:
        outcome = command(*argv, "--json")
        assert (outcome.code, outcome.err) == (2, "")
        assert words in json.loads(outcome.out)["error"]["message"]


def test_a_defect_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not one of our errors is not hidden behind a line."""
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("token")


@pytest.mark.parametrize(
    ("options", "env", "line"),
    [
        pytest.param({"app": "nowhere"}, {}, "cannot import nowhere: no module named 'nowhere'", id="no-module"),
        pytest.param({"app": "app.py"}, {}, "(write my_app, not my_app.py)", id="file-name"),
        pytest.param({"app": "empty"}, {}, "empty registers no step: decorate its functions with @step", id="no-steps"),
        pytest.param({"app": "broken"}, {}, "cannot import broken: ZeroDivisionError: division by zero (", id="raises"),
        pytest.param({"listen": "here"}, {}, "listen address 'here' is not valid", id="address"),
        pytest.param({"more": ["--drain-secs", "-1"]}, {}, "drain_secs must be at least 0", id="setting"),
        pytest.param({"more": ["--log-level", "loud"]}, {}, "log level 'loud' is not one of debug, info", id="log-level"),
        pytest.param({"more": ["--require-identity"]}, {}, "require_identity demands a token as well", id="identity-alone"),
        pytest.param(
            {"more": ["--require-identity"]},
            {"BLAZEN_PEER_TOKEN": "t" * 32},
            "require_identity demands the sidecar's proof or direct TLS",
            id="identity-without-proof",
        ),
        pytest.param({}, {"BLAZEN_PEER_TOKEN": ""}, "the token is set but empty", id="empty-token"),
        pytest.param({}, {"BLAZEN_PEER_TOKEN": "short"}, "has 5 characters and needs at least 32", id="short-token"),
        pytest.param({}, {"BLAZEN_PEER_TOKEN_FILE": "gone"}, "cannot read the secret file gone", id="no-token-file"),
    ],
)
def test_serve_does_not_start(
    options: dict[str, Any],
    env: dict[str, str],
    line: str,
    command: Command,
    one_line: OneLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What cannot be served is one line that says why, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {"empty": "", "broken": "\n\n1 / 0\n", "good": GOOD_APP}.items():
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    app, listen = options.get("app", "good"), options.get("listen", "127.0.0.1:0")
    with isolated_registry():
        outcome = command("serve", "--app", app, "--node-id", "node-b", "--listen", listen, *options.get("more", []))
    assert outcome.code == 2
    said = one_line(outcome)
    assert line in said
    if app == "broken":
        assert said.endswith(f"({tmp_path / 'broken.py'}, line 3)")
