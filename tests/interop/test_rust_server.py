"""Our client against the real Blazen server, plain and behind our sidecars: each outcome is a value or an error of ours.

One way alone: Blazen's own peers have no lanes.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blazen_peer import (
    EncodeError,
    PeerClient,
    PeerError,
    RefNotFoundError,
    TransportError,
    UnknownStepError,
    ValidationError,
    WorkflowError,
)

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120, func_only=True)]

PROMPT_SECS = 5.0
LIMIT_BYTES = 4 * 1024 * 1024


def executions(rust_peer: Any) -> list[str]:
    """Return the steps that the server executed, in order."""
    return [line.removeprefix("ran interop::") for line in rust_peer.log.splitlines() if line.startswith("ran ")]


async def test_no_health(rust_way: tuple[Any, str]) -> None:
    """It answers UNIMPLEMENTED to a health call; for connect, that is somebody who is there."""
    _, address = rust_way
    async with grpc.aio.insecure_channel(address.removeprefix("http://")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with await PeerClient.connect_async(address, "intake") as client:
        assert client.node_id == "intake"


async def test_two_steps(client: PeerClient, rust_peer: Any) -> None:
    """Two steps run once each, and the terminal event's payload comes back."""
    steps = ["interop::analyze", "interop::summarize"]
    result = await client.run_remote_workflow("pipeline", steps, '{"document": "one two three"}', 60)
    assert (result.event.event_type, result.event.data_json) == ("blazen::StopEvent", '{"words":3}')
    assert result.result == {"words": 3}
    assert executions(rust_peer) == ["analyze", "summarize"]


async def test_null_result(client: PeerClient, rust_peer: Any) -> None:
    """A null payload is a result, without a timeout given too."""
    assert (await client.run_remote_workflow("w", ["interop::null"], "1")).result is None
    assert executions(rust_peer) == ["null"]


@pytest.mark.parametrize(
    ("sent", "data_json"),
    [
        pytest.param(
            '{"b": "größer 😀", "a": [1, 2.5, true, null]}', '{"a":[1,2.5,true,null],"b":"größer 😀"}', id="sorts-keys"
        ),
        pytest.param("18446744073709551615", "18446744073709551615", id="largest-integer"),
        pytest.param("-9223372036854775808", "-9223372036854775808", id="smallest-integer"),
        pytest.param("1e2", "100.0", id="float"),
    ],
)
async def test_json(client: PeerClient, rust_peer: Any, sent: str, data_json: str) -> None:
    """JSON comes back with the same meaning; it sorts keys and rewrites floats."""
    result = await client.run_remote_workflow("w", ["interop::echo"], sent, 10)
    assert (result.event.data_json, result.result) == (data_json, json.loads(sent))


@pytest.mark.parametrize("sent", [pytest.param("18446744073709551616", id="too-large"), pytest.param("NaN", id="nan")])
async def test_json_it_would_change(client: PeerClient, rust_peer: Any, sent: str) -> None:
    """What it would change without a word (or refuse) is refused here, and nothing is sent."""
    with pytest.raises(ValidationError, match=r"^input_json is not JSON: "):
        await client.run_remote_workflow("w", ["interop::echo"], sent, 10)
    assert executions(rust_peer) == []


async def test_fan_out_and_in(client: PeerClient, rust_peer: Any) -> None:
    """A workflow with many events in flight gives one result. (How often it joins in vain differs each time.)"""
    steps = ["interop::split", "interop::work", "interop::join"]
    assert (await client.run_remote_workflow("w", steps, "null", 10)).result == sum(range(10))
    executed = Counter(executions(rust_peer))
    assert (executed["split"], executed["work"]) == (1, 10)


async def test_calls_at_once(client: PeerClient, rust_peer: Any) -> None:
    """200 calls at once on one connection each get their own answer, after one execution."""
    calls = (client.run_remote_workflow("w", ["interop::echo"], str(number), 60) for number in range(200))
    assert [result.result for result in await asyncio.gather(*calls)] == list(range(200))
    assert executions(rust_peer) == ["echo"] * 200


async def test_unknown_step(client: PeerClient, rust_peer: Any) -> None:
    """The first unknown step is named in the text (it tells no more than that), and nothing runs."""
    with pytest.raises(UnknownStepError, match=r"^unknown step id `interop::nope`$") as caught:
        await client.run_remote_workflow("w", ["interop::echo", "interop::nope", "interop::neither"], "1", 10)
    assert (caught.value.kind, caught.value.step_id) == ("UnknownStep", None)
    assert executions(rust_peer) == []


async def test_empty_step_list(client: PeerClient, rust_peer: Any) -> None:
    """It has no workflows by name: an empty list is its internal error, and ours of kind Protocol."""
    with pytest.raises(PeerError, match=r"^workflow build failed: ") as caught:
        await client.run_remote_workflow("w", [], "1", 10)
    assert (type(caught.value), caught.value.kind, caught.value.status) == (PeerError, "Protocol", "INTERNAL")


async def test_failing_step(client: PeerClient, rust_peer: Any) -> None:
    """A step that returns an error, once, is a workflow error with its own wording."""
    with pytest.raises(WorkflowError, match=r"^workflow error: step 'fail' failed: context error: no such page$"):
        await client.run_remote_workflow("w", ["interop::fail"], '"no such page"', 10)
    assert executions(rust_peer) == ["fail"]


async def test_event_that_nobody_accepts(client: PeerClient, rust_peer: Any) -> None:
    """It words an event without an acceptor as we do."""
    with pytest.raises(WorkflowError, match=r"^workflow error: no handler for event type: interop_server::Stray$"):
        await client.run_remote_workflow("w", ["interop::stray"], "1", 10)


@pytest.mark.parametrize("step", [pytest.param("panics", id="panics"), pytest.param("sleep", id="sleeps")])
async def test_timeout(client: PeerClient, rust_peer: Any, step: str) -> None:
    """A step that sleeps past its timeout, or panics (it tells nobody), ends as a timeout near it, after one execution."""
    began = asyncio.get_running_loop().time()
    with pytest.raises(WorkflowError, match=r"^workflow timed out after 1s$"):
        await client.run_remote_workflow("w", [f"interop::{step}"], "30", 1)
    assert 1 <= asyncio.get_running_loop().time() - began < 1 + PROMPT_SECS
    assert executions(rust_peer) == [step]


async def test_run_that_it_stops(client: PeerClient, rust_peer: Any) -> None:
    """It stops a run whose timeout passes, and one whose caller no longer waits; the step is told by being dropped."""
    with pytest.raises(WorkflowError, match=r"^workflow timed out after 1s$"):
        await client.run_remote_workflow("w", ["interop::sleep"], "60", 1)
    await asyncio.to_thread(rust_peer.wait_for, "stopped interop::sleep\n")
    call = asyncio.create_task(client.run_remote_workflow("w", ["interop::sleep"], "60", 60))
    await asyncio.to_thread(rust_peer.wait_for, "ran interop::sleep\nstopped interop::sleep\nran interop::sleep\n")
    call.cancel()
    await asyncio.to_thread(rust_peer.wait_for, 2 * "ran interop::sleep\nstopped interop::sleep\n")


async def test_request_over_4_mib(client: PeerClient, rust_peer: Any) -> None:
    """A request over its limit is an EncodeError with the size and the limit; nothing runs, and just below it all is well."""
    with pytest.raises(EncodeError) as caught:
        await client.run_remote_workflow("w", ["interop::echo"], json.dumps("x" * LIMIT_BYTES), 60)
    assert caught.value.limit_bytes == LIMIT_BYTES
    assert LIMIT_BYTES < (caught.value.size_bytes or 0) < LIMIT_BYTES + 100
    assert executions(rust_peer) == []
    document = "x" * (LIMIT_BYTES - 100)
    assert (await client.run_remote_workflow("w", ["interop::echo"], json.dumps(document), 60)).result == document


async def test_large_result(client: PeerClient, rust_peer: Any) -> None:
    """It sends results of any size, and our client takes them up to its own limit of 64 MiB."""
    assert len((await client.run_remote_workflow("w", ["interop::fill"], "20000000", 60)).result) == 20_000_000


async def test_refs(client: PeerClient, rust_peer: Any) -> None:
    """Its refs are dereferenced to the bytes, and released once; then, and for any other name, there is no such ref."""
    result = await client.run_remote_workflow("w", ["interop::keep"], '"größer"', 10)
    [ref] = result.remote_refs.values()
    assert (str(ref.uuid), ref.origin_node_id, ref.type_tag) == (result.result, "rust-node", "interop::Opaque")
    assert await client.deref(ref) == "größer".encode()
    assert (await client.release(ref), await client.release(ref)) == (True, False)
    for missing in (ref, replace(ref, uuid=UUID(int=7))):
        with pytest.raises(RefNotFoundError, match=rf"^session ref {missing.uuid} not found$"):
            await client.deref(missing)


async def test_refs_of_others(client: PeerClient, rust_peer: Any) -> None:
    """It lists every ref of its process with each answer, another run's too."""
    first = await client.run_remote_workflow("w", ["interop::keep"], '"one"', 10)
    second = await client.run_remote_workflow("w", ["interop::keep"], '"two"', 10)
    assert {str(uuid) for uuid in second.remote_refs} == {first.result, second.result}


async def test_what_it_lacks(client: PeerClient, rust_peer: Any) -> None:
    """It has neither the stream nor our second service: each call for them is of kind Unsupported, and nothing runs."""

    async def stream() -> None:
        async for event in client.stream_remote_workflow("w", ["interop::echo"], "1", 10, invocation_id="one"):
            raise AssertionError(event)

    async def attach() -> None:
        async for event in client.attach("one"):
            raise AssertionError(event)

    for call in (stream, attach, client.describe, client.list_refs, lambda: client.cancel("one")):
        with pytest.raises(PeerError) as caught:
            await call()
        assert (type(caught.value), caught.value.kind, caught.value.status) == (PeerError, "Unsupported", "UNIMPLEMENTED")
    assert executions(rust_peer) == []


async def test_repeated_call(client: PeerClient, rust_peer: Any) -> None:
    """It knows no invocation ids: a second call under the same one is another run, as the page warns."""
    for _ in range(2):
        assert (await client.run_remote_workflow("w", ["interop::echo"], "1", 10, invocation_id="one")).result == 1
    assert executions(rust_peer) == ["echo", "echo"]


async def test_no_repeat_at_another_process(rust_plain: Any, programs: Any, start_peer: Any) -> None:
    """With retries asked for, a run that was lost with its server is not begun again at the one that follows on its port."""
    first, address = rust_plain
    async with await PeerClient.connect_async(address, "intake") as client:
        call = asyncio.create_task(client.run_remote_workflow("w", ["interop::sleep"], "30", 60, retries=5))
        await asyncio.to_thread(first.wait_for, "ran interop::sleep")
        first.end(signal.SIGKILL)
        second = start_peer(str(programs.server), address.removeprefix("http://"))
        await asyncio.to_thread(second.wait_for, "listens on ")
        with pytest.raises(TransportError) as caught:
            await asyncio.wait_for(call, 30)
        assert caught.value.may_have_run
        assert (await client.run_remote_workflow("w", ["interop::echo"], "1", 10)).result == 1
    assert (executions(first), executions(second)) == (["sleep"], ["echo"])


async def test_server_dies(client: PeerClient, rust_peer: Any) -> None:
    """A server that dies during a run leaves a TransportError that says that it may have run; it did, once."""
    call = asyncio.create_task(client.run_remote_workflow("w", ["interop::sleep"], "30", 60))
    await asyncio.to_thread(rust_peer.wait_for, "ran interop::sleep")
    rust_peer.process.kill()
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(call, 20)
    assert caught.value.may_have_run
    assert executions(rust_peer) == ["sleep"]
