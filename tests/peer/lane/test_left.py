"""What frames leave behind at a server: what it keeps of those that nobody waits for, and what one call sees of another."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextvars import ContextVar
from typing import Any

from blazen_peer import ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.served_frames import ServedFrames
from tests.peer.conftest import Connect, Serve
from tests.peer.lane.conftest import soon

Request = lane_pb2.LaneRequest


async def test_lane_of_a_long_run(serve: Serve, raw_lane: Any, envelope: Any, work: Any) -> None:
    """A run that outlives its lane holds nothing of it, nor of the answers that waited in it; the run goes on."""
    server = await serve()
    lane = await raw_lane(server)
    await lane.send(Request(calls=[lane_pb2.Call(id=1, envelope=envelope("hold", 1), invocation_id="held")]))
    await asyncio.wait_for(work.held.wait(), 20)
    [served] = server._lanes.lanes
    frames: weakref.ref[ServedFrames] = weakref.ref(served._frames)
    del served
    lane.call.cancel()
    await soon(lambda: not server._lanes.lanes)
    await soon(lambda: gc.collect() >= 0 and frames() is None)
    assert server._invocations.in_progress == 1
    work.release.set()


async def test_dropped_with_its_call(serve: Serve, raw_lane: Any, envelope: Any, work: Any) -> None:
    """A frame that its caller gives up before the message with it is out is waited for no more; its run goes on."""
    server = await serve()
    lane = await raw_lane(server)
    call = {"envelope": envelope("hold", 1)}
    calls = [lane_pb2.Call(id=1, **call), lane_pb2.Call(id=2, stream=True, event_credit=1, **call)]
    await lane.send(Request(calls=calls, dropped=[1, 2]))
    await asyncio.wait_for(work.held.wait(), 20)
    [served] = server._lanes.lanes
    await lane.send(Request(calls=[lane_pb2.Call(id=3, envelope=envelope("echo", 1))]))
    while not (await lane.read()).answers:
        pass
    await soon(lambda: served.open_frames == 0, 10)  # before its silence ends the lane
    assert server._invocations.in_progress == 2
    work.release.set()


async def test_slow_link(serve: Serve, raw_lane: Any, envelope: Any, work: Any, monkeypatch: Any) -> None:
    """A caller that takes many answers slowly is not silent: what it says meanwhile is not read before there is room."""
    monkeypatch.setattr("blazen_peer.transport.served_lane.SILENCE_SECS", 1.0)
    server = await serve()
    lane = await raw_lane(server)
    calls = [lane_pb2.Call(id=n, envelope=envelope("large", 200_000)) for n in range(1, 201)]
    await lane.send(Request(calls=calls))
    await soon(lambda: work.begun["large"] == 200)

    async def ping() -> None:
        while True:
            await lane.send(Request(ping=True))
            await asyncio.sleep(0.2)

    pinging = asyncio.create_task(ping())
    began, answered = time.monotonic(), 0
    while answered < 200:
        answered += len((await lane.read()).answers)
        await asyncio.sleep(0.04)  # it is the time that is tested
    assert time.monotonic() - began > 2
    assert len(server._lanes.lanes) == 1
    pinging.cancel()


async def test_context_of_another_call(serve: Serve, connect: Connect, registry: Registry) -> None:
    """What a step, or the function that gives a call's class, sets in its context is not seen by another call of the lane."""
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")

    @registry.step("tell")
    async def tell(event: StartEvent) -> StopEvent:
        found = whose.get()
        whose.set("a step's")
        return StopEvent(result=found)

    def class_of(_: object) -> str:
        whose.set("a function's")
        return "internal"

    workflow = Workflow("classed", ["tell"], registry=registry, data_class=class_of)
    client = await connect(await serve(workflows=[workflow]), lane="always")
    for name in ("classed", "classed", "other"):
        assert (await client.run_remote_workflow(name, ["tell"], "1", 20)).result == "nobody's"


async def test_large_answers_of_a_peer_that_drains(serve: Serve, connect: Connect, registry: Registry, work: Any) -> None:
    """A peer that drains gives callers their time to fetch what is too large for a frame; it ends at once when they have."""

    @registry.step("held-large")
    async def held_large(_: StartEvent) -> StopEvent:
        work.begun["held-large"] += 1
        await work.release.wait()
        return StopEvent(result="x" * 1_000_000)

    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=30))
    client = await connect(server)
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["held-large"], "1", 60)) for _ in range(20)]
    await soon(lambda: work.begun["held-large"] == 20)
    draining = asyncio.create_task(server.drain())
    await soon(lambda: server._invocations._refusing)
    work.release.set()
    async with asyncio.timeout(20):
        assert {len((await call).result) for call in calls} == {1_000_000}
        await draining
    assert work.begun["held-large"] == 20
