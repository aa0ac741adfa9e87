"""What a caller gets from a real peer behind two real sidecars, and how often the step ran for it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blazen_peer import (
    EncodeError,
    EnvelopeVersionError,
    OverloadedError,
    ServerSettings,
    StartEvent,
    StopEvent,
    UnauthenticatedError,
    UnknownStepError,
    WorkflowError,
)
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call
PROMPT_SECS = 3.0


def framed(payload: bytes) -> bytes:
    """Return *payload* in the protobuf message that the wire asks for."""
    return PostcardRequest(postcard_payload=payload).SerializeToString()


async def test_result(remote: Any) -> None:
    """The terminal event's payload comes back bare, after one execution."""
    client = await remote.connect()
    result = await client.run_remote_workflow("echo", ["demo::echo"], '{"document": "größer"}')
    assert (result.event.event_type, result.result) == ("blazen::StopEvent", {"document": "größer"})
    assert json.loads(result.event.data_json) == {"document": "größer"}
    assert remote.begun == {"demo::echo": 1}


async def test_caller_is_the_certified_name(remote: Any) -> None:
    """A step sees the full SPIFFE id of whoever called, from the certificate."""
    client = await remote.connect()
    assert (await client.run_remote_workflow("who", ["demo::caller"], "null")).result == "spiffe://mesh.test/peer/intake"


@pytest.mark.slow
async def test_step_of_20_secs(remote: Any) -> None:
    """A step that takes 20 s is waited for, executed once: no sidecar cuts it (Envoy's default is 15 s), neither with the
    deadline that our client sends nor without any, as Blazen's own clients call."""
    client = await remote.connect()
    begun = time.monotonic()
    request = remote.message("demo::wait", 20, timeout_secs=None)
    ours, theirs = await asyncio.gather(
        client.run_remote_workflow("wait", ["demo::wait"], "20", 60),
        remote.invoke(request, [remote.bearer(remote.jwt())], timeout_secs=None),
    )
    assert time.monotonic() - begun >= 20
    assert (ours.result, theirs.result_json) == (20, b"20")
    assert remote.begun == {"demo::wait": 2}


async def test_five_megabytes_both_ways(remote: Any) -> None:
    """An input and a result of 5 MB pass: over gRPC's default limit and more than a sidecar holds."""
    client = await remote.connect()
    document = "ä" * 1000 + "x" * 5_000_000
    assert (await client.run_remote_workflow("echo", ["demo::echo"], json.dumps(document), 60)).result == document
    assert remote.begun == {"demo::echo": 1}


async def test_unknown_step(remote: Any) -> None:
    """A step id that is not registered is named, the first of several, and nothing is executed."""
    client = await remote.connect()
    with pytest.raises(UnknownStepError, match=r"^unknown step id `demo::nope`$") as caught:
        await client.run_remote_workflow("echo", ["demo::echo", "demo::nope", "demo::neither"], "null")
    assert caught.value.step_id == "demo::nope"
    with pytest.raises(UnknownStepError, match=r"^unknown workflow `echo`$"):
        await client.run_remote_workflow("echo", [], "null")
    assert not remote.begun


async def test_workflow_error(remote: Any, way: str) -> None:
    """A step that raises, once, is an error with the wire's own text; the call itself succeeded."""
    client = await remote.connect()
    with pytest.raises(WorkflowError) as caught:
        await client.run_remote_workflow("fail", ["demo::fail"], '"no such page"')
    assert str(caught.value) == "workflow error: step 'demo::fail' failed: no such page"
    assert remote.begun == {"demo::fail": 1}
    if way == "alone":
        assert (await remote.mesh.wait_log("analyst", log="call", grpc_status="OK")) != []


async def test_deadline(remote: Any) -> None:
    """A run past its time ends as the wire says, near that time, and its step is cancelled."""
    client = await remote.connect()
    begun = time.monotonic()
    with pytest.raises(WorkflowError, match=r"^workflow timed out after 1s$"):
        await client.run_remote_workflow("hold", ["demo::hold"], "null", 1)
    assert 1 <= time.monotonic() - begun < 1 + PROMPT_SECS
    assert (remote.begun, remote.finished) == ({"demo::hold": 1}, {})


async def test_no_time_at_all(remote: Any) -> None:
    """With a timeout of 0 only what never waits succeeds."""
    client = await remote.connect()
    assert (await client.run_remote_workflow("echo", ["demo::echo"], "7", 0)).result == 7
    with pytest.raises(WorkflowError, match=r"^workflow timed out after 0s$"):
        await client.run_remote_workflow("hold", ["demo::hold"], "null", 0)
    assert (remote.begun["demo::echo"], remote.finished["demo::hold"]) == (1, 0)


async def test_over_a_limit(start_remote: Any) -> None:
    """One run more than may be is refused, with the time after which to try again; it was not executed."""
    remote = await start_remote(server={"settings": ServerSettings(lame_duck_secs=0, max_runs=1, max_queued_runs=0)})
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow("hold", ["demo::hold"], "null", 30))
    await asyncio.wait_for(remote.held.wait(), 10)
    with pytest.raises(OverloadedError) as caught:
        await client.run_remote_workflow("echo", ["demo::echo"], "null")
    assert caught.value.retry_after_secs == 1
    remote.release.set()
    await call
    assert remote.begun == {"demo::hold": 1}


async def test_newer_envelope(remote: Any) -> None:
    """A newer version is reported as such, both numbers with it, even where the rest has another layout."""
    newer = (remote.message("demo::echo", version=2), framed(b"\x02\xff\xff\xff"), framed(b"\x02"))
    for request in newer:
        with pytest.raises(EnvelopeVersionError, match=r"^envelope version 2 is newer than supported 1$") as caught:
            await remote.invoke(request, [remote.bearer(remote.jwt())])
        assert (caught.value.got, caught.value.supported) == (2, 1)
        assert caught.value.__cause__.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not remote.begun
    assert (await remote.invoke(remote.message("demo::echo", 1, version=0), [remote.bearer(remote.jwt())])).result_json == b"1"


@pytest.mark.parametrize(
    ("request_bytes", "text"),
    [
        pytest.param(b"\xff\xff\xff\xff", "postcard decode failed: ", id="not-protobuf"),
        pytest.param(b"", "postcard decode failed: ", id="nothing"),
        pytest.param(framed(b""), "postcard decode failed: ", id="no-postcard"),
        pytest.param(framed(b"\x01\xff\xff\xff\xff\x7f"), "postcard decode failed: ", id="absurd-length"),
        pytest.param(framed(b"\x01\x02\xff\xfe"), "postcard decode failed: ", id="not-utf-8"),
        pytest.param(
            framed(SubWorkflowRequest("w", ("demo::echo",), b"null", 1).encode()[:-2]),
            "postcard decode failed: ",
            id="cut-short",
        ),
        pytest.param(framed(SubWorkflowRequest("w", ("demo::echo",), b"{").encode()), "invalid input JSON: ", id="not-json"),
        pytest.param(framed(SubWorkflowRequest("w", ("demo::echo",), b"NaN").encode()), "invalid input JSON: ", id="nan"),
    ],
)
async def test_garbage(remote: Any, request_bytes: bytes, text: str) -> None:
    """Bytes that are no request get INVALID_ARGUMENT with the wire's text, and the next call is served."""
    authorized = [remote.bearer(remote.jwt())]
    with pytest.raises(EncodeError, match=f"^{text}") as caught:
        await remote.invoke(request_bytes, authorized)
    assert caught.value.__cause__.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not remote.begun
    assert (await remote.invoke(remote.message("demo::echo", 1), authorized)).result_json == b"1"


async def test_cancelled_wait_leaves_the_run(remote: Any, way: str) -> None:
    """A caller that stops waiting severs its wait alone: the run goes on to its end, once."""
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow("hold", ["demo::hold"], "null", 30))
    await asyncio.wait_for(remote.held.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    # The cancellation has passed both sidecars and reached the peer before the run may go on.
    if way == "alone":
        await remote.mesh.wait_log("analyst", log="call", method="/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")
    else:
        async with asyncio.timeout(10):
            while any(lane.open_frames for lane in remote.server._lanes.lanes):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
    assert (remote.begun, remote.finished) == ({"demo::hold": 1}, {})
    remote.release.set()
    await asyncio.wait_for(remote.done.wait(), 10)
    assert (remote.begun, remote.finished) == ({"demo::hold": 1}, {"demo::hold": 1})


async def test_health_needs_no_token(remote: Any) -> None:
    """Health passes without a token where every other call is refused."""
    async with grpc.aio.insecure_channel(remote.egress.removeprefix("http://")) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    client = await remote.connect(token=None)
    with pytest.raises(UnauthenticatedError):
        await client.run_remote_workflow("echo", ["demo::echo"], "null")
    with pytest.raises(UnauthenticatedError):
        await client.describe()
    assert not remote.begun


async def test_thousand_calls_on_one_connection(remote: Any, way: str) -> None:
    """1,000 calls of one client, none of which can end before all have begun, share one connection on each hop; each gets
    its own answer, after one execution."""
    total, all_there = 1000, asyncio.Event()

    @remote.registry.step("demo::barrier")
    async def barrier(event: StartEvent) -> StopEvent:
        remote.begun["demo::barrier"] += 1
        if remote.begun["demo::barrier"] == total:
            all_there.set()
        await all_there.wait()
        return StopEvent(result={"answer": event.data})

    client = await remote.connect()
    calls = (client.run_remote_workflow("barrier", ["demo::barrier"], str(number), 60) for number in range(total))
    results = await asyncio.gather(*calls)
    assert [result.result for result in results] == [{"answer": number} for number in range(total)]
    assert remote.begun == {"demo::barrier": total}
    for node, hop in (("intake", "egress.analyst"), ("analyst", "ingress")):
        stats = await remote.mesh.sidecars[node].admin.stats(rf"^http\.{hop}\.downstream_(cx|rq)_total$")
        # One more than the calls, or than their one lane: connect's health call.
        assert {name.rpartition(".")[2]: value for name, value in stats.items()} == {
            "downstream_cx_total": 1,
            "downstream_rq_total": 1 + (total if way == "alone" else 1),
        }
