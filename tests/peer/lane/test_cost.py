"""What a call of a lane leaves behind, and what it does not wait for."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from blazen_peer import PeerClient, PeerServer, TransportError
from blazen_peer.runtime.invocation import Invocation
from blazen_peer.runtime.run import Run
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire.metadata import CallMetadata
from tests.peer.lane.conftest import soon

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Python's cycle collector does not run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("lane", ["always", "never"])
@pytest.mark.usefixtures("no_collector", "work")
async def test_nothing_for_the_collector(serve: Serve, connect: Connect, lane: str) -> None:
    """A run and its call are freed at their end, with what they carried, and do not wait for the cycle collector."""
    client = await connect(await serve(), lane=lane)
    before = [item for item in gc.get_objects() if isinstance(item, Run | Invocation)]  # other tests', held: ids stay theirs
    others = {id(item) for item in before}

    def left() -> Counter[str]:
        found = (item for item in gc.get_objects() if isinstance(item, Run | Invocation) and id(item) not in others)
        return Counter(type(item).__name__ for item in found)

    await asyncio.gather(*(client.run_remote_workflow("w", ["echo"], str(n), 20) for n in range(20)))
    await soon(lambda: not left(), 5)


async def test_answers_before_the_rest(serve: Serve, raw_lane: Any, envelope: Any, work: Any) -> None:
    """What the first calls of a large message answer goes out while the rest is worked on: neither end waits for the other."""
    lane = await raw_lane(await serve())
    await lane.send(lane_pb2.LaneRequest(calls=[lane_pb2.Call(id=n, envelope=envelope("echo", n)) for n in range(1, 257)]))
    messages = [await lane.read()]
    while sum(len(message.answers) for message in messages) < 256:
        messages.append(await lane.read())
    assert len(messages) > 1
    assert sorted(answer.id for message in messages for answer in message.answers) == list(range(1, 257))
    assert work.begun["echo"] == 256


async def test_deadlines_by_one_timer(serve: Serve, connect: Connect, envelope: Any, work: Any) -> None:
    """Each call on a lane ends at its own deadline, in whatever order they were made; those that are left are answered."""
    client = await connect(await serve(), lane="always")
    await client.run_remote_workflow("w", ["echo"], "1", 20)
    lane = client._lanes_here().least()
    assert lane is not None
    began, ended = time.monotonic(), {}

    async def call(deadline_secs: float) -> None:
        try:
            await lane.invoke(envelope("hold"), CallMetadata(), deadline_secs)
        except TransportError:
            ended[deadline_secs] = time.monotonic() - began

    calls = [asyncio.create_task(call(secs)) for secs in (0.5, 30.0, 0.2, 0.8)]
    await soon(lambda: len(ended) == 3)
    assert list(ended) == [0.2, 0.5, 0.8]
    assert all(secs <= took < secs + 5 for secs, took in ended.items())
    assert lane.in_flight == 1
    work.release.set()
    await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert list(ended) == [0.2, 0.5, 0.8]
