"""The real Blazen client against our server: what a Rust user sees (and so Swift, Go, Kotlin, Ruby and Node users)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from blazen_peer.wire import SubWorkflowEvent, SubWorkflowRequest
from tests.interop.clients import invocation
from tests.interop.conftest import FLOW, TOKEN, OurPeer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120, func_only=True)]

PROMPT_SECS = 5.0
MIB = 1024 * 1024


def answered(result_json: str) -> dict[str, Any]:
    """Return what the client shows of a run that ended with *result_json*."""
    return {"version": 1, "state": {}, "result_json": result_json, "refs": {}, "error": None}


def ended(error: str) -> dict[str, Any]:
    """Return what the client shows of a run that failed."""
    return {"version": 1, "state": {}, "result_json": None, "refs": {}, "error": error}


def refused(code: str, message: str) -> dict[str, Any]:
    """Return what the client shows of any refusal: one kind, and a text."""
    text = f"tonic transport error: code: '{code}', message: {json.dumps(message)}"
    return {"failed": {"kind": "Transport", "text": text}}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"document": "größer 😀", "list": [1, 2.5, True, None, {}]}, id="object"),
        pytest.param("text", id="text"),
        pytest.param([], id="empty-list"),
        pytest.param(2**64 - 1, id="largest-integer"),
        pytest.param(-(2**63), id="smallest-integer"),
        pytest.param(None, id="null"),
    ],
)
async def test_result(rust_client: Any, our_peer: Any, document: Any) -> None:
    """The input reaches the step as it is, and the terminal event's payload comes back bare; null is a result, not nothing."""
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke(["interop::echo"], document)
    assert json.loads(answer["result_json"]) == document
    assert answer == answered(answer["result_json"])
    assert our_peer.begun == {"interop::echo": 1}


async def test_two_steps(rust_client: Any, our_peer: Any) -> None:
    """Named one by one, two steps run once each, in plain functions too."""
    rust = await rust_client(our_peer.address)
    steps = ["interop::analyze", "interop::summarize"]
    assert await rust.invoke(steps, {"document": "one two three"}, timeout_secs=60) == answered('{"words":3}')
    assert our_peer.begun == dict.fromkeys(steps, 1)


async def test_who_calls(rust_client: Any, our_peer: Any) -> None:
    """Through the sidecars the step knows the caller's certified name, in plain text nothing of it."""
    rust = await rust_client(our_peer.address)
    caller = json.loads((await rust.invoke(["interop::caller"]))["result_json"])
    assert caller == our_peer.seen_caller


async def test_unknown_step(rust_client: Any, our_peer: Any) -> None:
    """The first step id that is not registered is named, and nothing is executed."""
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke(["interop::echo", "interop::nope", "interop::neither"])
    assert answer == refused("Some requested entity was not found", "unknown step id `interop::nope`")
    assert not our_peer.begun


async def test_empty_step_list(rust_client: Any, our_peer: Any) -> None:
    """No step ids: all steps of the workflow registered under that name run; a name that nobody registered is refused."""
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke([], {"document": "one two"}, workflow="analyze-pipeline")
    assert answer == answered('{"words":2}')
    assert our_peer.begun == {"interop::analyze": 1, "interop::summarize": 1}
    answer = await rust.invoke([], workflow="analyse-pipeline")
    assert answer == refused("Some requested entity was not found", "unknown workflow `analyse-pipeline`")


async def test_workflow_error(rust_client: Any, our_peer: Any) -> None:
    """A step that raises is an answer with the wire's own text: the step's id and the message alone."""
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke(["interop::fail"], "no such page")
    assert answer == ended("workflow error: step 'interop::fail' failed: no such page")
    assert our_peer.begun == {"interop::fail": 1}


async def test_timeout(rust_client: Any, our_peer: Any) -> None:
    """A run past its time ends near it, as the wire says, after one execution that never finished."""
    rust = await rust_client(our_peer.address)
    began = asyncio.get_running_loop().time()
    assert await rust.invoke(["interop::hold"], timeout_secs=1) == ended("workflow timed out after 1s")
    assert 1 <= asyncio.get_running_loop().time() - began < 1 + PROMPT_SECS
    assert (our_peer.begun, our_peer.finished) == ({"interop::hold": 1}, {})


async def test_newer_envelope(rust_client: Any, our_peer: Any) -> None:
    """A newer version is refused as such, the next call served."""
    rust = await rust_client(our_peer.address)
    failed_precondition = "The system is not in a state required for the operation's execution"
    answer = await rust.invoke(["interop::echo"], version=2)
    assert answer == refused(failed_precondition, "envelope version 2 is newer than supported 1")
    assert not our_peer.begun
    assert await rust.invoke(["interop::echo"], 1, version=0) == answered("1")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(b"", "postcard decode failed: ", id="nothing"),
        pytest.param(b"\x01\xff\xff\xff\xff\x7f", "postcard decode failed: ", id="absurd-length"),
        pytest.param(b"\x01\x02\xff\xfe", "postcard decode failed: ", id="not-utf-8"),
        pytest.param(SubWorkflowRequest("w", ("s",), b"1", 1).encode()[:-2], "postcard decode failed: ", id="cut-short"),
        pytest.param(SubWorkflowRequest("w", ("interop::echo",), b"{").encode(), "invalid input JSON: ", id="not-json"),
    ],
)
async def test_garbage(rust_client: Any, our_peer: Any, payload: bytes, text: str) -> None:
    """Bytes that are no request get INVALID_ARGUMENT with the wire's text, and the next call is served."""
    rust = await rust_client(our_peer.address)
    status = (await rust.raw("invoke", payload))["status"]
    assert status["code"] == "InvalidArgument"
    assert status["text"].startswith(text)
    assert not our_peer.begun
    assert await rust.invoke(["interop::echo"], 1) == answered("1")


async def test_near_4_mib(rust_client: Any, our_peer: Any) -> None:
    """An input and a result just under 4 MiB, the most that its client takes, pass."""
    rust = await rust_client(our_peer.address)
    document = "x" * (4 * MIB - 100)
    assert await rust.invoke(["interop::echo"], document, timeout_secs=60) == answered(json.dumps(document))
    assert our_peer.begun == {"interop::echo": 1}


async def test_result_over_4_mib(rust_client: Any, our_peer: Any) -> None:
    """A larger input reaches us and runs; it is its own client that does not take the result."""
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke(["interop::echo"], "x" * (5 * MIB), timeout_secs=60)
    assert answer["failed"]["kind"] == "Transport"
    assert f"the limit is: {4 * MIB} bytes" in answer["failed"]["text"]
    assert our_peer.begun == {"interop::echo": 1}


async def test_refs(rust_client: Any, our_peer: Any) -> None:
    """A run's refs alone are listed, with their making; dereferenced to the bytes, and released once."""
    rust = await rust_client(our_peer.address)
    before_ms = time.time() * 1000
    first = await rust.invoke(["interop::keep"], {"text": "größer"})
    second = await rust.invoke(["interop::keep"], {"text": "kleiner"})
    [(uuid, (origin, tag, created_ms))] = first["refs"].items()
    assert (json.loads(first["result_json"]), origin, tag) == (uuid, "analyst", "interop::Text")
    assert before_ms - 1 <= created_ms <= time.time() * 1000
    assert list(second["refs"]) == [json.loads(second["result_json"])] != [uuid]
    assert await rust.ask({"do": "deref", "uuid": uuid}) == {"bytes": list("größer".encode())}
    assert await rust.ask({"do": "release", "uuid": uuid}) == {"released": True}
    assert await rust.ask({"do": "release", "uuid": uuid}) == {"released": False}
    answer = await rust.ask({"do": "deref", "uuid": uuid})
    assert answer == refused("Some requested entity was not found", f"session ref {uuid} not found")


async def test_stream(rust_client: Any, our_peer: Any) -> None:
    """Its generated client, which nothing of Blazen uses yet, reads the stream that we serve: each event, then the end."""
    rust = await rust_client(our_peer.address)
    answer = await rust.raw("stream", SubWorkflowRequest("w", ("interop::report",), b"3", 10).encode())
    *events, last = [SubWorkflowEvent.decode(bytes(payload)) for payload in answer["payloads"]]
    shown = [(event.sequence, event.event_type, json.loads(event.data_json)) for event in events]
    assert shown == [(number + 1, "interop::Progress", {"number": number}) for number in range(3)]
    assert last.terminal is not None
    assert (last.event_type, last.terminal.result_json, last.terminal.error) == ("blazen::End", b'"done"', None)
    assert await rust.invoke(["interop::report"], 3) == answered('"done"')
    assert our_peer.begun == {"interop::report": 2}


async def test_caller_dies(rust_client: Any, our_peer: Any) -> None:
    """A caller that dies severs its own wait alone: the run goes on to its end, once."""
    rust = await rust_client(our_peer.address)
    await rust.send(invocation(["interop::hold"]))
    await asyncio.wait_for(our_peer.held.wait(), 10)
    await rust.close()
    assert (our_peer.begun, our_peer.finished) == ({"interop::hold": 1}, {})
    our_peer.release.set()
    await asyncio.wait_for(our_peer.done.wait(), 10)
    assert (our_peer.begun, our_peer.finished) == ({"interop::hold": 1}, {"interop::hold": 1})


async def test_nobody_there(start_rust_client: Any, free_port: int) -> None:
    """Without anybody at the address its connect fails."""
    rust = await start_rust_client(f"http://127.0.0.1:{free_port}")
    assert await rust.answer() == {"failed": {"kind": "Transport", "text": "tonic transport error: transport error"}}


@pytest.mark.envoy
async def test_token_is_not_injected(rust_client: Any, start_mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends no token, whatever its environment has: where its sidecar injects none, a call is refused, and nothing runs."""
    mesh = await start_mesh(stand_ins=False, token=TOKEN)
    peer = OurPeer()
    server = peer.server(token=TOKEN, require_identity=True, sidecar_proof_file=mesh.proof_file("analyst"))
    async with server.serving(mesh.listen("analyst")):
        rust = await rust_client(f"http://{mesh.egress(*FLOW)}")
        answer = await rust.invoke(["interop::echo"])
    assert answer == refused(
        "The request does not have valid authentication credentials", "the call was refused: a valid token is needed"
    )
    assert not peer.begun


@pytest.mark.envoy
async def test_peer_is_down(rust_client: Any, start_mesh: Any) -> None:
    """Behind a sidecar its connect says nothing about the peer: the first call does."""
    mesh = await start_mesh(stand_ins=False, inject=[FLOW])
    rust = await rust_client(f"http://{mesh.egress(*FLOW)}")
    answer = await rust.invoke(["interop::echo"])
    assert answer["failed"]["kind"] == "Transport"
    assert answer["failed"]["text"].startswith("tonic transport error: code: 'The service is currently unavailable', message: ")
