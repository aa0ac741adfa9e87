"""Lanes without our client: what any other end may send; and steps that count, wait and emit."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from blazen_peer import Context, Event, PeerServer, StartEvent, StopEvent
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lane_servicer import LANE_METHOD
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire import SubWorkflowRequest
from tests.peer.policy.conftest import guarded, proof_file, refusals  # noqa: F401 - fixtures

RawLanes = Callable[..., Awaitable["RawLane"]]


async def soon(condition: Callable[[], object], secs: float = 20) -> None:
    """Wait until *condition* is so."""
    async with asyncio.timeout(secs):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


class Work:
    """What the steps did, and what lets them go on."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.held, self.release = asyncio.Event(), asyncio.Event()


@pytest.fixture
def work(registry: Registry) -> Work:
    """Steps: ``echo``; ``hold``, which waits; ``large``, whose answer has that many characters; ``emit``, that many events."""
    work = Work()

    def count(ctx: Context) -> None:
        work.begun[ctx.step_id] += 1

    @registry.step("echo")
    async def echo(event: StartEvent, ctx: Context) -> StopEvent:
        count(ctx)
        return StopEvent(result=event.data)

    @registry.step("hold")
    async def hold(event: StartEvent, ctx: Context) -> StopEvent:
        count(ctx)
        work.held.set()
        await work.release.wait()
        return StopEvent(result=event.data)

    @registry.step("large")
    async def large(event: StartEvent, ctx: Context) -> StopEvent:
        count(ctx)
        return StopEvent(result="x" * event.data)

    @registry.step("emit")
    async def emit(event: StartEvent, ctx: Context) -> StopEvent:
        count(ctx)
        for number in range(event.data):
            ctx.emit(Event.dynamic("demo::Number", {"n": number}))
        work.held.set()
        await work.release.wait()
        return StopEvent(result="done")

    return work


class RawLane:
    """A lane as bytes: the test writes messages and reads the peer's."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, message: lane_pb2.LaneRequest | bytes) -> None:
        await self.call.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def read(self, secs: float = 10) -> lane_pb2.LaneResponse:
        """Return the peer's next message that is more than a sign of life; raise the lane's end."""
        async with asyncio.timeout(secs):
            while True:
                raw = await self.call.read()
                if raw is grpc.aio.EOF:
                    raise EOFError(f"the lane ended with {await self.call.code()}")
                message = lane_pb2.LaneResponse.FromString(raw)
                if message != lane_pb2.LaneResponse(ping=True):
                    return message

    async def ended(self, secs: float = 20) -> grpc.StatusCode:
        """Read until the peer ends the lane, and return with which status."""
        async with asyncio.timeout(secs):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error.code()
            return await self.call.code()


@pytest.fixture
def raw_lane(stack: AsyncExitStack) -> RawLanes:
    """A factory: a lane to a server on a connection of its own, greeted unless told otherwise."""

    async def start(server: PeerServer | str, *, hello: bool = True, **metadata: str) -> RawLane:
        address = server if isinstance(server, str) else server.address
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address.removeprefix("http://"), options=options))
        lane = RawLane(channel.stream_stream(LANE_METHOD)(metadata=tuple(metadata.items())))
        if hello:
            await lane.send(lane_pb2.LaneRequest(hello=lane_pb2.Hello(version=1, client_node_id="raw")))
            assert (await lane.read()).HasField("welcome")
        return lane

    return start


@pytest.fixture
def envelope() -> Callable[..., bytes]:
    """``envelope(step_id, input)``: a request for one step."""

    def make(step_id: str, document: object = None, timeout_secs: int | None = 20) -> bytes:
        return SubWorkflowRequest("w", (step_id,), json.dumps(document).encode(), timeout_secs).encode()

    return make


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many frames of each kind the clients of this process sent."""
    sent: Counter[str] = Counter()
    for name in ("invoke", "cancel", "stream", "attach"):
        method = getattr(Lane, name)

        def counted(lane: Lane, *args: Any, _method: Any = method, _name: str = name) -> Any:
            sent[_name] += 1
            return _method(lane, *args)

        monkeypatch.setattr(Lane, name, counted)
    return sent  # type: ignore[return-value]
