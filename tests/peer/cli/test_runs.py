"""``blazen-peer run --stream`` and ``blazen-peer cancel``."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., Any]
OneLine = Callable[[Any], str]
StartPeer = Callable[..., Any]
EMIT = ("w", "--step", "demo::emit", "--input", "2")
HOLD = ("w", "--step", "demo::hold", "--invocation-id", "one")


def test_stream_for_people(a_peer: StartPeer, command: Command) -> None:
    """Each event is a line with its type and its data, nothing that a terminal would obey, and the result comes last."""
    outcome = command("run", a_peer().address, *EMIT, "--stream")
    lines = [f'demo::Counted {{"n": {n}, "odd": "\\u001b"}}' for n in (0, 1)]
    assert outcome == (0, "\n".join([*lines, '"emitted"\n']), "")


def test_stream_for_programs(a_peer: StartPeer, command: Command) -> None:
    """With ``--json`` each event is an object on a line, with the cursor; the last line is the result's."""
    outcome = command("run", a_peer().address, *EMIT, "--stream", "--json")
    *events, result = [json.loads(line) for line in outcome.out.splitlines()]
    assert events == [
        {"event": {"event_type": "demo::Counted", "data": {"n": n, "odd": "\x1b"}}, "cursor": n + 1} for n in (0, 1)
    ]
    assert (outcome.code, outcome.err, result) == (0, "", {"result": "emitted", "trace_id": None})


@pytest.fixture
def running(a_peer: StartPeer, command: Command) -> Any:
    """A peer whose run ``one`` goes on in a thread; the command that waits for it is in another."""
    peer = a_peer()
    thread = threading.Thread(target=command, args=("run", peer.address, *HOLD))
    thread.start()
    assert peer.held.wait(10)
    yield peer
    peer.let_go.set()
    thread.join(10)
    assert not thread.is_alive()


def test_cancel(running: Any, command: Command, one_line: OneLine) -> None:
    """A run is stopped: while its function is still in its thread that is said, with exit code 1; afterwards it has finished;
    and another caller's, or an unknown one, is exit code 7."""
    still = command("cancel", running.address, "one", "--grace", "0.1", "--json")
    told = json.loads(still.out)
    assert (still.code, told["outcome"], told["step_ids"]) == (1, "still stopping", ["demo::hold"])
    assert 0 < told["stopping_secs"] < 10
    shown = command("cancel", running.address, "one", "--grace", "0")
    assert shown.code == 1
    assert shown.out.startswith("still stopping: demo::hold since ")
    running.let_go.set()
    assert command("cancel", running.address, "one", "--grace", "10").code == 0
    assert command("cancel", running.address, "one") == (0, "already finished\n", "")
    unknown = command("cancel", running.address, "two")
    assert unknown.code == 7
    assert "no invocation two of this caller's is known here" in one_line(unknown)
