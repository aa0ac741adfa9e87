"""Who is not there, and who dies in the middle: what the caller is told, how soon, and that nothing runs twice."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from blazen_mesh.address import TcpAddress
from blazen_peer import PeerClient, PermissionDeniedError, TransportError
from blazen_peer.transport.lane_limits import TAKE_UP_SECS

pytestmark = pytest.mark.envoy
both_ways = pytest.mark.usefixtures("way")  # connecting is of neither; deaths on a lane: test_remote_lanes.py
PROMPT_SECS = 5.0  # on a busy machine; without a prompt answer the calls here would wait for 60
HOLD = ("hold", ["demo::hold"], "null", 60)


async def kill(child: Any) -> None:
    """Kill a process as a crash would, and wait until it is gone."""
    child.send(signal.SIGKILL)
    async with asyncio.timeout(10):
        await child.wait()


@pytest.mark.parametrize("lane", ["never", "always"])
async def test_peer_killed_during_a_run(start_remote: Any, start_process: Any, lane: str) -> None:
    """A run whose peer is killed was executed once: the caller hears at once that it may have run, and no sidecar sends it
    to the process that takes the dead one's place."""
    remote = await start_remote(serve=False)
    first = await start_process(remote.mesh, "analyst", "--require-identity")
    client = await remote.connect(lane=lane)
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await first.executed("demo::hold")
    await kill(first.child)
    died = time.monotonic()
    with pytest.raises(TransportError) as caught:
        await call
    assert time.monotonic() - died < (PROMPT_SECS if lane == "never" else TAKE_UP_SECS / 2)
    assert caught.value.may_have_run is True
    second = await start_process(remote.mesh, "analyst", "--require-identity")
    assert (await client.run_remote_workflow("next", ["demo::strict"], '{"count": 1}', retries=20)).result == 1
    assert (second.executions("demo::hold"), second.executions("demo::strict")) == (1, 1)


@pytest.mark.parametrize("lane", ["never", "always"])
@pytest.mark.parametrize("node", [pytest.param("analyst", id="the-peers"), pytest.param("intake", id="the-callers")])
async def test_sidecar_killed_during_a_run(remote: Any, node: str, lane: str) -> None:
    """A run loses a sidecar on its way: the caller hears at once that it may have run, or by a lane after the time that a
    sidecar has to come back; the run goes on to its end, once; and the next call passes as soon as the sidecar is back."""
    client = await remote.connect(lane=lane)
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await asyncio.wait_for(remote.held.wait(), 10)
    await kill(remote.mesh.sidecars[node].child)
    died = time.monotonic()
    with pytest.raises(TransportError) as caught:
        await call
    took_secs = time.monotonic() - died
    assert took_secs < (PROMPT_SECS if lane == "never" else TAKE_UP_SECS + PROMPT_SECS)
    assert lane == "never" or took_secs > TAKE_UP_SECS / 2
    assert caught.value.may_have_run is True
    await remote.mesh.start_sidecar(node)
    # The retries wait out the old connection's back-off.
    assert (await client.run_remote_workflow("echo", ["demo::echo"], "1", retries=20)).result == 1
    remote.release.set()
    await asyncio.wait_for(remote.done.wait(), 10)
    assert remote.begun == {"demo::hold": 1, "demo::echo": 1}
    assert remote.finished == {"demo::hold": 1}


@both_ways
@pytest.mark.parametrize("who", ["peer", "its-sidecar", "own-sidecar"])
async def test_nobody_there(remote: Any, who: str) -> None:
    """A call to a peer that has gone, or by way of a sidecar that has gone, fails at once and cannot have run."""
    client = await remote.connect()
    if who == "peer":
        await remote.stop_server()
    else:
        await kill(remote.mesh.sidecars["analyst" if who == "its-sidecar" else "intake"].child)
    begun = time.monotonic()
    with pytest.raises(TransportError) as caught:
        await client.run_remote_workflow("echo", ["demo::echo"], "null", 60)
    assert time.monotonic() - begun < PROMPT_SECS
    assert caught.value.may_have_run is False
    assert not remote.begun


@both_ways
async def test_drained_peer_finishes_what_runs(remote: Any) -> None:
    """A peer that stops in good order refuses new calls, which cannot have run, and still answers the run in progress."""
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await asyncio.wait_for(remote.held.wait(), 10)
    draining = asyncio.create_task(remote.server.drain())

    async def call_until_refused() -> None:
        while True:
            await client.run_remote_workflow("echo", ["demo::echo"], "null")

    with pytest.raises(TransportError, match="going away") as caught:
        await asyncio.wait_for(call_until_refused(), 4)  # within drain_secs, after which the run would be cancelled
    assert caught.value.may_have_run is False
    assert not call.done()
    remote.release.set()
    assert (await asyncio.wait_for(call, 10)).result is None
    await asyncio.wait_for(draining, 10)
    assert remote.finished == {"demo::hold": 1}


@pytest.fixture
def silent() -> Iterator[TcpAddress]:
    """An address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield TcpAddress("127.0.0.1", listening.getsockname()[1])


async def connect_fails(address: str, kind: type[Exception], within_secs: float) -> None:
    """See both ways to connect fail with *kind*, within a second of the time they are given."""
    for attempt in (
        PeerClient.connect_async(address, "intake", timeout_secs=within_secs),
        asyncio.to_thread(PeerClient.connect, address, "intake", timeout_secs=within_secs),
    ):
        begun = time.monotonic()
        with pytest.raises(kind):
            await attempt
        assert time.monotonic() - begun < within_secs + 1


async def test_connect_where_the_peer_is_down(start_remote: Any) -> None:
    """An egress port always takes a connection; connect asks the peer behind it, and raises when there is none."""
    remote = await start_remote(serve=False)
    await connect_fails(remote.egress, TransportError, 5)


async def test_connect_where_the_remote_sidecar_is_down(start_remote: Any) -> None:
    """connect raises when the other sidecar is not there."""
    remote = await start_remote(serve=False, sidecars=["intake"])
    await connect_fails(remote.egress, TransportError, 5)


async def test_connect_where_nobody_answers(start_remote: Any, silent: TcpAddress) -> None:
    """connect raises within its own time when the other end takes the connection and stays silent."""
    remote = await start_remote(serve=False, sidecars=["intake"], dial={"analyst": silent})
    await connect_fails(remote.egress, TransportError, 1)


async def test_connect_where_no_flow_leads(start_remote: Any, start_mesh: Any) -> None:
    """connect raises PermissionDeniedError where the other sidecar lets nobody in from here, with and without a token."""
    remote = await start_remote(flows=(("analyst", "intake"),), sidecars=["analyst"])
    dial = {"analyst": remote.mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(stand_ins=False, sidecars=["intake"], dial=dial)
    await connect_fails(f"http://{stray.egress('intake', 'analyst')}", PermissionDeniedError, 5)


@both_ways
async def test_blocking_connect_and_call(remote: Any) -> None:
    """The blocking client does the same job from a plain thread."""

    def program() -> object:
        with PeerClient.connect(remote.egress, "intake", token=remote.token) as client:
            return client.run_remote_workflow_blocking("echo", ["demo::echo"], "[1, 2]").result

    assert await asyncio.to_thread(program) == [1, 2]
    assert remote.begun == {"demo::echo": 1}


async def test_one_replica_killed(start_remote: Any, start_process: Any, ports: Any) -> None:
    """Of two replicas one is killed: calls on its lane hear at once that they may have run, those on the other's go on, and new
    ones pass. Nothing runs twice."""
    listens = [f"127.0.0.1:{ports()}" for _ in range(2)]
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": listens},
    }
    remote = await start_remote(serve=False, extra={"peers": peers})
    first, _ = [await start_process(remote.mesh, "analyst", "--require-identity", "--listen", listen) for listen in listens]
    client = await remote.connect()
    lanes = client._lanes_here()

    async def short(retries: int = 0) -> None:
        assert (await client.run_remote_workflow("next", ["demo::strict"], '{"count": 1}', 20, retries=retries)).result == 1

    async with asyncio.timeout(40):
        while len(lanes.instance_ids) < 2:
            await short()
        calls = [asyncio.create_task(client.run_remote_workflow(*HOLD)) for _ in range(6)]
        while first.executions("demo::hold") < 6:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    await kill(first.child)
    done, going_on = await asyncio.wait(calls, timeout=TAKE_UP_SECS / 2)
    assert (len(done), len(going_on)) == (3, 3)
    for call in done:
        error = call.exception()
        assert isinstance(error, TransportError)
        assert error.may_have_run is True
    for _ in range(20):
        await short()
    assert first.executions("demo::hold") == 6
    for call in going_on:
        call.cancel()
