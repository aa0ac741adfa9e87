"""``blazen-peer run``, ``describe`` and ``token``, in process: what they print, and how they end."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blazen_peer import Event, PeerServer, ServerSettings, StartEvent, StopEvent, Workflow, errors, isolated_registry
from blazen_peer.auth import TokenKeys
from blazen_peer.cli import main
from blazen_peer.cli.outcome import Exit, exit_of
from blazen_peer.runtime.registry import Registry

TOKEN = "t" * 40
GOOD_APP = """
from blazen_peer import StartEvent, StopEvent, step

@step("good::step")
async def good(event: StartEvent) -> StopEvent:
    return StopEvent()
"""
UMLAUT = '{"who": "Zoë\u2028"}'


class Outcome(NamedTuple):
    """What one command gave."""

    code: int
    out: str
    err: str


class Greeting(StartEvent):
    """Whom to greet."""

    who: str
    times: int | None = None


class Greeted(Event, event_type="demo::Greeted"):
    text: str


class Peer(NamedTuple):
    """A peer that serves in a thread of its own."""

    address: str
    held: threading.Event
    let_go: threading.Event


def a_registry(held: threading.Event, let_go: threading.Event) -> Registry:
    registry = Registry()

    @registry.step("demo::echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    @registry.step("demo::greet")
    async def greet(event: Greeting) -> Greeted:
        return Greeted(text=f"hello {event.who}")

    @registry.step("demo::boom")
    async def boom(event: StartEvent) -> StopEvent:
        raise RuntimeError("out of \x1b[31mink\x1b[0m\nand paper")

    @registry.step("demo::hold")
    def hold(event: StartEvent) -> StopEvent:
        held.set()
        assert let_go.wait(20)
        return StopEvent(result="held")

    registry.register_workflow(Workflow("echo", [echo], registry=registry))
    return registry


@pytest.fixture
def a_peer() -> Iterator[Callable[..., Peer]]:
    """A factory: a peer of :func:`a_registry` in a thread of its own, since the command blocks this one."""
    import asyncio

    let_gos: list[threading.Event] = []
    ends: list[Callable[[], None]] = []

    def start(**options: Any) -> Peer:
        held, let_go, ready = threading.Event(), threading.Event(), threading.Event()
        options.setdefault("settings", ServerSettings(lame_duck_secs=0, drain_secs=0))
        found: list[Any] = []

        async def serve() -> None:
            server = PeerServer("node-b", registry=a_registry(held, let_go), **options)
            stop = asyncio.Event()
            async with server.serving():
                found.extend((server.address, asyncio.get_running_loop(), stop))
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(10)
        address, loop, stop = found

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive()

        let_gos.append(let_go)
        ends.append(end)
        return Peer(address, held, let_go)

    yield start
    for let_go in let_gos:
        let_go.set()
    for end in ends:
        end()


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command in this process; what goes past ``sys.stdout`` and ``sys.stderr`` is seen too."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: str) -> Outcome:
        code = main(argv)
        return Outcome(code, *capfd.readouterr())

    return run


Command = Callable[..., Outcome]
StartPeer = Callable[..., Peer]


def one_line(outcome: Outcome) -> str:
    """Return the one line of an error, which is all that was printed."""
    assert outcome.out == ""
    assert outcome.err.endswith("\n")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("blazen-peer: ")
    return outcome.err.removeprefix("blazen-peer: ").rstrip("\n")


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
    value: str, why: str, a_peer: StartPeer, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong input is one line that names it, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin-1").write_bytes(b'"\xe9"')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"\xe9"')))
    outcome = command("run", a_peer().address, "echo", "--input", value)
    assert outcome.code == 2
    assert one_line(outcome).startswith(why)


def failing(case: str, a_peer: StartPeer, free_port: int) -> tuple[list[str], Peer | None]:
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
            peer = a_peer(settings=ServerSettings(lame_duck_secs=0, drain_secs=0, max_runs=1))
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
        "RefNotFoundError",
    }
    assert codes["TlsError"] is Exit.TRANSPORT


def _made(error_type: type[errors.BlazenError]) -> errors.BlazenError:
    return error_type(2, 1) if error_type is errors.EnvelopeVersionError else error_type("m")


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
def test_wrong_use(argv: list[str], words: str, command: Command) -> None:
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


def test_describe_for_people(a_peer: StartPeer, command: Command) -> None:
    """Steps with what they accept and emit, and the fields of typed events; workflows; limits."""
    outcome = command("describe", a_peer().address)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0].startswith("node-b version 0.")
    assert lines[1] == "limits: 4096 runs at once, 300 s a run (3600 s when asked for), 64 MiB a message"
    assert "demo::greet blazen::StartEvent demo::Greeted" in lines
    assert "who: string text: string" in lines
    assert "times: integer or null" in lines
    assert "echo demo::echo" in lines


def test_describe_for_programs(a_peer: StartPeer, command: Command) -> None:
    """``--json`` has everything, durations in seconds, with a JSON Schema for each typed event and null for others."""
    outcome = command("describe", a_peer().address, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    said = json.loads(outcome.out)
    assert list(said) == ["node_id", "version", "envelope_version", "instance_id", "limits", "steps", "workflows"]
    assert (said["node_id"], said["envelope_version"]) == ("node-b", 1)
    assert said["limits"] == {
        "max_message_bytes": 64 * 1024 * 1024,
        "max_runs": 4096,
        "default_timeout_secs": 300.0,
        "max_timeout_secs": 3600.0,
    }
    assert said["workflows"] == [{"name": "echo", "step_ids": ["demo::echo"]}]
    steps = {step["id"]: step for step in said["steps"]}
    assert list(steps) == ["demo::boom", "demo::echo", "demo::greet", "demo::hold"]
    assert steps["demo::echo"]["accepts"] == [{"event_type": "blazen::StartEvent", "json_schema": None}]
    greeting = steps["demo::greet"]["accepts"][0]["json_schema"]
    assert (greeting["required"], greeting["properties"]["who"]["type"]) == (["who"], "string")
    assert steps["demo::greet"]["emits"][0]["event_type"] == "demo::Greeted"


def test_token(command: Command) -> None:
    """Each token is another, and good for a peer."""
    first, second = command("token"), command("token")
    assert (first.code, first.err) == (0, "")
    assert first.out != second.out
    assert TokenKeys.from_tokens(first.out.strip(), second.out.strip())


def test_exporter_that_is_not_ours(a_peer: StartPeer, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that we do not have is refused before anything runs."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    outcome = command("run", a_peer().address, "echo")
    assert (outcome.code, one_line(outcome)) == (2, "OTEL_TRACES_EXPORTER=zipkin is not supported: use otlp or none")


@pytest.mark.parametrize("name", ["", "serve", "run", "describe", "token"])
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
            "require_identity demands the sidecar's proof",
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
