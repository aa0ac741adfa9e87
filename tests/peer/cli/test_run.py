"""``blazen-peer run``: its input, its output, and how each failure of a call ends."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import ServerSettings, errors
from blazen_peer.cli import main
from blazen_peer.cli.outcome import Exit, exit_of
from blazen_peer.transport.lane import Lane

Command = Callable[..., Any]
OneLine = Callable[[Any], str]
StartPeer = Callable[..., Any]

TOKEN = "t" * 40
UMLAUT = '{"who": "Zoë\u2028"}'


def test_result_for_people(a_peer: StartPeer, command: Command) -> None:
    """The result is indented JSON, whole: neither wrapped nor cut, whatever the width."""
    text = "long " * 200
    outcome = command("run", a_peer().address, "echo", "--input", json.dumps({"text": text}))
    assert outcome == (0, json.dumps({"text": text}, indent=2) + "\n", "")


def test_result_for_programs(a_peer: StartPeer, command: Command) -> None:
    """``--json`` prints one line: one object with ``result`` and ``trace_id``, which is null where nothing is traced."""
    outcome = command("run", a_peer().address, "any-name", "--step", "demo::echo", "--input", UMLAUT, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    assert json.loads(outcome.out) == {"result": json.loads(UMLAUT), "trace_id": None}


@pytest.mark.parametrize(
    ("options", "by_lane"),
    [
        pytest.param([], False, id="by-itself"),
        pytest.param(["--lane", "never"], False, id="never"),
        pytest.param(["--lane", "auto"], True, id="auto"),
        pytest.param(["--lane", "always"], True, id="always"),
    ],
)
def test_lane(a_peer: StartPeer, command: Command, monkeypatch: pytest.MonkeyPatch, options: list[str], by_lane: bool) -> None:
    """``--lane`` says whether the call goes by a lane; without it, it does not."""
    sent = []
    invoke = Lane.invoke
    monkeypatch.setattr(Lane, "invoke", lambda *args: sent.append(1) or invoke(*args))
    outcome = command("run", a_peer().address, "echo", "--input", "7", *options)
    assert (outcome.code, outcome.out) == (0, "7\n")
    assert bool(sent) is by_lane


def test_another_word_for_a_lane(a_peer: StartPeer, command: Command) -> None:
    """Any other word is wrong use."""
    outcome = command("run", a_peer().address, "echo", "--lane", "often")
    assert outcome.code == Exit.WRONG_USE
    assert "not one of auto, never, always" in outcome.err


def test_input(a_peer: StartPeer, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input comes as JSON text, from a file, from standard input; without it the input is null."""
    address = a_peer().address
    (tmp_path / "in.json").write_text(UMLAUT, encoding="utf-8")

    def result(*argv: str) -> object:
        outcome = command("run", address, "echo", "--json", *argv)
        assert outcome.code == 0, outcome
        return json.loads(outcome.out)["result"]

    assert result() is None
    assert result("--input", "[1, 2]") == [1, 2]
    assert result("--input", f"@{tmp_path / 'in.json'}") == json.loads(UMLAUT)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(UMLAUT.encode())))
    assert result("--input", "-") == json.loads(UMLAUT)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("{", "input_json is not JSON: ", id="not-json"),
        pytest.param("", "input_json is not JSON: ", id="empty"),
        pytest.param("NaN", "input_json is not JSON: ", id="nan"),
        pytest.param("@missing.json", "cannot read the input from missing.json: No such file or directory", id="missing-file"),
        pytest.param("@.", "cannot read the input from .: Is a directory", id="directory"),
        pytest.param("@", "cannot read the input from @, which names no file", id="no-name"),
        pytest.param("@latin-1", "the input from latin-1 is not UTF-8 text", id="not-utf-8"),
        pytest.param("-", "the input from standard input is not UTF-8 text", id="standard-input-not-utf-8"),
    ],
)
def test_input_that_cannot_be_used(
    value: str,
    why: str,
    a_peer: StartPeer,
    command: Command,
    one_line: OneLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong input is one line that names it, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin-1").write_bytes(b'"\xe9"')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"\xe9"')))
    outcome = command("run", a_peer().address, "echo", "--input", value)
    assert outcome.code == 2
    assert one_line(outcome).startswith(why)


def failing(case: str, a_peer: StartPeer, free_port: int) -> tuple[list[str], Any]:
    """Return the arguments of a command that fails as *case* says, and the peer where it is held."""
    match case:
        case "nobody":
            return ["run", f"http://127.0.0.1:{free_port}", "echo"], None
        case "no-token":
            return ["describe", a_peer(token=TOKEN).address], None
        case "identity":
            proof = Path(case)
            proof.write_text("p" * 40)
            address = a_peer(token=TOKEN, require_identity=True, sidecar_proof_file=proof).address
            return ["run", address, "echo"], None
        case "overloaded":
            peer = a_peer(settings=ServerSettings(lame_duck_secs=0, drain_secs=0, max_runs=1, max_queued_runs=0))
            return ["run", peer.address, "echo"], peer
        case "boom":
            return ["run", a_peer().address, "x", "--step", "demo::boom"], None
        case "time":
            return ["run", a_peer().address, "x", "--step", "demo::hold", "--timeout", "0.05"], None
        case "step":
            return ["run", a_peer().address, "x", "--step", "demo::nope"], None
        case "workflow":
            return ["run", a_peer().address, "nope"], None
        case "twice":
            return ["run", a_peer().address, "x", "--step", "demo::echo", "--step", "demo::echo"], None
        case "address":
            return ["describe", "ftp://127.0.0.1:1"], None
        case _:
            return ["run", a_peer().address, "echo", "--timeout", "-1"], None


FAILURES = [
    pytest.param("address", 2, "Validation", "address 'ftp://127.0.0.1:1' is not valid", id="2-address"),
    pytest.param("timeout", 2, "Validation", "timeout_secs must be", id="2-timeout"),
    pytest.param("no-token", 3, "Unauthenticated", "BLAZEN_PEER_TOKEN", id="3-no-token"),
    pytest.param("identity", 3, "PermissionDenied", "does a flow allow this call?", id="3-past-the-sidecar"),
    pytest.param("boom", 4, "Workflow", "failed: out of \\x1b[31mink\\x1b[0m and paper", id="4-step-raises"),
    pytest.param("time", 4, "Workflow", "workflow timed out after 0.05s", id="4-time-over"),
    pytest.param("nobody", 5, "Transport", "is the peer running", id="5-nobody-there"),
    pytest.param("overloaded", 6, "Overloaded", "try again in a moment", id="6-max-runs"),
    pytest.param("step", 7, "UnknownStep", "unknown step id `demo::nope`", id="7-step"),
    pytest.param("workflow", 7, "UnknownStep", "unknown workflow `nope`", id="7-workflow"),
    pytest.param("twice", 1, "Encode", "'demo::echo' is given twice", id="1-any-other"),
]


@pytest.mark.parametrize(("case", "code", "kind", "words"), FAILURES)
def test_failures(
    case: str,
    code: int,
    kind: str,
    words: str,
    a_peer: StartPeer,
    command: Command,
    one_line: OneLine,
    free_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each failure has its exit code, one line that says what to do, and with ``--json`` one object with its kind."""
    monkeypatch.chdir(tmp_path)
    argv, held = failing(case, a_peer, free_port)
    if case == "identity":
        monkeypatch.setenv("BLAZEN_PEER_TOKEN", TOKEN)
    holder = None
    if held is not None:
        holder = threading.Thread(target=main, args=(["run", held.address, "x", "--step", "demo::hold", "--json"],))
        holder.start()
        assert held.held.wait(10)
    outcome = command(*argv)
    assert outcome.code == code
    assert words in one_line(outcome)
    outcome = command(*argv, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (code, "", 1)
    said = json.loads(outcome.out)
    assert (list(said), list(said["error"]), said["error"]["kind"]) == (["error"], ["kind", "message"], kind)
    if held is not None and holder is not None:
        held.let_go.set()
        holder.join(10)
        assert not holder.is_alive()


def test_every_error_has_an_exit_code() -> None:
    """No error of ours is left to chance: those that the table does not name end with 1."""
    codes = {name: exit_of(_made(getattr(errors, name)))[0] for name in errors.__all__}
    assert {name for name, code in codes.items() if code is Exit.OTHER} == {
        "BlazenError",
        "EncodeError",
        "EnvelopeVersionError",
        "InvocationConflictError",
        "PeerError",
    }
    assert codes["TlsError"] is Exit.TRANSPORT


def _made(error_type: type[errors.BlazenError]) -> errors.BlazenError:
    return error_type(2, 1) if error_type is errors.EnvelopeVersionError else error_type("m")


def test_exporter_that_is_not_ours(
    a_peer: StartPeer, command: Command, one_line: OneLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that we do not have is refused before anything runs."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    outcome = command("run", a_peer().address, "echo")
    assert (outcome.code, one_line(outcome)) == (2, "OTEL_TRACES_EXPORTER=zipkin is not supported: use otlp or none")
