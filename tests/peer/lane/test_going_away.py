"""Lanes to a peer that drains or dies, and lanes that nobody uses."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Any

import pytest

from blazen_peer import PeerClient, ServerSettings, TransportError
from blazen_peer.remote_stream import RemoteStream
from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lane_limits import TAKE_UP_SECS
from tests.peer.conftest import Connect, Serve, Wires
from tests.peer.lane.conftest import soon

HOLD = ("w", ["hold"], "1", 60)


async def rest(stream: RemoteStream) -> list[object]:
    """Read a stream to its end."""
    return [event.data async for event in stream]


async def refused(client: PeerClient) -> TransportError:
    """Make calls until one is refused, and return with what."""
    async with asyncio.timeout(20):
        while True:
            try:
                await client.run_remote_workflow("w", ["echo"], "1", 20)
            except TransportError as error:
                return error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a peer that drains wait no longer than 1.5 s for callers whose lane has broken."""
    monkeypatch.setattr("blazen_peer.transport.lane_servicer.TAKE_UP_SECS", 1.5)


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_drain(serve: Serve, connect: Connect, wire: Wires, work: Any, mode: str) -> None:
    """A peer that drains answers what is in flight on its lanes, and finds it again for lanes that break in the lame duck and
    after it, or just as it is done. What is new is accepted in the lame duck, and refused then; nothing runs twice."""
    server = await serve(settings=ServerSettings(lame_duck_secs=1, drain_secs=30))
    cut = await wire(server)
    client = await connect(cut.address, lane=mode)
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["hold"], str(n), 60)) for n in range(5)]
    stream = client.stream_remote_workflow("w", ["emit"], "1", 60, invocation_id="one")
    attached = client.attach("one")
    assert [(await anext(each)).data for each in (stream, attached)] == [{"n": 0}, {"n": 0}]
    reading = [asyncio.create_task(rest(each)) for each in (stream, attached)]
    await soon(lambda: work.begun["hold"] == 5)
    lanes = client._lanes_here()
    old = lanes.least()
    draining = asyncio.create_task(server.drain())
    await soon(lambda: old.retired)
    for _ in range(3):
        cut.cut()
        assert (await client.run_remote_workflow("w", ["echo"], "7", 20, retries=20)).result == 7
    error = await refused(client)
    assert (str(error), error.may_have_run) == ("this peer is going away", False)
    assert not draining.done()
    cut.cut()  # and the runs end while nobody is there to hear
    work.release.set()
    async with asyncio.timeout(20):
        assert [(await call).result for call in calls] == list(range(5))
        assert [await each for each in reading] == [["done"], ["done"]]
        await draining
    assert (work.begun["hold"], work.begun["emit"]) == (5, 1)


@pytest.mark.parametrize("unix", [pytest.param(False, id="port"), pytest.param(True, id="unix-socket")])
async def test_gone_at_once(start_peer: Any, connect: Connect, free_port: int, tmp_path: Any, unix: bool) -> None:
    """When the peer's process is killed, and nobody listens in its place, what is in flight hears so at once."""
    (tmp_path / "gone_app.py").write_text(
        "import asyncio\n"
        "from blazen_peer import Event, Context, StartEvent, StopEvent, step\n"
        "@step('hold')\n"
        "async def hold(event: StartEvent, ctx: Context) -> StopEvent:\n"
        "    ctx.emit(Event.dynamic('demo::Begun'))\n"
        "    await asyncio.sleep(300)\n"
        "    return StopEvent()\n"
    )
    listen = f"unix:{tmp_path}/peer" if unix else f"127.0.0.1:{free_port}"
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    peer = start_peer("blazen-peer", "serve", "--app", "gone_app", "--node-id", "b", "--listen", listen, env=env)
    client = await connect(await asyncio.to_thread(lambda: peer.address))
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    stream = client.stream_remote_workflow(*HOLD)
    await anext(stream)
    peer.process.kill()
    died = time.monotonic()
    for waits in (call, anext(stream)):
        with pytest.raises(TransportError, match="the peer is gone") as caught:
            await asyncio.wait_for(waits, 20)
        assert caught.value.may_have_run is True
    assert time.monotonic() - died < TAKE_UP_SECS / 2


async def test_nobody_uses_it(serve: Serve, connect: Connect, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that nobody uses for minutes are closed, and the next call opens one; a call in flight keeps them."""
    looks, unused = Counter[bool](), Lane.unused

    def looked_at(lane: Lane) -> bool:
        found = unused(lane)
        looks[found] += 1
        return found

    monkeypatch.setattr(Lane, "unused", looked_at)
    monkeypatch.setattr("blazen_peer.transport.lanes.IDLE_SECS", 0.05)
    server = await serve()
    client = await connect(server)
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await soon(lambda: looks[False] > 3)
    assert len(server._lanes.lanes) == 1
    work.release.set()
    assert (await call).result == 1
    await soon(lambda: not server._lanes.lanes)
    assert looks[True] == 1
    assert client._lanes_here()._lanes == {}
    assert (await client.run_remote_workflow("w", ["echo"], "2", 20)).result == 2
    await soon(lambda: not server._lanes.lanes)
    assert looks[True] == 2
    assert work.begun == {"hold": 1, "echo": 1}
