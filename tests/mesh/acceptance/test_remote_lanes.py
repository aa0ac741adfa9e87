"""Lanes through real sidecars: rotation of the connection under load, replicas, sidecars that die, whose lane it is."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from blazen_peer import (
    Context,
    PeerClient,
    PeerServer,
    PermissionDeniedError,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.lane_limits import TAKE_UP_SECS

pytestmark = pytest.mark.envoy
TOKEN = "the-shared-token-of-this-mesh-0123456789"


async def soon(condition: Callable[[], object]) -> None:
    """Wait until *condition* is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def test_by_a_lane(remote: Any) -> None:
    """Calls go by one lane, as the caller that the certificate says."""
    client = await remote.connect(lane="always")
    results = await asyncio.gather(*(client.run_remote_workflow("w", ["demo::caller"], "null", 20) for _ in range(50)))
    assert {result.result for result in results} == {"spiffe://mesh.test/peer/intake"}
    assert (await client.describe()).lanes.open == 1


async def test_rotation_under_load(start_remote: Any) -> None:
    """Lanes are renewed before the sidecars end them, several times over, and no call is lost, late or run twice."""
    remote = await start_remote(extra={"connection_age_secs": 5})  # streams last 2 s
    client = await remote.connect(lane="always")
    slow = [asyncio.create_task(client.run_remote_workflow("w", ["demo::wait"], str(4 + n / 10), 30)) for n in range(10)]
    stream = client.stream_remote_workflow("w", ["demo::wait"], "6", 30)
    streamed = asyncio.create_task(anext(stream))
    ends, seen, lanes = asyncio.get_running_loop().time() + 8, 0, set()

    async def caller(number: int) -> int:
        count = 0
        while asyncio.get_running_loop().time() < ends:
            assert (await client.run_remote_workflow("w", ["demo::echo"], str(count), 20)).result == count
            lanes.update(id(lane) for lane in client._lanes_here()._lanes.values())
            count += 1
        return count

    seen = sum(await asyncio.gather(*(caller(number) for number in range(8))))
    assert [result.result for result in await asyncio.gather(*slow)] == [4 + n / 10 for n in range(10)]
    assert (await streamed).data == 6
    assert remote.begun == {"demo::wait": 11, "demo::echo": seen}
    assert len(lanes) >= 3


@pytest.mark.parametrize("node", [pytest.param("analyst", id="the-peers"), pytest.param("intake", id="the-callers")])
async def test_sidecar_killed_and_back(remote: Any, node: str) -> None:
    """A sidecar is killed under calls that are in flight on a lane: they are taken up, without ``retries``, executed once."""
    client = await remote.connect(lane="always")
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["demo::hold"], str(n), 60)) for n in range(5)]
    await soon(lambda: remote.begun["demo::hold"] == 5)
    child = remote.mesh.sidecars[node].child
    child.send(signal.SIGKILL)
    await asyncio.wait_for(child.wait(), 10)
    await remote.mesh.start_sidecar(node)
    remote.release.set()
    results = await asyncio.wait_for(asyncio.gather(*calls), 40)
    assert [result.result for result in results] == list(range(5))
    assert remote.begun == {"demo::hold": 5}


async def test_peer_killed(start_remote: Any, start_process: Any) -> None:
    """Calls on a lane whose peer is killed hear at once that they may have run; nothing runs twice, and later calls pass."""
    remote = await start_remote(serve=False)
    first = await start_process(remote.mesh, "analyst", "--require-identity")
    client = await remote.connect()
    calls = [asyncio.create_task(client.run_remote_workflow("hold", ["demo::hold"], str(n), 60)) for n in range(3)]
    await soon(lambda: first.executions("demo::hold") == 3)
    first.child.send(signal.SIGKILL)
    died = time.monotonic()
    await asyncio.wait_for(first.child.wait(), 10)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, TransportError), outcome
        assert outcome.may_have_run is True
    assert time.monotonic() - died < TAKE_UP_SECS / 2
    second = await start_process(remote.mesh, "analyst", "--require-identity")
    assert (await client.run_remote_workflow("next", ["demo::strict"], '{"count": 1}', 20, retries=20)).result == 1
    assert (second.executions("demo::hold"), second.executions("demo::strict")) == (3, 1)


class Replicas:
    """Three replicas of analyst in this process."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, str]] = Counter()
        self.held = asyncio.Event()
        self.clients: list[PeerClient] = []

    def registry(self, name: str) -> Registry:
        registry = Registry()

        @registry.step("demo::who")
        async def who(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[name, ctx.run_id] += 1
            return StopEvent(result=name)

        @registry.step("demo::hold")
        async def hold(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[name, ctx.run_id] += 1
            await self.held.wait()
            return StopEvent(result=name)

        return registry


@pytest.fixture
async def three(start_remote: Any, ports: Callable[[], int]) -> AsyncIterator[tuple[Any, Replicas, list[PeerServer]]]:
    """A mesh whose analyst has three replicas, and these."""
    listens = [ports() for _ in range(3)]
    peers = {
        "intake": {
            "sidecar": f"127.0.0.1:{ports()}",
            "listen": f"127.0.0.1:{ports()}",
            "egress": {"analyst": {"port": ports()}},
        },
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": [f"127.0.0.1:{port}" for port in listens]},
    }
    remote = await start_remote(serve=False, extra={"peers": peers})
    replicas = Replicas()
    async with AsyncExitStack() as stack:
        servers = []
        for number, port in enumerate(listens):
            server = PeerServer(
                "analyst",
                token=TOKEN,
                require_identity=True,
                settings=ServerSettings(lame_duck_secs=7, drain_secs=5),
                registry=replicas.registry(f"replica {number}"),
                sidecar_proof_file=remote.mesh.proof_file("analyst"),
            )
            servers.append(await stack.enter_async_context(server.serving(f"127.0.0.1:{port}")))
        yield remote, replicas, servers
        replicas.held.set()
        for client in replicas.clients:
            await client.aclose()


async def test_replicas(three: tuple[Any, Replicas, list[PeerServer]]) -> None:
    """A client that sends to three replicas uses all three, by one lane each; when one drains, nothing is lost."""
    remote, replicas, servers = three
    held = replicas.held
    client = await remote.connect()
    replicas.clients.append(client)
    lanes = client._lanes_here()
    answered: Counter[str] = Counter()
    async with asyncio.timeout(40):
        while len(answered) < 3 or len(lanes.instance_ids) < 3:
            results = await asyncio.gather(*(client.run_remote_workflow("w", ["demo::who"], "null", 20) for _ in range(60)))
            answered.update(result.result for result in results)
    answered.clear()
    results = await asyncio.gather(*(client.run_remote_workflow("w", ["demo::who"], "null", 20) for _ in range(300)))
    answered.update(result.result for result in results)
    assert len(answered) == 3
    assert min(answered.values()) > 30
    assert len(lanes.instance_ids) == 3 == len([lane for lane in lanes._lanes.values() if lane.is_open])

    # Runs begun by lanes are found again by what asks for them on its own.
    holding = [asyncio.create_task(client.run_remote_workflow("w", ["demo::hold"], "null", 60)) for _ in range(9)]
    await soon(lambda: sum(lane.in_flight for lane in lanes._lanes.values()) == 9)
    draining = asyncio.create_task(servers[0].drain())
    for _ in range(20):
        result = await client.run_remote_workflow("w", ["demo::who"], "null", 20, retries=3)
        assert result.result in {"replica 0", "replica 1", "replica 2"}
    held.set()
    assert Counter(result.result for result in await asyncio.gather(*holding)).total() == 9
    await draining
    after = await asyncio.gather(*(client.run_remote_workflow("w", ["demo::who"], "null", 20, retries=5) for _ in range(30)))
    assert {result.result for result in after} <= {"replica 1", "replica 2"}
    assert set(replicas.begun.values()) == {1}


async def test_without_the_sidecars_leave(start_remote: Any) -> None:
    """Past the sidecar there is no lane, as there is no call."""
    remote = await start_remote()
    client = await remote.connect(address=remote.straight, lane="always")
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("w", ["demo::echo"], "1", 20)
    assert remote.begun == {}
