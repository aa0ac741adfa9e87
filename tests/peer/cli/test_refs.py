"""``blazen-peer refs``, and what ``run`` says of the refs that a run left."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
StartPeer = Callable[..., Any]
OneLine = Callable[[Any], str]

TOKEN = "t0ken-" * 8


@pytest.fixture
def put(command: Command) -> Callable[..., str]:
    """Have a run leave a ref, and return its uuid."""

    def put(address: str, text: str = "value", *options: str) -> str:
        argv = ("run", address, "w", "--step", "demo::put", "--input", json.dumps(text), "--json", *options)
        return str(json.loads(command(*argv).out)["result"])

    return put


def test_run_tells_of_refs(a_peer: StartPeer, command: Command) -> None:
    """``--json`` lists the refs that the run left, and has no such key where there are none; for people on standard error."""
    address = a_peer().address
    argv = ("run", address, "w", "--step", "demo::put", "--input", '"value"')
    said = json.loads(command(*argv, "--json").out)
    assert list(said) == ["result", "trace_id", "refs"]
    [ref] = said["refs"]
    assert list(ref) == ["uuid", "origin_node_id", "type_tag", "created_at_epoch_ms"]
    assert (ref["uuid"], ref["origin_node_id"], ref["type_tag"]) == (said["result"], "node-b", "demo::Text")
    assert "refs" not in json.loads(command("run", address, "echo", "--json").out)
    outcome = command(*argv)
    assert outcome.err.splitlines()[-1] == f"session ref {json.loads(outcome.out)} demo::Text"


def test_list(a_peer: StartPeer, command: Command, put: Callable[..., str]) -> None:
    """What the peer holds is listed, oldest first, for people and for programs."""
    address = a_peer().address
    refs = [put(address, text) for text in ("one", "three")]
    lines = command("refs", "list", address).out.splitlines()
    assert [line.split()[0] for line in lines if "demo::Text" in line] == refs
    said = json.loads(command("refs", "list", address, "--json").out)["refs"]
    assert [(ref["uuid"], ref["size_bytes"], ref["lifetime"]) for ref in said] == [
        (refs[0], 3, "context"),
        (refs[1], 5, "context"),
    ]
    assert all(3500 < ref["lease_left_secs"] <= 3600 for ref in said)


def test_deref(a_peer: StartPeer, command: Command, put: Callable[..., str], tmp_path: Path) -> None:
    """A value's bytes go to standard output, or to a file and nothing beside it."""
    address = a_peer().address
    ref = put(address, "value")
    assert command("refs", "deref", address, ref) == (0, "value", "")
    (tmp_path / "copy").write_text("what was there")
    assert command("refs", "deref", address, ref, "--output", str(tmp_path / "copy")) == (0, "", "")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"copy": "value"}


def test_no_file_of_what_is_not_there(
    a_peer: StartPeer, command: Command, one_line: OneLine, tmp_path: Path, put: Callable[..., str]
) -> None:
    """A value that cannot be had leaves no file, and one that is there as it is."""
    address = a_peer().address
    (tmp_path / "copy").write_text("what was there")
    missing = str(uuid.uuid4())
    outcome = command("refs", "deref", address, missing, "--output", str(tmp_path / "copy"))
    assert outcome.code == 7
    assert one_line(outcome).startswith(f"session ref {missing} not found (blazen-peer refs list ADDRESS")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"copy": "what was there"}
    outcome = command("refs", "deref", address, put(address), "--output", str(tmp_path / "no" / "copy"))
    assert (outcome.code, one_line(outcome)) == (2, f"cannot write {tmp_path}/no/copy: No such file or directory")


def test_release(a_peer: StartPeer, command: Command, one_line: OneLine, put: Callable[..., str]) -> None:
    """A release ends a ref once; a second one says that there was none."""
    address = a_peer().address
    ref = put(address)
    assert command("refs", "release", address, ref) == (0, "", "")
    outcome = command("refs", "release", address, ref)
    assert outcome.code == 7
    assert one_line(outcome).startswith(f"session ref {ref} not found")
    assert json.loads(command("refs", "release", address, put(address), "--json").out) == {"released": True}


def test_another_node(a_peer: StartPeer, command: Command, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The refs of one node are nothing to another's command."""
    monkeypatch.setenv("BLAZEN_PEER_TOKEN", TOKEN)
    address = a_peer().address
    ref = put(address, "value", "--node-id", "node-a")
    assert json.loads(command("refs", "list", address, "--node-id", "node-c", "--json").out) == {"refs": []}
    assert command("refs", "deref", address, ref, "--node-id", "node-c").code == 7
    assert command("refs", "release", address, ref, "--node-id", "node-c").code == 7
    assert command("refs", "deref", address, ref, "--node-id", "node-a").out == "value"


@pytest.mark.parametrize("name", ["deref", "release"])
def test_no_uuid(a_peer: StartPeer, command: Command, one_line: OneLine, name: str) -> None:
    """What is no uuid is wrong use."""
    outcome = command("refs", name, a_peer().address, "model")
    assert (outcome.code, one_line(outcome)) == (2, "'model' is not the uuid of a session ref")
