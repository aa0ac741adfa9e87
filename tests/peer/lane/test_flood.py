"""Garbage by the hundred thousand, to a peer in a process of its own: all is answered or ends its lane, nothing is kept."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.transport.lane_servicer import LANE_METHOD
from blazen_peer.transport.proto import lane_pb2
from tests.peer.conftest import Connect
from tests.peer.lane.conftest import RawLane
from tests.peer.lane.garbage import ANSWERED, ENDS, SILENT, Request, request, unknown_field

TOKEN = "the-token-of-the-flooded-peer-0123456789"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
FRAMES = 100_000
LANES = 8
FRAMES_OF_A_LANE = 500
FEWEST_CALLS = 20


class Flooded:
    """A peer in a process of its own.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, process: Any) -> None:
        self._process, self.address = process, process.address.rstrip('",')  # of a line that may be JSON
        self.target = self.address.removeprefix("http://")

    @property
    def memory_mib(self) -> float:
        """What it has in memory at this moment."""
        pages = int(Path(f"/proc/{self._process.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def log(self) -> str:
        """What it wrote."""
        text: str = self._process.log
        return text

    @staticmethod
    def bearer(node_id: str = "raw") -> str:
        """Return the authorization of a node, of this moment."""
        return f"Bearer {mint(TokenKeys.from_tokens(TOKEN), node_id, now=time.time(), jti='j')}"


@pytest.fixture
def flooded(start_peer: Any, request: pytest.FixtureRequest) -> Flooded:
    """A peer that demands a token; the test's parameter has more options of its command."""
    argv = ("-m", "blazen_peer.cli", "serve", "--app", "tests.peer.lane.flood_app", "--node-id", "node-b")
    argv += getattr(request, "param", ())
    env = {"BLAZEN_PEER_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return Flooded(start_peer(sys.executable, *argv, "--listen", "127.0.0.1:0", env=env))


OpenLane = Callable[..., Awaitable[RawLane]]


@pytest.fixture
async def open_lane(flooded: Flooded) -> AsyncIterator[OpenLane]:
    """A factory: lanes to that peer, all on one connection."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(flooded.target, options=options) as channel:

        async def start(*, hello: bool = True, **how: Any) -> RawLane:
            lane = RawLane(channel.stream_stream(LANE_METHOD)(metadata=(("authorization", flooded.bearer()),), **how))
            if hello:
                await lane.send(Request(hello=lane_pb2.Hello(version=1)))
                assert (await lane.read()).HasField("welcome")
            return lane

        yield start


class Honest:
    """Another caller, whose calls go by a lane of its own, one after another, while something else goes on."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.took_secs: list[float] = []
        self._enough = asyncio.Event()

    async def __aenter__(self) -> Honest:
        await self._call()
        self._task = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        await self._task

    async def _go_on(self) -> None:
        while len(self.took_secs) < FEWEST_CALLS or not self._enough.is_set():
            await self._call()

    async def _call(self) -> None:
        number, begun = len(self.took_secs), time.monotonic()
        assert (await self._client.run_remote_workflow("w", ["echo"], str(number), 20)).result == number
        self.took_secs.append(time.monotonic() - begun)

    def notices_nothing(self) -> None:
        """Fail where its calls were held up: the test itself shares the machine, so the bounds are wide."""
        took = sorted(self.took_secs)
        assert took[len(took) // 2] < 0.5
        assert took[-1] < 5


async def told(lane: RawLane, wanted: int, secs: float = 30) -> dict[int, int]:
    """Read until *wanted* frames were answered, and return the code of each; 0 is an envelope."""
    codes: dict[int, int] = {}
    async with asyncio.timeout(secs):
        while len(codes) < wanted:
            for answer in (await lane.read(secs)).answers:
                assert answer.id not in codes, f"frame {answer.id} was answered twice"
                codes[answer.id] = answer.refusal.code
    return codes


class Flood:
    """Garbage frames of every kind, by several lanes at once, and what became of them.

    Attributes:
        answered, silent, ends: How many of each kind were answered as they must be, asked for no answer, ended their lane.
        memory_mib: What the peer had in memory, each time that a tenth was done.
    """

    def __init__(self, peer: Flooded, open_lane: OpenLane, frames: int) -> None:
        self._peer, self._open_lane, self._frames = peer, open_lane, frames
        self._chance = random.Random(7)
        self.answered, self.silent, self.ends = Counter[str](), Counter[str](), Counter[str]()
        self.memory_mib: list[float] = []

    async def run(self) -> None:
        """Send them all."""
        while (total := (self.answered + self.silent + self.ends).total()) < self._frames:
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(self._one_lane())
            if len(self.memory_mib) * self._frames // 10 <= total:
                self.memory_mib.append(self._peer.memory_mib)

    async def _one_lane(self) -> None:
        """Send frames, read what comes, see that each was answered, and end the lane in one of the ways."""
        lane, kinds, fresh = await self._open_lane(), dict[int, str](), self._peer.bearer()
        codes, _ = await asyncio.gather(told(lane, FRAMES_OF_A_LANE, 120), self._send(lane, kinds, fresh))
        while len(codes) < len(kinds):
            codes |= await told(lane, 1)
        for number, kind in kinds.items():
            assert codes[number] in ANSWERED[kind][1], f"{kind} was answered with {codes[number]}"
            self.answered[kind] += 1
        kind = self._chance.choice(list(ENDS))
        await lane.send(Request(authorization=fresh))
        await lane.send(ENDS[kind](len(kinds) + 1))
        status = await lane.ended()
        assert status is INVALID, f"{kind} ended the lane with {status}"
        self.ends[kind] += 1

    async def _send(self, lane: RawLane, kinds: dict[int, str], fresh: str) -> None:
        """Send messages of some frames each, and note of which kind each frame is."""
        chance = self._chance
        while len(kinds) < FRAMES_OF_A_LANE:
            message = Request(authorization=fresh)  # after a wrong token, the right one again
            for _ in range(chance.choice((1, 1, 3, 20))):
                kind, number = chance.choice(list(ANSWERED)), len(kinds) + 1
                frame = ANSWERED[kind][0](chance, number)
                if frame.authorization or message.ByteSize() + frame.ByteSize() > 900_000:
                    await lane.send(message)
                    message = Request(authorization=fresh)
                kinds[number] = kind
                message.MergeFrom(frame)
                if frame.authorization:
                    break
            await lane.send(message)
            for _ in range(2):
                kind = chance.choice(list(SILENT))
                await lane.send(SILENT[kind](chance, 0))
                self.silent[kind] += 1


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_100_000_frames(flooded: Flooded, open_lane: OpenLane, connect: Connect) -> None:
    """100,000 garbage frames of every kind reach the peer: each is answered once, as its kind must be, or ends its lane with
    INVALID_ARGUMENT; the process's memory is flat, nothing is a defect, and another caller's calls are served meanwhile."""
    flood = Flood(flooded, open_lane, FRAMES)
    async with Honest(await connect(flooded.address, lane="always", token=TOKEN)) as honest:
        await flood.run()
    honest.notices_nothing()
    assert set(flood.answered) == set(ANSWERED)
    assert set(flood.silent) == set(SILENT)
    assert set(flood.ends) == set(ENDS)
    assert min(flood.answered.values()) > FRAMES / len(ANSWERED) / 3
    assert flood.memory_mib[-1] - flood.memory_mib[2] < 16, flood.memory_mib
    assert "defect" not in flooded.log
    assert "Traceback" not in flooded.log


@pytest.mark.parametrize("flooded", [("--access-log", "--log-format", "json")], indirect=True, ids=["access-log"])
async def test_garbage_in_the_log(flooded: Flooded, open_lane: OpenLane) -> None:
    """What the peer logs of garbage is one line for each frame, each line JSON and none of it long."""
    flood = Flood(flooded, open_lane, 4000)
    await flood.run()
    lines = [line for line in flooded.log.splitlines() if line.startswith("{")]
    calls, answered = sum(json.loads(line).get("log") == "call" for line in lines), flood.answered.total()
    assert answered <= calls <= answered + flood.ends.total()  # a message may end its lane by its second frame
    assert max(map(len, lines)) < 2000
    assert "defect" not in flooded.log


@pytest.mark.parametrize("where", ["a-call", "a-lane"])
async def test_what_unpacks_to_more(flooded: Flooded, where: str) -> None:
    """Compressed messages are refused unread, with a token or before one: gRPC bounds a message only before it unpacks it."""
    before, zeros = flooded.memory_mib, b"\x00" * (256 * 2**20)
    packed: dict[str, Any] = {"compression": grpc.Compression.Gzip, "timeout": 30}
    async with grpc.aio.insecure_channel(flooded.target, options=(("grpc.max_send_message_length", -1),)) as channel:
        if where == "a-call":
            call: Any = channel.unary_unary("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")(zeros, **packed)
        else:
            call = channel.stream_stream(LANE_METHOD)(metadata=(("authorization", flooded.bearer()),), **packed)
            with suppress(grpc.aio.AioRpcError):  # it is answered while it writes
                await call.write(zeros)
        refused = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL
        assert await call.code() in refused  # INTERNAL is what grpc.aio makes of an answer that comes while it writes
    assert flooded.memory_mib - before < 32


async def test_open_frames_keep_no_message(flooded: Flooded, open_lane: OpenLane) -> None:
    """While a call runs, what came beside its envelope is not kept: unknown fields, other traces, the message itself."""
    lane, before = await open_lane(), flooded.memory_mib
    padding, envelope = unknown_field(900_000), request("hold")
    for number in range(1, 300, 2):
        await lane.send(Request(calls=[lane_pb2.Call(id=number, envelope=envelope)]).SerializeToString() + padding)
        await lane.send(Request(calls=[lane_pb2.Call(id=number + 1, envelope=envelope, traceparent="x" * 900_000)]))
    await lane.send(Request(calls=[lane_pb2.Call(id=1000, envelope=request("echo", 1))]))
    assert await told(lane, 1) == {1000: 0}
    assert flooded.memory_mib - before < 48


async def test_ended_lanes_keep_nothing(flooded: Flooded, open_lane: OpenLane) -> None:
    """A lane that was ended for a message of 1 MiB leaves nothing of it in memory, not even for a while."""
    sizes = []
    for _ in range(3):
        for _ in range(60):
            lane = await open_lane()
            await lane.send(ENDS["an endless token"](1))
            assert await lane.ended() is INVALID
        sizes.append(flooded.memory_mib)
    assert sizes[-1] - sizes[0] < 16, sizes


async def test_abandoned_lanes(flooded: Flooded, open_lane: OpenLane, connect: Connect) -> None:
    """Lanes that are opened and left, half or whole, use up nothing: as many more as may be at once can be opened after them,
    and another caller opens its own meanwhile."""
    sizes = []
    for _ in range(3):
        for _ in range(4):
            lanes = [await open_lane(hello=False) for _ in range(50)]
            for number, lane in enumerate(lanes):
                if number % 2:
                    await lane.send(Request(hello=lane_pb2.Hello(version=1)))
            async with await connect(flooded.address, lane="always", token=TOKEN) as client:
                assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
            for lane in lanes:
                lane.call.cancel()
        sizes.append(flooded.memory_mib)
    client = await connect(flooded.address, token=TOKEN)
    async with asyncio.timeout(20):
        while (await client.describe()).lanes.open > 1:  # noqa: ASYNC110 - another process has to be asked
            await asyncio.sleep(0.05)
    await open_lane()
    assert sizes[-1] - sizes[0] < 16, sizes


@pytest.mark.timeout(120)
async def test_streams_that_nobody_reads(flooded: Flooded, open_lane: OpenLane, connect: Connect) -> None:
    """4,096 streams of an endless run, without credit for any, keep no events of their own and are in nobody's way; one more
    is refused, and when they are dropped there is room again."""
    lane = await open_lane()
    call = lane_pb2.Call(id=1, envelope=request("emit", 20_000), invocation_id="endless")
    await lane.send(Request(calls=[call]))
    attached = await open_lane()
    async with Honest(await connect(flooded.address, lane="always", token=TOKEN)) as honest:
        before = flooded.memory_mib
        for begin in range(0, 4096, 512):
            frames = [lane_pb2.Attach(id=begin + one + 1, invocation_id="endless") for one in range(512)]
            await attached.send(Request(attaches=frames))
        await attached.send(Request(attaches=[lane_pb2.Attach(id=5000, invocation_id="endless")]))
        assert await told(attached, 1) == {5000: 8}  # RESOURCE_EXHAUSTED
        assert flooded.memory_mib - before < 64
        for begin in range(0, 4096, 512):
            await attached.send(Request(dropped=range(begin + 1, begin + 513)))
        await attached.send(Request(calls=[lane_pb2.Call(id=5001, envelope=request("echo", 1))]))
        assert await told(attached, 1) == {5001: 0}
        await asyncio.wait_for(honest._call(), 20)
    honest.notices_nothing()


async def test_a_flood_of_nothing(flooded: Flooded, open_lane: OpenLane, connect: Connect) -> None:
    """Empty messages, as fast as they go out, are in nobody's way."""
    lanes = [await open_lane() for _ in range(3)]

    async def flood(lane: RawLane) -> None:
        for _ in range(5000):
            await lane.send(b"")

    async with Honest(await connect(flooded.address, lane="always", token=TOKEN)) as honest:
        await asyncio.gather(*map(flood, lanes))
    honest.notices_nothing()
    for lane in lanes:
        await lane.send(Request(calls=[lane_pb2.Call(id=1, envelope=request("echo", 1))]))
        assert await told(lane, 1) == {1: 0}


async def test_repeats_that_are_dropped(flooded: Flooded, open_lane: OpenLane) -> None:
    """Calls that repeat one that goes on, and are dropped at once, leave nothing behind, however many they are."""
    lane, sizes = await open_lane(), []
    envelope, number = request("hold"), 0
    for _ in range(3):
        for _ in range(100):
            calls = [lane_pb2.Call(id=number + one, envelope=envelope, invocation_id="held") for one in range(1, 257)]
            await lane.send(Request(calls=calls))
            await lane.send(Request(dropped=range(number + 1, number + 257)))
            number += 256
        number += 1
        await lane.send(Request(calls=[lane_pb2.Call(id=number, envelope=request("echo", 1))]))
        assert await told(lane, 1) == {number: 0}
        sizes.append(flooded.memory_mib)
    assert sizes[-1] - sizes[0] < 8, sizes
