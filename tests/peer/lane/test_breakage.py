"""What becomes of calls when their lane breaks: the connection, the process, or nothing at all that anybody says."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Any

import pytest

from blazen_peer import TransportError
from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lanes import Lanes
from tests.peer.conftest import Connect, Serve, Wires
from tests.peer.lane.conftest import soon

HOLD = ("w", ["hold"], "1", 60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give calls of a broken lane 1.5 s to find their process."""
    monkeypatch.setattr("blazen_peer.transport.lanes.TAKE_UP_SECS", 1.5)


async def test_connection_cut(serve: Serve, connect: Connect, wire: Wires, work: Any, frames: Counter[str]) -> None:
    """A cut connection costs its calls nothing: the next lane takes them up by their ids, and each is executed once."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="always")
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["hold"], str(n), 60)) for n in range(20)]
    await soon(lambda: work.begun["hold"] == 20)
    for _ in range(3):
        connections = cut.connections
        cut.cut()
        await soon(lambda before=connections: cut.connections > before)
        await soon(lambda: (client._lanes_here().least() or client) is not client)
    work.release.set()
    async with asyncio.timeout(30):
        assert [result.result for result in await asyncio.gather(*calls)] == list(range(20))
    assert work.begun == {"hold": 20}
    assert frames["invoke"] > 20


async def test_stream_cut(serve: Serve, connect: Connect, wire: Wires, work: Any) -> None:
    """A stream goes on by the next lane where it was, without ``retries``; so does one that only attached."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="always")
    stream = client.stream_remote_workflow("w", ["emit"], "4", 60, invocation_id="one")
    attached = client.attach("one", cursor=2)
    seen = [(await anext(stream)).data["n"] for _ in range(4)]
    others = [(await anext(attached)).data["n"] for _ in range(2)]
    cut.cut()
    work.release.set()
    async with asyncio.timeout(30):
        assert [event.data async for event in stream] == ["done"]
        assert [event.data async for event in attached] == ["done"]
    assert (seen, others) == ([0, 1, 2, 3], [2, 3])
    assert work.begun == {"emit": 1}


async def test_next_lane_given_up(
    serve: Serve, connect: Connect, wire: Wires, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the lane that is found next is given up just before a stream and a call go on there, they go on by the one after."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="always")
    stream = client.stream_remote_workflow("w", ["emit"], "2", 60)
    assert [(await anext(stream)).data["n"] for _ in range(2)] == [0, 1]
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "1", 60))
    await soon(lambda: work.begun["hold"])
    next_to, given_up = Lanes.next_to, []

    async def found(lanes: Lanes, *args: Any) -> Lane:
        lane = await next_to(lanes, *args)
        if len(given_up) < 2:
            given_up.append(lane)
            lane.retire()
        return lane

    monkeypatch.setattr(Lanes, "next_to", found)
    resting = asyncio.create_task(anext(stream))
    cut.cut()
    await soon(lambda: len(given_up) == 2)
    work.release.set()
    async with asyncio.timeout(30):
        assert (await resting).data == "done"
        assert (await call).result == 1
    assert work.begun == {"emit": 1, "hold": 1}


async def test_another_process(serve: Serve, connect: Connect, wire: Wires, work: Any) -> None:
    """What another process answers to afterwards ends with ``may_have_run``, at once, and is not run again."""
    first, second = await serve("first"), await serve("second")
    cut = await wire(first)
    client = await connect(cut.address, lane="always")
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    stream = client.stream_remote_workflow("w", ["emit"], "1", 60)
    await anext(stream)
    await soon(lambda: work.begun["hold"] == 1)
    cut.target_port = int(second.address.rpartition(":")[2])
    cut.cut()
    for waits in (call, anext(stream)):
        with pytest.raises(TransportError, match="another process answers now") as caught:
            await asyncio.wait_for(waits, 20)
        assert caught.value.may_have_run is True
    assert (await client.run_remote_workflow("w", ["echo"], "7", 20)).result == 7
    assert work.begun == {"hold": 1, "emit": 1, "echo": 1}
    work.release.set()


async def test_gone_for_good(serve: Serve, connect: Connect, wire: Wires, work: Any) -> None:
    """When nobody comes back, what was sent ends in time with ``may_have_run`` True, and what comes later with False."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="always")
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await soon(lambda: work.begun["hold"] == 1)
    cut.refusing = True
    cut.cut()
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(call, 20)
    assert caught.value.may_have_run is True
    with pytest.raises(TransportError) as later:
        await client.run_remote_workflow("w", ["echo"], "7", 20)
    assert later.value.may_have_run is False
    assert work.begun == {"hold": 1}
    work.release.set()


async def test_never_written(serve: Serve, connect: Connect, wire: Wires, work: Any) -> None:
    """A frame that was not written when its lane broke goes to whichever process answers now."""
    first, second = await serve("first"), await serve("second")
    cut = await wire(first)
    client = await connect(cut.address, lane="always")
    assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
    lane = client._lanes_here().least()
    assert lane is not None
    held = asyncio.Event()
    write = lane._writer._write

    async def stuck(message: bytes) -> None:  # the transport has no room just now
        await held.wait()
        await write(message)

    lane._writer._write = stuck
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["echo"], str(n), 20)) for n in range(3)]
    await soon(lambda: lane.in_flight == 3)
    await asyncio.sleep(0)
    late = asyncio.create_task(client.run_remote_workflow("w", ["echo"], "9", 20))
    await soon(lambda: lane.in_flight == 4)
    cut.target_port = int(second.address.rpartition(":")[2])
    cut.cut()
    assert (await asyncio.wait_for(late, 20)).result == 9
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, TransportError) and outcome.may_have_run for outcome in outcomes)  # nobody can know


async def test_silence(serve: Serve, connect: Connect, wire: Wires, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of whom nothing is heard is found dead in the stated time, though the connection stands."""
    monkeypatch.setattr("blazen_peer.transport.lane_writer.TICK_SECS", 0.05)
    monkeypatch.setattr("blazen_peer.transport.lane.SILENCE_SECS", 0.5)
    cut = await wire(await serve())
    client = await connect(cut.address, lane="always")
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await soon(lambda: work.begun["hold"] == 1)
    await asyncio.sleep(1)  # heartbeats alone keep it
    assert not call.done()
    lane = client._lanes_here().least()
    assert lane is not None
    cut.passing.clear()
    began = time.monotonic()
    await soon(lambda: lane.ended is not None)
    assert time.monotonic() - began < 5  # 0.5 s, on a busy machine
    assert "silent for 0.5 s" in str(lane.ended)
    cut.passing.set()
    work.release.set()
    assert (await asyncio.wait_for(call, 20)).result == 1
    assert work.begun == {"hold": 1}


async def test_nobody_waits_for_a_lane(
    serve: Serve, connect: Connect, wire: Wires, work: Any, frames: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lanes cannot be opened, the first call waits for one, and those after it go alone at once; when they can be
    opened again, calls use one again."""
    monkeypatch.setattr("blazen_peer.transport.lanes.RETRY_SECS", 0.0)
    server = await serve()
    client = await connect(server)
    open_, tried = Lane.open, Counter[str]()

    async def cannot(*args: Any, **named: Any) -> Lane:
        tried["lanes"] += 1
        await asyncio.sleep(1)
        raise TransportError("nothing came back", may_have_run=False)

    monkeypatch.setattr(Lane, "open", cannot)
    assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
    began = time.monotonic()
    for n in range(5):
        assert (await client.run_remote_workflow("w", ["echo"], str(n), 20)).result == n
    assert time.monotonic() - began < 0.9
    assert (frames, tried) == ({}, {"lanes": 2})
    monkeypatch.setattr(Lane, "open", open_)
    async with asyncio.timeout(20):
        while not frames["invoke"]:
            await client.run_remote_workflow("w", ["echo"], "1", 20)


async def test_killed(start_peer: Any, connect: Connect, free_port: int, tmp_path: Any) -> None:
    """When the peer's process is killed and started anew, calls in flight end with ``may_have_run``; new ones go on."""
    (tmp_path / "killed_app.py").write_text(
        "import asyncio\n"
        "from blazen_peer import StartEvent, StopEvent, step\n"
        "@step('hold')\n"
        "async def hold(event: StartEvent) -> StopEvent:\n"
        "    await asyncio.sleep(300)\n"
        "    return StopEvent()\n"
        "@step('echo')\n"
        "async def echo(event: StartEvent) -> StopEvent:\n"
        "    return StopEvent(result=event.data)\n"
    )
    argv = ["blazen-peer", "serve", "--app", "killed_app", "--node-id", "b", "--listen", f"127.0.0.1:{free_port}"]
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    peer = start_peer(*argv, env=env)
    client = await connect(await asyncio.to_thread(lambda: peer.address))
    assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
    calls = [asyncio.create_task(client.run_remote_workflow(*HOLD)) for _ in range(5)]
    lane = client._lanes_here().least()
    await soon(lambda: lane.in_flight == 5)
    await client.run_remote_workflow("w", ["echo"], "1", 20)  # so that the five were written
    peer.process.kill()
    await asyncio.to_thread(peer.process.wait)
    peer = start_peer(*argv, env=env)
    await asyncio.to_thread(lambda: peer.address)
    for outcome in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30):
        assert isinstance(outcome, TransportError), outcome
        assert outcome.may_have_run is True
    assert (await client.run_remote_workflow("w", ["echo"], "2", 20, retries=20)).result == 2
