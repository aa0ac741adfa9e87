"""One client used from many places at once: event loops, threads, a thousand calls; always one connection."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from blazen_peer import PeerClient, PeerServer, StartEvent, StopEvent, TransportError
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawPeers = Callable[..., Awaitable[Any]]
ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


async def serving(_: bytes, __: ServicerContext) -> bytes:
    """Answer a health check."""
    return health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()


def echo_once_all_are_there(count: int) -> Callable[..., Awaitable[bytes]]:
    """A handler that answers with the input, but nobody before *count* calls are in flight at once."""
    waiting, all_there = 0, asyncio.Event()

    async def answer(message: bytes, _: ServicerContext) -> bytes:
        nonlocal waiting
        request = SubWorkflowRequest.decode(peer_pb2.PostcardRequest.FromString(message).postcard_payload)
        waiting += 1
        if waiting == count:
            all_there.set()
        await all_there.wait()
        envelope = SubWorkflowResponse(result_json=request.input_json).encode()
        return peer_pb2.PostcardResponse(postcard_payload=envelope).SerializeToString()

    return answer


async def test_a_thousand_calls_that_need_each_other(serve: Serve, connect: Connect, registry: Registry) -> None:
    """1,000 calls of one client, none of which can finish before all have begun, each get their own answer."""
    waiting, all_there = 0, asyncio.Event()

    @registry.step("meets")
    async def meets(event: StartEvent) -> StopEvent:
        nonlocal waiting
        waiting += 1
        if waiting == 1000:
            all_there.set()
        await all_there.wait()
        return StopEvent(result=event.data)

    client = await connect(await serve())
    async with asyncio.timeout(60):
        calls = [client.run_remote_workflow("w", ["meets"], str(number), 50) for number in range(1000)]
        results = await asyncio.gather(*calls)
    assert [result.result for result in results] == list(range(1000))


async def test_one_connection(raw_peer: RawPeers, connect: Connect) -> None:
    """1,000 calls in flight at once share the one TCP connection that the client greeted the peer on."""
    peer = await raw_peer(echo_once_all_are_there(1000), serving)
    client = await connect(peer.address)
    async with asyncio.timeout(60):
        calls = [client.run_remote_workflow("w", ["s"], str(number), 50) for number in range(1000)]
        assert [result.result for result in await asyncio.gather(*calls)] == list(range(1000))
    assert len(peer.connections) == 1


async def test_loops_and_threads_at_once(raw_peer: RawPeers) -> None:
    """Two loops in two threads, this one, and plain threads call by one client at once; on one connection, each its answer."""
    peer = await raw_peer(echo_once_all_are_there(25), serving)
    client = await asyncio.to_thread(PeerClient.connect, peer.address, "node-a")

    async def five(first: int) -> list[Any]:
        calls = [client.run_remote_workflow("w", ["s"], str(number), 20) for number in range(first, first + 5)]
        return [result.result for result in await asyncio.gather(*calls)]

    def one(number: int) -> Any:
        return client.run_remote_workflow_blocking("w", ["s"], str(number), 20).result

    async with client, asyncio.timeout(30):
        with ThreadPoolExecutor(12) as threads:
            loop = asyncio.get_running_loop()
            others = [loop.run_in_executor(threads, lambda first=first: asyncio.run(five(first))) for first in (0, 5)]
            plain = [loop.run_in_executor(threads, one, number) for number in range(15, 25)]
            here = await five(10)
            assert [*(number for found in await asyncio.gather(*others) for number in found), *here] == list(range(15))
            assert await asyncio.gather(*plain) == list(range(15, 25))
    assert len(peer.connections) == 1


async def test_loops_one_after_another(raw_peer: RawPeers) -> None:
    """A client outlives the loops that used it: one connection throughout, and nothing kept of the loops that are over."""
    peer = await raw_peer(echo_once_all_are_there(1), serving)
    client = await asyncio.to_thread(PeerClient.connect, peer.address, "node-a")
    for number in range(20):
        call = client.run_remote_workflow("w", ["s"], str(number))
        assert (await asyncio.to_thread(asyncio.run, call)).result == number
    gc.collect()
    assert len(peer.connections) == 1
    assert len(client._channels._endpoints) <= 2
    await client.aclose()


async def test_clients_do_not_close_each_other(raw_peer: RawPeers, connect: Connect) -> None:
    """Closing one client leaves another of the same address alone, with a call of its in flight."""
    release = asyncio.Event()

    async def answer(message: bytes, context: ServicerContext) -> bytes:
        await release.wait()
        return await echo_once_all_are_there(1)(message, context)

    peer = await raw_peer(answer)
    first, second = await connect(peer.address), await connect(peer.address, "node-c")
    call = asyncio.create_task(second.run_remote_workflow("w", ["s"], "1"))
    async with asyncio.timeout(10):
        while not peer.calls:  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)
        await first.aclose()
        release.set()
        assert (await call).result == 1
        assert (await second.run_remote_workflow("w", ["s"], "2")).result == 2


async def test_reconnects(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A client whose peer went away and came back at the same address works again by itself."""

    @registry.step("echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    async with PeerServer("node-b", registry=registry).serving() as server:
        client = await connect(server)
        assert (await client.run_remote_workflow("w", ["echo"], "1")).result == 1
    await serve(address=server.address.removeprefix("http://"))
    async with asyncio.timeout(10):
        result = None
        while result is None:
            with contextlib.suppress(TransportError):  # while it has not noticed yet
                result = await client.run_remote_workflow("w", ["echo"], "2")
    assert result.result == 2


def test_plain_threads_share_a_loop_that_ends_nothing(registry: Registry) -> None:
    """A blocking call keeps the calling thread's context variables to itself and sees none of the loop's others."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    from blazen_peer.transport.channels import run_in_background

    async def look() -> str:
        seen = variable.get()
        variable.set("changed there")
        return seen

    variable.set("set here")
    assert run_in_background(look()) == "set here"
    assert variable.get() == "set here"
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(run_in_background(look())))
    thread.start()
    thread.join(10)
    assert seen == ["unset"]


async def test_five_megabytes(serve: Serve, connect: Connect, registry: Registry) -> None:
    """5 MB go there and come back whole, while small calls go on beside them."""

    @registry.step("echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    client = await connect(await serve())
    text = "dø" * 1_700_000
    big = client.run_remote_workflow("w", ["echo"], f'"{text}"')
    small = (client.run_remote_workflow("w", ["echo"], str(number)) for number in range(20))
    first, *others = await asyncio.gather(big, *small)
    assert first.result == text
    assert [result.result for result in others] == list(range(20))
    assert first.event.data_json == f'"{text}"'
