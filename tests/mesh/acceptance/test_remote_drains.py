"""Peers that drain behind real sidecars: what is in flight on their lanes is answered, what is new goes elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from blazen_peer import Context, Event, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent, TransportError
from blazen_peer.remote_stream import RemoteStream
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.lanes import MAX_LANES

pytestmark = pytest.mark.envoy
TOKEN = "the-shared-token-of-this-mesh-0123456789"
WAIT_SECS = 40.0
HEALTHY = r"^cluster\.peer\.membership_healthy$"


class Analysts:
    """The replicas of analyst in this process, and a client of them.

    Attributes:
        begun: Executions by replica and run.
        release: Set, it lets ``hold`` end.
    """

    def __init__(self, remote: Any) -> None:
        self.remote = remote
        self.begun: Counter[tuple[str, str]] = Counter()
        self.release = asyncio.Event()
        self.servers: list[PeerServer] = []
        self.client: PeerClient

    def registry(self, name: str) -> Registry:
        registry = Registry()

        @registry.step("who")
        async def who(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[name, ctx.run_id] += 1
            return StopEvent(result=name)

        @registry.step("hold")
        async def hold(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[name, ctx.run_id] += 1
            ctx.emit(Event.dynamic("demo::Begun", name))
            await self.release.wait()
            return StopEvent(result=name)

        return registry

    async def who(self) -> str:
        """Make a short call, and return who answered."""
        return (await self.client.run_remote_workflow("w", ["who"], "null", 20)).result

    async def reach_all(self) -> None:
        """Make calls until there is a lane to each replica."""
        async with asyncio.timeout(WAIT_SECS):
            while len(self.client._lanes_here().instance_ids) < len(self.servers):
                await asyncio.gather(*(self.who() for _ in range(20)))

    async def until_refused(self) -> None:
        """Make calls until one fails."""
        async with asyncio.timeout(WAIT_SECS):
            while True:
                await self.who()

    async def until_nothing_new(self) -> None:
        """Make calls until the sidecar sends the first replica none: its threads hear one after another that one drains."""
        admin = self.remote.mesh.sidecars["analyst"].admin
        async with asyncio.timeout(WAIT_SECS):
            while (await admin.stats(HEALTHY))["cluster.peer.membership_healthy"] == 2:
                await self.who()
            while {await self.who() for _ in range(20)} != {"replica 1"}:
                pass

    async def cut(self, instance_id: str, times: int) -> None:
        """Wait until the sidecars have ended so many lanes to that process."""
        seen: set[int] = set()
        lanes = self.client._lanes_here()
        async with asyncio.timeout(WAIT_SECS):
            while len(seen) <= times:
                seen |= {id(lane) for lane in lanes._lanes.values() if lane.instance_id == instance_id and not lane.ended}
                await asyncio.sleep(0.02)


Start = Callable[..., Awaitable[Analysts]]


@pytest.fixture
async def start(start_remote: Any, ports: Callable[[], int]) -> AsyncIterator[Start]:
    """``await start(2, stream_secs=2)``: a mesh with two replicas, whose sidecars end streams after two seconds."""
    async with AsyncExitStack() as stack:

        async def start(replicas: int, stream_secs: float | None, lane: str = "auto") -> Analysts:
            listens = [f"127.0.0.1:{ports()}" for _ in range(replicas)]
            peers = {
                "intake": {
                    "sidecar": f"127.0.0.1:{ports()}",
                    "listen": f"127.0.0.1:{ports()}",
                    "egress": {"analyst": ports()},
                },
                "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": listens},
            }
            age = {} if stream_secs is None else {"connection_age_secs": round(stream_secs / 0.4)}
            remote = await start_remote(serve=False, extra={"peers": peers, **age})
            analysts = Analysts(remote)
            for number, listen in enumerate(listens):
                server = PeerServer(
                    "analyst",
                    token=TOKEN,
                    require_identity=True,
                    settings=ServerSettings(lame_duck_secs=2, drain_secs=30),
                    registry=analysts.registry(f"replica {number}"),
                    sidecar_proof_file=remote.mesh.proof_file("analyst"),
                )
                analysts.servers.append(await stack.enter_async_context(server.serving(listen)))
            analysts.client = await stack.enter_async_context(
                await PeerClient.connect_async(remote.egress, "intake", token=TOKEN, lane=lane)
            )
            stack.callback(analysts.release.set)
            await analysts.reach_all()
            return analysts

        yield start


async def ended(stream: RemoteStream) -> object:
    """Read a stream to its end, and return its result."""
    async for _ in stream:
        pass
    return stream.result.result


@pytest.mark.parametrize("stream_secs", [pytest.param(None, id="whole-lanes"), pytest.param(2.0, id="lanes-that-end")])
@pytest.mark.parametrize("replicas", [pytest.param(1, id="one"), pytest.param(2, id="two-replicas")])
async def test_what_is_in_flight_is_answered(start: Start, replicas: int, stream_secs: float | None) -> None:
    """A peer that drains answers the calls, streams and attached streams that are in flight on its lanes, however long that
    takes, though the sidecars lead nothing new there and end its lanes again and again. New calls go elsewhere; nothing runs
    twice; and the client does not pile lanes up."""
    analysts = await start(replicas, stream_secs)
    client, begun = analysts.client, analysts.begun
    begun.clear()
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["hold"], str(n), 60)) for n in range(8)]
    streams = [client.stream_remote_workflow("w", ["hold"], str(n), 60) for n in range(8)]
    firsts = [(await anext(stream)).data for stream in streams]
    attached = [client.attach(stream.invocation_id) for stream in streams]
    assert [(await anext(stream)).data for stream in attached] == firsts
    async with asyncio.timeout(WAIT_SECS):
        while len(begun) < 16:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)
    leaving = analysts.servers[0]
    at_leaving = sum(name == "replica 0" for name, _ in begun)
    assert at_leaving >= (16 if replicas == 1 else 4)
    reading = [asyncio.create_task(ended(stream)) for stream in (*streams, *attached)]
    draining = asyncio.create_task(leaving.drain())
    if replicas == 1:
        with pytest.raises(TransportError, match="going away") as caught:
            await analysts.until_refused()
        assert caught.value.may_have_run is False
    else:
        await analysts.until_nothing_new()
    if stream_secs is not None:
        await analysts.cut(leaving._instance_id, 2)
    assert not draining.done()
    assert len(leaving._lanes.lanes) <= MAX_LANES
    analysts.release.set()
    async with asyncio.timeout(WAIT_SECS):
        answers = [(await call).result for call in calls]
        assert [await task for task in reading] == 2 * firsts
        await draining
    held = Counter(name for name, run_id in begun if begun[name, run_id] == 1)
    assert Counter(answers)["replica 0"] + Counter(firsts)["replica 0"] == at_leaving
    assert set(begun.values()) == {1}
    assert held.total() == len(begun)
