"""``blazen-peer serve`` as a real process: how it begins, what it refuses, and that it always ends in its time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import PeerClient, TransportError, UnauthenticatedError

APP = """\
import asyncio, pathlib, threading, time
from blazen_peer import StartEvent, StopEvent, step

HERE = pathlib.Path(__file__).parent

def began():
    (HERE / "began").touch()

@step("app::echo")
async def echo(event: StartEvent) -> StopEvent:
    return StopEvent(result=event.data)

@step("app::short")
async def short(event: StartEvent) -> StopEvent:
    began()
    while not (HERE / "go-on").exists():
        await asyncio.sleep(0.01)
    return StopEvent(result="finished")

@step("app::stuck")
def stuck(event: StartEvent) -> StopEvent:
    began()
    time.sleep(600)
    return StopEvent()

@step("app::executor")
async def executor(event: StartEvent) -> StopEvent:
    began()
    await asyncio.to_thread(time.sleep, 600)
    return StopEvent()

@step("app::own-thread")
async def own_thread(event: StartEvent) -> StopEvent:
    threading.Thread(target=time.sleep, args=(600,)).start()
    began()
    return StopEvent()

@step("app::swallow")
async def swallow(event: StartEvent) -> StopEvent:
    began()
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@step("app::block")
async def block(event: StartEvent) -> StopEvent:
    began()
    while True:
        time.sleep(0.01)
"""

Start = Callable[..., Any]


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A directory with the application ``app``."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def serve(app_dir: Path, start_peer: Start) -> Start:
    """Serve ``app`` on a free port, in a process; *options* are added to the command."""

    def start(*options: str, app: str = "app", listen: str = "127.0.0.1:0", **env: str) -> Any:
        argv = ("blazen-peer", "serve", "--app", app, "--node-id", "node-b", "--listen", listen, *options)
        return start_peer(*argv, cwd=app_dir, env=env)

    return start


def refused(peer: Any) -> tuple[int, str]:
    """Return the exit code and the one line of a peer that does not start."""
    code = peer.end()
    assert peer.log.count("\n") == 1, peer.log
    return code, peer.log.rstrip("\n")


@pytest.fixture
def begin(app_dir: Path, start_peer: Start, wait_until: Callable[..., None]) -> Start:
    """Run a step on a peer by a command of its own, and return it once the step has begun."""

    def begin(peer: Any, step: str) -> Any:
        caller = start_peer("blazen-peer", "run", peer.address, "x", "--step", step, "--timeout", "30", "--json")
        wait_until((app_dir / "began").exists)
        return caller

    return begin


def test_says_where_it_listens(serve: Start) -> None:
    """One line says where, with the port that was picked; there a call is answered; SIGTERM drains, and the exit code is 0."""
    peer = serve("--lame-duck-secs", "0")
    log = peer.wait_for("listens on ")
    assert len([line for line in log.splitlines() if "listens on" in line]) == 1
    assert "node-b has no token: every local process may call it" in log
    with PeerClient.connect(peer.address, "node-a") as client:
        assert client.run_remote_workflow_blocking("x", ["app::echo"], "[1]", 10).result == [1]
    assert peer.end(signal.SIGTERM) == 0
    assert "SIGTERM received: draining; a second one stops at once" in peer.log
    assert "Traceback" not in peer.log


def test_unix_socket(serve: Start, app_dir: Path) -> None:
    """A Unix socket is an address too, and Ctrl-C drains like SIGTERM."""
    peer = serve("--lame-duck-secs", "0", listen=f"unix:{app_dir / 's'}")
    assert peer.address == f"unix:{app_dir / 's'}"
    with PeerClient.connect(peer.address, "node-a") as client:
        assert client.run_remote_workflow_blocking("x", ["app::echo"], "[1]", 10).result == [1]
    assert peer.end(signal.SIGINT) == 0


def test_drain_lets_a_run_finish(serve: Start, begin: Start, app_dir: Path) -> None:
    """A run in progress finishes while the peer drains, its caller gets the result, and then the process ends with 0."""
    peer = serve("--lame-duck-secs", "0", "--drain-secs", "20")
    caller = begin(peer, "app::short")
    peer.process.send_signal(signal.SIGTERM)
    peer.wait_for("drains: 1 runs in progress")
    (app_dir / "go-on").touch()
    assert peer.end() == 0
    assert caller.end() == 0
    assert json.loads(caller.log)["result"] == "finished"


def test_lame_duck(serve: Start) -> None:
    """A draining peer goes on accepting calls for its lame-duck time."""
    peer = serve("--lame-duck-secs", "20")
    with PeerClient.connect(peer.address, "node-a") as client:
        peer.process.send_signal(signal.SIGTERM)
        peer.wait_for("drains: 0 runs in progress")
        assert client.run_remote_workflow_blocking("x", ["app::echo"], "[1]", 10).result == [1]
        assert peer.process.poll() is None
    assert peer.end(signal.SIGTERM) == 0
    assert "stopped at once" in peer.log


def test_second_signal_stops_at_once(serve: Start, begin: Start) -> None:
    """The second signal does not wait for lame duck, drain or run; the caller learns that nobody answers any more."""
    peer = serve("--lame-duck-secs", "60", "--drain-secs", "60")
    caller = begin(peer, "app::short")
    peer.process.send_signal(signal.SIGTERM)
    peer.wait_for("drains: 1 runs in progress")
    began = time.monotonic()
    assert peer.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    assert caller.end() in {4, 5}


@pytest.mark.parametrize(
    ("step", "code"),
    [
        pytest.param("app::stuck", 0, id="plain-function-stuck-in-its-thread"),
        pytest.param("app::executor", 0, id="stuck-in-an-executor"),
        pytest.param("app::own-thread", 0, id="leaves-a-thread-behind"),
        pytest.param("app::swallow", 0, id="swallows-its-cancellation"),
        pytest.param("app::block", 70, id="blocks-the-loop"),
    ],
)
def test_always_ends(step: str, code: int, serve: Start, begin: Start) -> None:
    """Whatever a step does, the process ends within its time; 70 says that something did not let go."""
    peer = serve("--lame-duck-secs", "0", "--drain-secs", "0.2")
    caller = begin(peer, step)
    began = time.monotonic()
    assert peer.end(signal.SIGTERM) == code, peer.log
    assert time.monotonic() - began < 0.2 + 5 + 5  # drain, answers and leftovers, and a slow machine
    caller.end(signal.SIGINT)


def test_interrupted_caller(serve: Start, begin: Start) -> None:
    """Ctrl-C ends the caller with 130, and says that the run goes on."""
    peer = serve("--lame-duck-secs", "0", "--drain-secs", "0")
    caller = begin(peer, "app::short")
    assert caller.end(signal.SIGINT) == 130
    assert json.loads(caller.log)["error"]["kind"] == "Interrupted"
    assert peer.process.poll() is None


def test_port_in_use(serve: Start) -> None:
    """An address that another process has is one line, and exit code 5."""
    first = serve()
    taken = first.address.removeprefix("http://")
    peer = serve("--log-level", "error", listen=taken)
    assert refused(peer) == (5, f"blazen-peer: cannot listen on {taken}: Address already in use")


def test_beyond_loopback_wants_a_token(serve: Start) -> None:
    """Without a token nothing listens beyond loopback, unless ``--insecure`` says so."""
    code, line = refused(serve("--log-level", "error", listen="0.0.0.0:0"))
    assert code == 2
    assert "refusing to listen on 0.0.0.0:0 without a token: set BLAZEN_PEER_TOKEN" in line
    for peer in (serve("--insecure", listen="0.0.0.0:0"), serve(listen="0.0.0.0:0", BLAZEN_PEER_TOKEN="t" * 32)):
        assert peer.address.startswith("http://0.0.0.0:")


def test_missing_module(serve: Start) -> None:
    """An application that cannot be imported is one line, and exit code 2; more such cases are in ``test_usage.py``."""
    assert refused(serve(app="nowhere")) == (2, "blazen-peer: cannot import nowhere: no module named 'nowhere'")


def test_not_held_by_a_thread_of_the_application(serve: Start, app_dir: Path) -> None:
    """A peer that cannot start ends at once, though its application has started a thread that would hold the process."""
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    (app_dir / "threaded.py").write_text(thread + APP)
    code, line = refused(serve(app="threaded", listen="here"))
    assert code == 2
    assert "listen address 'here' is not valid" in line


def test_token_file_is_read_again(serve: Start, app_dir: Path) -> None:
    """A token that changes in its file counts without a restart; the one in the previous file counts as well."""
    (app_dir / "token").write_text("a" * 40)
    (app_dir / "previous").write_text("b" * 40)
    peer = serve(BLAZEN_PEER_TOKEN_FILE="token", BLAZEN_PEER_TOKEN_PREVIOUS_FILE="previous")

    def accepted(token: str) -> bool:
        with PeerClient.connect(peer.address, "node-a", token=token * 40) as client:
            try:
                return bool(client.run_remote_workflow_blocking("x", ["app::echo"], "true", 10).result)
            except UnauthenticatedError:
                return False

    assert [accepted(token) for token in "abc"] == [True, True, False]
    (app_dir / "new").write_text("c" * 40)
    (app_dir / "new").replace(app_dir / "token")
    assert [accepted(token) for token in "abc"] == [False, True, True]
    assert "refused /blazen_peer.control.v1.PeerControl/Lane with UNAUTHENTICATED: " in peer.log
    assert not any(token * 40 in peer.log for token in "abc")


def test_a_reader_that_goes_away(serve: Start) -> None:
    """``blazen-peer describe ... | true`` ends without a traceback."""
    peer = serve()
    blazen_peer = Path(sys.executable).with_name("blazen-peer")
    line = f"'{blazen_peer}' describe {peer.address} --json | true"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""


def test_nobody_there(free_port: int) -> None:
    """``connect`` to a port where nobody listens raises within its time, and nothing can have run."""
    with pytest.raises(TransportError) as raised:
        PeerClient.connect(f"http://127.0.0.1:{free_port}", "node-a", timeout_secs=5)
    assert raised.value.may_have_run is False
