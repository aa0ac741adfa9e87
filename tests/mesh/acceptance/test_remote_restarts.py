"""Sidecars that are replaced or stopped in good order under lanes: what the real Envoys do to a lane, and that no call notices.

A draining Envoy leaves a lane alone until its time is over (``--drain-secs``), and ends it then. It says GOAWAY on a connection
with the next answer that begins there, which a lane in progress never hears of.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from blazen_peer import PeerClient
from blazen_peer.transport.lane import Lane

pytestmark = pytest.mark.envoy
WAIT_SECS = 40.0
HELD = 10
NODES = pytest.mark.parametrize("node", [pytest.param("analyst", id="the-peers"), pytest.param("intake", id="the-callers")])


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for a sidecar as long as this machine may take to start one; the peer's end does not wait for clients."""
    monkeypatch.setattr("blazen_peer.transport.lanes.TAKE_UP_SECS", WAIT_SECS)
    monkeypatch.setattr("blazen_peer.transport.lane_servicer.TAKE_UP_SECS", 0.0)


async def soon(condition: Callable[[], object]) -> None:
    """Wait until *condition* is so."""
    async with asyncio.timeout(WAIT_SECS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether that process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def the_lane(client: PeerClient) -> Lane:
    """Return the client's lane."""
    lane = client._lanes_here().least()
    assert lane is not None
    return lane


@asynccontextmanager
async def under_load(remote: Any, client: PeerClient, *, retries: int = 0) -> AsyncIterator[Lane]:
    """Hold calls on a lane, which is given, and make short ones while the block runs. Each is answered, and executed once."""
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["demo::hold"], str(n), 60)) for n in range(HELD)]
    stream = client.stream_remote_workflow("w", ["demo::hold"], "-1", 60)
    reading = asyncio.create_task(anext(stream))
    await soon(lambda: remote.begun["demo::hold"] == HELD + 1)
    over, made = asyncio.Event(), 0

    async def short() -> None:
        nonlocal made
        while not over.is_set():
            answer = await client.run_remote_workflow("w", ["demo::echo"], str(made), 20, retries=retries)
            assert answer.result == made
            made += 1

    making = asyncio.create_task(short())
    try:
        yield the_lane(client)
        seen = made
        await soon(lambda: made > seen + 10 or making.done())
    finally:
        over.set()
        remote.release.set()
    async with asyncio.timeout(WAIT_SECS):
        await making
        assert [(await call).result for call in calls] == list(range(HELD))
        assert (await reading).data == -1
    assert remote.begun == {"demo::hold": HELD + 1, "demo::echo": made}


Fleet = Callable[[], Awaitable[tuple[Any, dict[str, Any]]]]


@pytest.fixture
def fleet(start_remote: Any) -> Fleet:
    """A real server, and both sidecars by ``blazen-mesh sidecar``, which let calls go on for a second."""

    async def start() -> tuple[Any, dict[str, Any]]:
        remote = await start_remote(sidecars=[], serve=False)
        both = {node: await remote.mesh.supervise(node, "--drain-secs", "1") for node in ("analyst", "intake")}
        await remote.start_server()
        return remote, both

    return start


@NODES
async def test_envoy_is_replaced(fleet: Fleet, node: str) -> None:
    """Another Envoy takes the ports over, and the old one ends long before the calls on its lane: they are taken up, and no new
    call fails, though nobody retries."""
    remote, both = await fleet()
    client = await remote.connect(lane="always")
    before = both[node].status["envoy_pid"]
    async with under_load(remote, client) as lane:
        both[node].child.send(signal.SIGHUP)
        await soon(lambda: not alive(before))
        await soon(lambda: lane.ended)
    assert both[node].status["envoy_pid"] != before


@NODES
async def test_sidecar_is_stopped_and_started(fleet: Fleet, node: str) -> None:
    """A sidecar is stopped in its order and started again: it waits for its lanes no longer than it was told to. Calls that
    are in flight are taken up; new ones need ``retries`` while nobody listens."""
    remote, both = await fleet()
    client = await remote.connect()
    async with under_load(remote, client, retries=50) as lane:
        both[node].child.ask_to_end()
        assert await both[node].ended() == 0
        await remote.mesh.supervise(node, "--drain-secs", "1")
        await soon(lambda: lane.ended)
