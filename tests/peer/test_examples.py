"""The twins of the reference's code samples, each run as a user runs it, against real peers in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVE = ("blazen-peer", "serve", "--node-id", "node-b", "--listen", "127.0.0.1:0", "--lame-duck-secs", "0")
RUN_SECS = 30
EXPECTED = {
    "characters": 38,
    "words": 7,
    "distinct_words": 7,
    "sentences": 2,
    "key_terms": {"long": 1, "document": 1, "two": 1, "sentences": 1},
    "key_sentences": ["A long document.", "It has two sentences."],
}
SLOW_APP = """\
import pathlib, time
from blazen_peer import StartEvent, StopEvent, step

HERE = pathlib.Path(__file__).parent

@step("slow::wait")
def wait(event: StartEvent) -> StopEvent:
    (HERE / "began").touch()
    until = time.monotonic() + 20
    while not (HERE / "go-on").exists() and time.monotonic() < until:
        time.sleep(0.01)
    (HERE / "ended").touch()
    return StopEvent(result="ended")

@step("quick::echo")
async def echo(event: StartEvent) -> StopEvent:
    return StopEvent(result=event.data)
"""

Example = Callable[..., str]


@pytest.fixture
def example(root: Path) -> Example:
    """Run ``python -m examples.reference.NAME ARGUMENTS`` and return what it prints."""

    def run(name: str, *arguments: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"examples.reference.{name}", *arguments],
            cwd=root,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=RUN_SECS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.rstrip("\n")

    return run


@pytest.fixture
def analyst(start_peer: Callable[..., Any]) -> Iterator[str]:
    """The address of a peer with the steps of ``examples.analyst``; in the end SIGTERM drains it and it exits with 0."""
    peer = start_peer(*SERVE, "--app", "examples.analyst")
    yield peer.address
    assert peer.end(signal.SIGTERM) == 0


@pytest.fixture
def slow(start_peer: Callable[..., Any], tmp_path: Path) -> Any:
    """A peer with a step that waits for the file ``go-on``."""
    (tmp_path / "slow_app.py").write_text(SLOW_APP)
    return start_peer(*SERVE, "--app", "slow_app", cwd=tmp_path)


def test_clients_and_calls(analyst: str, example: Example) -> None:
    """Connecting, calling, calling from a plain thread, and calling as a step of a parent workflow."""
    assert example("client", analyst) == "connected as: node-a"
    for name in ("call", "blocking_call"):
        said, _, result = example(name, analyst).partition(": ")
        assert (said, json.loads(result)) == ("remote result", EXPECTED)
    assert json.loads(example("parent_workflow", analyst)) == EXPECTED


def test_errors_by_kind(analyst: str, slow: Any, example: Example, free_port: int) -> None:
    """Each branch of error handling, and the branch without an error."""
    nobody = example("error_handling", f"http://127.0.0.1:{free_port}")
    assert nobody.startswith("transport failure (may have run: False): ")
    assert example("error_handling", analyst, "my_app::new") == "step not registered on peer: my_app::new"
    assert example("error_handling", analyst).startswith("remote workflow error: ")
    assert "'my_app::analyze' cannot take this input: document: " in example("error_handling", analyst)
    assert example("error_handling", analyst, "my_app::analyze", "{").startswith("other failure: input_json is not JSON: ")
    assert example("error_handling", slow.address, "quick::echo", "[1]") == "remote result: [1]"


def test_refused_is_a_kind(start_peer: Callable[..., Any], example: Example) -> None:
    """A peer with a token refuses a caller without it, or with another; with the same it answers."""
    peer = start_peer(*SERVE, "--app", "examples.analyst", env={"BLAZEN_PEER_TOKEN": "t" * 32})
    assert example("error_handling", peer.address).startswith("peer error of kind Unauthenticated: ")
    assert example("error_handling", peer.address, BLAZEN_PEER_TOKEN="u" * 32).startswith("peer error of kind Unauth")
    assert example("error_handling", peer.address, "my_app::new", BLAZEN_PEER_TOKEN="t" * 32).startswith("step not registered")


def test_cancelling_severs_the_wait_only(slow: Any, example: Example, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    """The caller's process is over while the step still runs; let go, the step runs to its end."""
    assert example("cancellation", slow.address, "slow::wait") == "stopped waiting; the run goes on at the peer"
    assert (tmp_path / "began").exists()
    assert not (tmp_path / "ended").exists()
    (tmp_path / "go-on").touch()
    wait_until((tmp_path / "ended").exists)
    done = example("cancellation", slow.address, "quick::echo")
    assert done == 'done before it was cancelled: {"document":""}'


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        pytest.param("server", [signal.SIGTERM], id="its-own-loop"),
        pytest.param("blocking_server", [signal.SIGTERM, signal.SIGINT], id="blocking-stopped-at-once-by-the-second"),
    ],
)
def test_servers(
    name: str,
    signals: list[int],
    start_peer: Callable[..., Any],
    example: Example,
    free_port: int,
    wait_until: Callable[..., None],
) -> None:
    """Both servers serve, and signals end them with exit code 0."""
    server = start_peer(sys.executable, "-m", f"examples.reference.{name}", f"127.0.0.1:{free_port}")
    with grpc.insecure_channel(f"127.0.0.1:{free_port}", options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status() -> int:
            try:
                return int(health.Check(health_pb2.HealthCheckRequest(), timeout=1).status)
            except grpc.RpcError:
                return -1

        wait_until(lambda: status() == health_pb2.HealthCheckResponse.SERVING)
        assert example("call", f"http://127.0.0.1:{free_port}").startswith("remote result: ")
        server.process.send_signal(signals[0])
        if len(signals) > 1:
            wait_until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert server.end(*signals[1:]) == 0, server.log
