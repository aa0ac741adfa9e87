"""Going away: health first, then a lame duck that still takes calls, then refusals, then the end, in bounded time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from blazen_peer import PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent, TransportError, WorkflowError
from blazen_peer.runtime.registry import Registry
from blazen_peer.server import CANCEL_GRACE_SECS
from blazen_peer.testing import peers, virtual_time
from blazen_peer.wire import SubWorkflowRequest

both_ways = pytest.mark.usefixtures("way")  # lanes in virtual time break: draining them is in lane/test_flow.py

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
Health = health_pb2.HealthCheckResponse


class Gates:
    """What the steps of a test wait for."""

    def __init__(self) -> None:
        self.begun, self.go, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()


@pytest.fixture
def gates(registry: Registry) -> Gates:
    """Steps: "quick" returns at once, "waits" until it may go, "clings" whatever happens to it."""
    gates = Gates()

    @registry.step("quick")
    async def quick(event: StartEvent) -> StopEvent:
        return StopEvent(result="quick")

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        gates.begun.set()
        try:
            await gates.go.wait()
        except asyncio.CancelledError:
            gates.cancelled.set()
            raise
        return StopEvent(result="waited")

    @registry.step("clings")
    async def clings(event: StartEvent) -> StopEvent:
        gates.begun.set()
        while not gates.go.is_set():
            try:
                await gates.go.wait()
            except asyncio.CancelledError:
                gates.cancelled.set()
        return StopEvent()

    return gates


async def watch(server: PeerServer) -> AsyncIterator[int]:
    """Give the server's health as a sidecar's health check sees it: now, and at each change."""
    async with grpc.aio.insecure_channel(server.address.removeprefix("http://")) as channel:
        method = channel.unary_stream("/grpc.health.v1.Health/Watch")
        async for message in method(health_pb2.HealthCheckRequest().SerializeToString(), timeout=20):
            yield Health.FromString(message).status


async def call(client: PeerClient, step_id: str, timeout_secs: float = 40) -> Any:
    return (await client.run_remote_workflow("w", [step_id], "null", timeout_secs)).result


async def refused(client: PeerClient) -> TransportError:
    """Call until the server refuses, as it does once its lame duck is over."""
    async with asyncio.timeout(10):
        while True:
            try:
                assert await call(client, "quick") == "quick"
            except TransportError as error:
                return error


async def test_in_good_order(registry: Registry, gates: Gates) -> None:
    """NOT_SERVING at once, calls taken during the lame duck, refused after it; what runs finishes, and its caller hears it."""
    settings = ServerSettings(lame_duck_secs=30, drain_secs=60)
    async with peers(registry=registry, settings=settings) as pair, virtual_time() as clock:
        health = watch(pair.server)
        assert await anext(health) == Health.SERVING
        running = asyncio.create_task(call(pair.client, "waits"))
        await pair.recorder.wait_for("waits")
        drained = asyncio.create_task(pair.server.drain())
        assert await anext(health) == Health.NOT_SERVING
        await clock.advance(29.9)
        assert await call(pair.client, "quick") == "quick"
        await clock.advance(0.1)
        error = await refused(pair.client)
        assert error.may_have_run is False
        assert "going away" in str(error)
        assert pair.recorder.count("quick") == 1
        assert not drained.done()
        gates.go.set()
        assert await running == "waited"
        await clock.advance(CANCEL_GRACE_SECS)  # for the health stream, which is still open
        await drained
        with pytest.raises(TransportError) as caught:
            await pair.connect("node-c", timeout_secs=1)
        assert caught.value.may_have_run is False
        with pytest.raises((StopAsyncIteration, grpc.aio.AioRpcError)):
            await anext(health)


@both_ways
async def test_the_refusal_is_unavailable(
    serve: Serve, connect: Connect, gates: Gates, raw_call: Callable[..., Awaitable[bytes]]
) -> None:
    """On the wire the refusal is UNAVAILABLE; a request that cannot be run is still told so."""
    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=10))
    running = asyncio.create_task(call(await connect(server), "waits"))
    async with asyncio.timeout(10):
        await gates.begun.wait()
        drained = asyncio.create_task(server.drain())
        await refused(await connect(server))
        codes = []
        for step_id in ("quick", "no such step"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw_call(server, SubWorkflowRequest("w", (step_id,), b"1").encode())
            codes.append(caught.value.code())
        assert codes == [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND]
        gates.go.set()
        await asyncio.gather(running, drained)


@pytest.mark.parametrize("step_id", ["waits", "clings"])
async def test_what_does_not_finish_is_cancelled(registry: Registry, gates: Gates, step_id: str) -> None:
    """After ``drain_secs`` and not before runs are cancelled, their callers hear it, and the drain ends whatever steps do."""
    settings = ServerSettings(lame_duck_secs=0, drain_secs=120)
    async with peers(registry=registry, settings=settings) as pair, virtual_time() as clock:
        running = asyncio.create_task(call(pair.client, step_id, 600))
        await pair.recorder.wait_for(step_id)
        drained = asyncio.create_task(pair.server.drain())
        await clock.advance(119.9)
        assert not gates.cancelled.is_set()
        await clock.advance(0.1)
        assert gates.cancelled.is_set()
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await running
        await drained
    gates.go.set()


@both_ways
async def test_a_stuck_thread(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A plain function that never lets go of its thread does not hold the drain."""
    begun, release = threading.Event(), threading.Event()

    @registry.step("stuck")
    def stuck(event: StartEvent) -> None:
        begun.set()
        assert release.wait(30)

    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=0.1))
    running = asyncio.create_task(call(await connect(server), "stuck"))
    try:
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(begun.wait, 5)
            await server.drain()
            with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
                await running
    finally:
        release.set()


@both_ways
async def test_drain_twice(serve: Serve, connect: Connect, gates: Gates) -> None:
    """Draining again, at once or later, waits for the same end; giving up one wait does not stop the drain."""
    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=10))
    running = asyncio.create_task(call(await connect(server), "waits"))
    async with asyncio.timeout(10):
        await gates.begun.wait()
        first, second, third = (asyncio.create_task(server.drain()) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        gates.go.set()
        await asyncio.gather(first, third)
        await server.drain()
        assert await running == "waited"


async def test_serve_returns(registry: Registry, gates: Gates) -> None:
    """``serve`` returns when the drain is over; an idle server's drain takes no longer than its lame duck."""
    server = PeerServer("node-b", registry=registry, settings=ServerSettings(lame_duck_secs=0.1))
    serving = asyncio.create_task(server.serve("127.0.0.1:0"))
    async with asyncio.timeout(10):
        while server._address is None:  # noqa: ASYNC110 - polled: serve() tells nobody
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await server.drain()
        await serving
    assert 0.09 < time.monotonic() - began < 2


async def test_serve_cancelled_while_draining(registry: Registry, gates: Gates) -> None:
    """Cancelling ``serve`` in the middle of a drain ends it at once; what runs is cancelled, and its caller hears it."""
    server = PeerServer("node-b", registry=registry, settings=ServerSettings(lame_duck_secs=30, drain_secs=30))
    serving = asyncio.create_task(server.serve("127.0.0.1:0"))
    async with asyncio.timeout(10):
        while server._address is None:  # noqa: ASYNC110 - polled: serve() tells nobody
            await asyncio.sleep(0.001)
        async with await PeerClient.connect_async(server.address, "node-a") as client:
            running = asyncio.create_task(call(client, "waits"))
            await gates.begun.wait()
            drained = asyncio.create_task(server.drain())
            await asyncio.sleep(0)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
                await running
            with pytest.raises(asyncio.CancelledError):
                await drained


SLOW = ServerSettings(lame_duck_secs=30, drain_secs=10)


async def test_leaving_the_block_drains(registry: Registry, gates: Gates, stack: AsyncExitStack) -> None:
    """Leaving ``serving`` lets what runs finish, without a lame duck."""
    async with asyncio.timeout(10):
        async with PeerServer("node-b", registry=registry, settings=SLOW).serving() as server:
            client = await stack.enter_async_context(await PeerClient.connect_async(server.address, "node-a"))
            running = asyncio.create_task(call(client, "waits"))
            await gates.begun.wait()
            asyncio.get_running_loop().call_later(0.05, gates.go.set)
        assert await running == "waited"


async def test_an_error_in_the_block_ends_it_at_once(registry: Registry, gates: Gates, stack: AsyncExitStack) -> None:
    """An error in the block of ``serving`` cancels what runs, whose callers hear it, and comes out as it was."""

    async def broken() -> None:
        async with PeerServer("node-b", registry=registry, settings=SLOW).serving() as server:
            client = await stack.enter_async_context(await PeerClient.connect_async(server.address, "node-a"))
            running.append(asyncio.create_task(call(client, "waits")))
            await gates.begun.wait()
            raise KeyError

    running: list[asyncio.Task[Any]] = []
    async with asyncio.timeout(5):
        with pytest.raises(KeyError):
            await broken()
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await running[0]
