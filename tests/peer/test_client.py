"""A client by itself: what it checks before it sends, what it sends, how long it waits, how it ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from blazen_peer import (
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    ValidationError,
    WorkflowError,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from tests.peer.wire_proxy import wired

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawPeers = Callable[..., Awaitable[Any]]
ServicerContext = grpc.aio.ServicerContext[bytes, bytes]
TEN_YEARS_SECS = 10 * 365 * 86_400
MOST_OF_GRPC_SECS = 27_000 * 3_600  # gRPC core tells the other end no longer time than this
DONE = peer_pb2.PostcardResponse(postcard_payload=SubWorkflowResponse(result_json=b"null").encode()).SerializeToString()


async def done(_: bytes, __: ServicerContext) -> bytes:
    """Answer with the result null."""
    return DONE


async def hang(_: bytes, __: ServicerContext) -> bytes:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)


TIMEOUTS = [
    pytest.param(None, None, None, 3605, id="none-and-a-peer-that-tells-nothing"),
    pytest.param(0, None, 0, 5, id="0"),
    pytest.param(0.25, "250", 1, 5.25, id="a-fraction"),
    pytest.param(4.03, "4030", 5, 9.03, id="a-fraction-that-binary-rounds-up"),
    pytest.param(1e-9, "1", 1, 5.001, id="less-than-a-millisecond"),
    pytest.param(60, None, 60, 65, id="whole"),
    pytest.param(math.inf, None, TEN_YEARS_SECS, MOST_OF_GRPC_SECS, id="infinite"),
    pytest.param(1e12, None, TEN_YEARS_SECS, MOST_OF_GRPC_SECS, id="absurd"),
]


@pytest.mark.parametrize(("timeout_secs", "milliseconds", "whole_secs", "deadline_secs"), TIMEOUTS)
async def test_timeouts_as_sent(
    raw_peer: RawPeers,
    connect: Connect,
    timeout_secs: float | None,
    milliseconds: str | None,
    whole_secs: int | None,
    deadline_secs: float,
    way: str,
) -> None:
    """The envelope has whole seconds, rounded up, metadata the exact time where that is less; the deadline sits 5 s above."""
    peer = await raw_peer(done)
    client = await connect(peer.address)
    await client.run_remote_workflow("w", ["s"], "null", timeout_secs)
    [(envelope, metadata)] = peer.calls
    assert SubWorkflowRequest.decode(envelope).timeout_secs == whole_secs
    assert metadata.get("blazen-timeout-ms") == milliseconds
    if way == "by-lane":
        assert peer.remaining_secs == [None]  # a frame has none
    else:
        assert deadline_secs - 2 < peer.remaining_secs[0] <= deadline_secs * 1.01  # gRPC rounds it to a few digits


async def test_what_is_sent(raw_peer: RawPeers, connect: Connect) -> None:
    """A call carries exactly the envelope of the arguments, the node id, an id of its own; no token and no trace unasked."""
    peer = await raw_peer(done)
    client = await connect(peer.address)
    for _ in range(2):
        await client.run_remote_workflow("wörk", ["a", "b"], ' {"k": 1e2 } ')
    sent = [SubWorkflowRequest.decode(envelope) for envelope, _ in peer.calls]
    assert sent == [SubWorkflowRequest("wörk", ("a", "b"), b' {"k": 1e2 } ', None)] * 2
    first, second = (metadata for _, metadata in peer.calls)
    assert first["blazen-client-node-id"] == "node-a"
    assert len({first["blazen-invocation-id"], second["blazen-invocation-id"]}) == 2
    assert not {"authorization", "traceparent", "tracestate"} & set(first)


async def test_the_servers_default(serve: Serve, connect: Connect, registry: Registry) -> None:
    """Without a timeout the server's default counts, and the client is told of it by the server's answer, not by its own."""

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        await asyncio.Event().wait()
        return StopEvent()

    server = await serve(settings=ServerSettings(default_timeout_secs=0.3, drain_secs=0))
    client = await connect(server)
    began = time.monotonic()
    with pytest.raises(WorkflowError, match=r"workflow timed out after 0\.3s$"):
        await client.run_remote_workflow("w", ["waits"], "null")
    assert 0.25 < time.monotonic() - began < 3


async def test_the_servers_default_is_learned(raw_peer: RawPeers, connect: Connect) -> None:
    """What the peer tells at connect bounds the client's own wait, where the call gives no timeout."""

    async def greet(_: bytes, context: ServicerContext) -> bytes:
        context.set_trailing_metadata((("blazen-default-timeout-ms", "300"),))
        return health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()

    peer = await raw_peer(done, greet)
    await (await connect(peer.address)).run_remote_workflow("w", ["s"], "null")
    assert 3 < peer.remaining_secs[0] <= 5.4


BAD_ARGUMENTS = [
    pytest.param({"input_json": ""}, id="json-empty"),
    pytest.param({"input_json": "{"}, id="json-cut-short"),
    pytest.param({"input_json": "{'a': 1}"}, id="json-of-python"),
    pytest.param({"input_json": "NaN"}, id="json-NaN"),
    pytest.param({"input_json": "-Infinity"}, id="json-infinity"),
    pytest.param({"input_json": "1e400"}, id="json-beyond-a-double"),
    pytest.param({"input_json": "18446744073709551616"}, id="json-beyond-64-bits"),
    pytest.param({"input_json": "-9223372036854775809"}, id="json-below-64-bits"),
    pytest.param({"input_json": "\ufeff1"}, id="json-byte-order-mark"),
    pytest.param({"input_json": '"\ud800"'}, id="json-lone-surrogate"),
    pytest.param({"input_json": '"\\ud800"'}, id="json-lone-surrogate-escaped"),
    pytest.param({"input_json": "[" * 128 + "]" * 128}, id="json-too-deep"),
    pytest.param({"input_json": {"a": 1}}, id="an-object-instead-of-json-text"),
    pytest.param({"input_json": b"{}"}, id="bytes-instead-of-text"),
    pytest.param({"input_json": None}, id="none-instead-of-text"),
    pytest.param({"step_ids": "my_app::analyze"}, id="steps-one-string"),
    pytest.param({"step_ids": None}, id="steps-none"),
    pytest.param({"step_ids": [1]}, id="steps-of-numbers"),
    pytest.param({"step_ids": ["\ud800"]}, id="steps-lone-surrogate"),
    pytest.param({"workflow_name": "\udfff"}, id="name-lone-surrogate"),
    pytest.param({"workflow_name": None}, id="name-none"),
    pytest.param({"timeout_secs": -1}, id="timeout-negative"),
    pytest.param({"timeout_secs": -0.001}, id="timeout-a-little-negative"),
    pytest.param({"timeout_secs": math.nan}, id="timeout-NaN"),
    pytest.param({"timeout_secs": -math.inf}, id="timeout-minus-infinity"),
    pytest.param({"timeout_secs": "5"}, id="timeout-text"),
    pytest.param({"timeout_secs": True}, id="timeout-true"),
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
async def test_bad_arguments(raw_peer: RawPeers, connect: Connect, arguments: dict[str, Any]) -> None:
    """Arguments that are not usable are a ValidationError of one line, and nothing is sent."""
    peer = await raw_peer(done)
    client = await connect(peer.address)
    with pytest.raises(ValidationError) as caught:
        await client.run_remote_workflow(**{"workflow_name": "w", "step_ids": ["s"], "input_json": "null", **arguments})
    assert "\n" not in str(caught.value)
    assert peer.calls == []


async def test_close_ends_calls_in_flight(raw_peer: RawPeers, connect: Connect) -> None:
    """Calls in flight end with TransportError when the client is closed, a thread's too; later ones are refused."""
    peer = await raw_peer(hang)
    client = await connect(peer.address)
    call = asyncio.create_task(client.run_remote_workflow("w", ["s"], "1"))
    thread_call = asyncio.create_task(asyncio.to_thread(client.run_remote_workflow_blocking, "w", ["s"], "2"))
    await until(lambda: len(peer.calls) == 2)
    client.close()
    async with asyncio.timeout(5):
        for ended in (call, thread_call):
            with pytest.raises(TransportError) as caught:
                await ended
            assert caught.value.may_have_run is True
    client.close()
    await client.aclose()
    for later in (client.run_remote_workflow("w", ["s"], "1"), client.describe()):
        with pytest.raises(ValidationError, match="closed"):
            await later
    assert len(peer.calls) == 2


async def test_async_context_manager(serve: Serve) -> None:
    """``async with`` closes, also when its block raises, and lets the error through."""
    server = await serve()
    client = await PeerClient.connect_async(server.address, "node-a")
    with pytest.raises(KeyError):
        async with client:
            raise KeyError
    with pytest.raises(ValidationError, match="closed"):
        await client.run_remote_workflow("w", ["s"], "1")


async def test_cancelling_severs_the_wait_only(
    serve: Serve, connect: Connect, registry: Registry, severed: asyncio.Event
) -> None:
    """Cancelling the awaiting task ends the wait at once, as a cancellation; the run goes on to its end on the peer."""
    begun, go, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @registry.step("slow")
    async def slow(event: StartEvent) -> StopEvent:
        begun.set()
        await go.wait()
        finished.set()
        return StopEvent()

    server = await serve()
    client = await connect(server)
    call = asyncio.create_task(client.run_remote_workflow("w", ["slow"], "1"))
    async with asyncio.timeout(10):
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await severed.wait()
        assert server._invocations.in_progress == 1
        go.set()
        await finished.wait()
    await until(lambda: server._invocations.in_progress == 0)


async def test_connecting_may_take_a_while(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A way on which nothing comes back for 600 ms, far away or busy, is connected all the same, and used."""

    @registry.step("far::echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    server = await serve()
    async with wired(server) as wire:
        wire.delay_secs = 0.6
        client = await connect(wire.address)
        assert (await client.run_remote_workflow("w", ["far::echo"], "1", 10)).result == 1
        assert wire.connections == 1
