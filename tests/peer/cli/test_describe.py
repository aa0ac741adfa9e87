"""``blazen-peer describe``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from blazen_peer import ServerSettings

Command = Callable[..., Any]
StartPeer = Callable[..., Any]


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
    assert "echo demo::echo -" in lines


def test_describe_for_programs(a_peer: StartPeer, command: Command) -> None:
    """``--json`` has everything, durations in seconds, with a JSON Schema for each typed event and null for others."""
    outcome = command("describe", a_peer().address, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    said = json.loads(outcome.out)
    assert list(said) == [
        "node_id",
        "version",
        "envelope_version",
        "instance_id",
        "limits",
        "lanes",
        "steps",
        "workflows",
        "policy",
    ]
    assert (said["node_id"], said["envelope_version"]) == ("node-b", 1)
    assert said["limits"] == {
        "max_message_bytes": 64 * 1024 * 1024,
        "max_runs": 4096,
        "max_queued_runs": 1024,
        "default_timeout_secs": 300.0,
        "max_timeout_secs": 3600.0,
    }
    echo = {"name": "echo", "step_ids": ["demo::echo"], "data_class": None, "data_class_by_input": False}
    assert (said["workflows"], said["policy"]) == ([echo], None)
    steps = {step["id"]: step for step in said["steps"]}
    assert list(steps) == ["demo::boom", "demo::echo", "demo::emit", "demo::greet", "demo::hold", "demo::put"]
    assert steps["demo::echo"]["accepts"] == [{"event_type": "blazen::StartEvent", "json_schema": None}]
    greeting = steps["demo::greet"]["accepts"][0]["json_schema"]
    assert (greeting["required"], greeting["properties"]["who"]["type"]) == (["who"], "string")
    assert steps["demo::greet"]["emits"][0]["event_type"] == "demo::Greeted"


def test_describe_opens_a_lane(a_peer: StartPeer, command: Command) -> None:
    """``--lane`` says whether calls could go by one; a peer whose messages are too small has none."""
    outcome = command("describe", a_peer().address, "--lane")
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "calls go by a lane")
    outcome = command("describe", a_peer().address, "--lane", "--json")
    assert json.loads(outcome.out)["why_alone"] is None
    small = a_peer(settings=ServerSettings(max_message_bytes=100_000)).address
    why = json.loads(command("describe", small, "--lane", "--json").out)["why_alone"]
    assert why == "the peer has no lanes, or one end takes no messages of their size"
    assert command("describe", small, "--lane").out.splitlines()[-1] == f"calls go alone: {why}"
