"""What a client makes of peers that break the rules of lanes, or whose lanes break as soon as they are used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from blazen_peer import EncodeError, PeerError, TransportError, ValidationError
from blazen_peer.transport import lane as lane_module
from blazen_peer.transport.lane_limits import MAX_OPEN_FRAMES
from blazen_peer.transport.proto import control_pb2, lane_pb2
from tests.peer.conftest import Connect, RawPeers, Serve
from tests.peer.lane.conftest import soon

Serving = Callable[[Any, int], Awaitable[None]]
BadPeers = Callable[[Serving], Awaitable[tuple[str, list[float]]]]


@pytest.fixture
def bad_peer(raw_peer: RawPeers) -> BadPeers:
    """A factory: a server whose lanes are served by ``serve(context, number)``; gives its address and when lanes came."""

    async def start(serve: Serving) -> tuple[str, list[float]]:
        async def serving(_: bytes, __: Any) -> bytes:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

        async def refusing(_: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.ABORTED, "alone")
            return b""

        opened: list[float] = []

        async def lane(_: object, context: Any) -> None:
            opened.append(time.monotonic())
            await serve(context, len(opened))

        peer = await raw_peer(refusing, serving)
        peer.by_lane, peer._lane = True, lane  # type: ignore[method-assign]
        return peer.address, opened

    return start


async def welcome(context: Any, max_open_frames: int = MAX_OPEN_FRAMES) -> None:
    await context.read()
    said = lane_pb2.Welcome(instance_id="bad", max_open_frames=max_open_frames, max_frame_bytes=262144)
    await context.write(lane_pb2.LaneResponse(welcome=said).SerializeToString())


async def test_breaks_as_soon_as_it_is_used(bad_peer: BadPeers, connect: Connect) -> None:
    """A call under which one lane after another breaks does not spin until its own deadline: it ends, and says so."""

    async def serve(context: Any, _: int) -> None:
        await welcome(context)
        await context.read()
        await context.abort(grpc.StatusCode.INTERNAL, "poisoned")

    address, opened = await bad_peer(serve)
    client = await connect(address)
    with pytest.raises(TransportError, match=r"so did the [0-9]+ lanes before it") as caught:
        await asyncio.wait_for(client.run_remote_workflow("w", ["echo"], "1", 60), 30)
    assert caught.value.may_have_run is True
    assert 3 <= len(opened) <= 15


@pytest.mark.parametrize(("mode", "why"), [("auto", "alone"), ("always", "lets no frame open on it")])
async def test_lets_nothing_in(bad_peer: BadPeers, connect: Connect, mode: str, why: str) -> None:
    """A lane on which no frame may be open is none: calls go alone, and no more of them are opened for each call."""

    async def serve(context: Any, _: int) -> None:
        await welcome(context, 0)
        await context.read()

    address, opened = await bad_peer(serve)
    client = await connect(address, lane=mode)
    for _ in range(5):
        with pytest.raises(PeerError, match=why):
            await asyncio.wait_for(client.run_remote_workflow("w", ["echo"], "1", 20), 20)
    assert len(opened) == (1 if mode == "auto" else 5)
    await soon(lambda: not client._lanes_here()._lanes)


async def test_ends_as_soon_as_it_is_open(bad_peer: BadPeers, connect: Connect) -> None:
    """Where several replicas are said to be there and each lane ends at once, the client does not open them for ever."""

    async def serve(context: Any, number: int) -> None:
        await context.send_initial_metadata((("x-blazen-replicas", "3"),))
        await welcome(context)
        if number == 1:
            await context.read()

    address, opened = await bad_peer(serve)
    client = await connect(address)
    first = asyncio.create_task(client.run_remote_workflow("w", ["echo"], "1", 20))
    lanes_of = client._lanes_here
    async with asyncio.timeout(20):
        while not opened or time.monotonic() - opened[-1] < 1.5:
            await asyncio.sleep(0.05)
            assert len(opened) < 60
    assert lanes_of().replicas == 3
    first.cancel()
    await asyncio.wait((first,))


async def test_answers_of_another_kind(bad_peer: BadPeers, connect: Connect) -> None:
    """A call that is answered as a Cancel would be, and a Cancel as a call, end with an error of ours."""

    async def serve(context: Any, _: int) -> None:
        await welcome(context)
        while (raw := await context.read()) is not grpc.aio.EOF:
            message, answer = lane_pb2.LaneRequest.FromString(raw), lane_pb2.LaneResponse()
            for call in message.calls:
                answer.cancelled.add(id=call.id, response=control_pb2.CancelResponse(outcome=1).SerializeToString())
            for cancel in message.cancels:
                answer.answers.add(id=cancel.id, envelope=b"no CancelResponse")
            await context.write(answer.SerializeToString())

    address, _ = await bad_peer(serve)
    client = await connect(address, lane="always")
    with pytest.raises(EncodeError, match="answers a call as it would a Cancel"):
        await asyncio.wait_for(client.run_remote_workflow("w", ["echo"], "1", 20), 20)
    with pytest.raises(EncodeError, match="answers a Cancel as it would a call"):
        await asyncio.wait_for(client.cancel("one"), 20)


async def test_takes_nothing(bad_peer: BadPeers, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """What given-up calls leave to be written to a peer that takes nothing is bounded: new calls go by another lane."""
    monkeypatch.setattr(lane_module, "MAX_UNSENT_BYTES", 1024 * 1024)
    over = asyncio.Event()

    async def serve(context: Any, _: int) -> None:
        await welcome(context)
        await over.wait()

    address, opened = await bad_peer(serve)
    client = await connect(address, lane="auto")
    document = f'"{"x" * 200_000}"'
    async with asyncio.timeout(10):  # before the peer's silence ends the lane
        while len(opened) < 2:
            call = asyncio.create_task(client.run_remote_workflow("w", ["echo"], document, 20))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait((call,))
    waiting = [lane._writer.waiting_bytes for lane in client._lanes_here()._lanes.values()]
    assert max(waiting) < 3 * 1024 * 1024
    over.set()


async def test_no_token_to_be_made(serve: Serve, connect: Connect, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no token can be made as a message is written, its calls end with that at once, and not by the peer's silence."""
    token = "a-token-of-this-test-0123456789abcdef"
    client = await connect(await serve(token=token), lane="always", token=token)
    assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1

    def fail(*_: Any, **__: Any) -> str:
        raise ValidationError("no token today")

    monkeypatch.setattr(client._minter, "header_value", fail)
    began = time.monotonic()
    with pytest.raises(ValidationError, match="no token today"):
        await asyncio.wait_for(client.run_remote_workflow("w", ["echo"], "1", 20), 25)
    assert time.monotonic() - began < 5
