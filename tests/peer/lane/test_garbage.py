"""What anybody may send on a lane: it is answered or ends with a status, memory stays flat, other lanes do not notice."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections import Counter
from typing import Any

import grpc
import pytest

from blazen_peer.transport.lane_limits import MAX_CREDIT, MAX_FRAME_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES
from blazen_peer.transport.lane_servicer import LANE_METHOD
from blazen_peer.transport.proto import lane_pb2
from tests.peer.conftest import Connect, Serve
from tests.peer.lane.conftest import RawLane, soon

Request = lane_pb2.LaneRequest
Call = lane_pb2.Call
INVALID = grpc.StatusCode.INVALID_ARGUMENT

ENDS = [
    pytest.param(b"\xff\xff\xff\xff", id="no-protobuf"),
    pytest.param(Request(calls=[Call(id=1, envelope=b"x")]).SerializeToString()[:-1], id="cut"),
    pytest.param(Request(hello=lane_pb2.Hello(version=1)), id="hello-again"),
    pytest.param(Request(calls=[Call(id=1), Call(id=1)]), id="an-id-twice"),
    pytest.param(Request(calls=[Call(id=2), Call(id=1)]), id="ids-that-fall"),
    pytest.param(Request(calls=[Call(id=0)]), id="id-0"),
    pytest.param(Request(calls=[Call(id=n) for n in range(1, MAX_FRAMES + 2)]), id="too-many-frames"),
    pytest.param(Request(dropped=range(MAX_FRAMES + 1)), id="too-many-dropped"),
    pytest.param(Request(calls=[Call(id=1, envelope=b"x" * MAX_MESSAGE_BYTES)]), id="too-large-a-message"),
]


@pytest.mark.parametrize("message", ENDS)
async def test_ends_the_lane(serve: Serve, raw_lane: Any, message: Any) -> None:
    """What breaks a lane's rules ends it, typed."""
    lane = await raw_lane(await serve())
    await lane.send(message)
    assert await lane.ended() is INVALID


HELLOS = [
    pytest.param(Request(ping=True), id="none"),
    pytest.param(Request(hello=lane_pb2.Hello(version=2)), id="another-version"),
    pytest.param(Request(hello=lane_pb2.Hello()), id="no-version"),
    pytest.param(Request(hello=lane_pb2.Hello(version=1), calls=[Call(id=1)]), id="a-frame-with-it"),
    pytest.param(Request(hello=lane_pb2.Hello(version=1, client_node_id="a b")), id="no-node-id"),
    pytest.param(b"\xff", id="no-protobuf"),
]


@pytest.mark.parametrize("message", HELLOS)
async def test_hello(serve: Serve, raw_lane: Any, message: Any) -> None:
    """A lane begins with a hello of a version that is known."""
    lane = await raw_lane(await serve(), hello=False)
    await lane.send(message)
    assert await lane.ended() is INVALID


async def test_no_hello(serve: Serve, raw_lane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens a lane and says nothing loses it."""
    monkeypatch.setattr("blazen_peer.transport.served_lane.HELLO_SECS", 0.2)
    lane = await raw_lane(await serve(), hello=False)
    assert await lane.ended() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_silence(serve: Serve, raw_lane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does who says nothing any more, not even that it lives."""
    monkeypatch.setattr("blazen_peer.transport.served_lane.SILENCE_SECS", 0.3)
    lane = await raw_lane(await serve())
    assert await lane.ended() is grpc.StatusCode.DEADLINE_EXCEEDED


ANSWERED = [
    pytest.param(Call(id=1), 3, id="no-envelope"),
    pytest.param(Call(id=1, envelope=b"\xff" * 40), 3, id="no-postcard"),
    pytest.param(Call(id=1, envelope=b"x" * (MAX_FRAME_BYTES + 1)), 8, id="too-large-a-frame"),
    pytest.param(Call(id=1, envelope=b"x", invocation_id="a b"), 3, id="invocation-id"),
    pytest.param(Call(id=1, envelope=b"x", parent_run_id="\n"), 3, id="parent-run-id"),
    pytest.param(Call(id=1, envelope=b"x", data_class="x" * 200), 3, id="data-class"),
    pytest.param(Call(id=1, envelope=b"x", instance_id="another"), 14, id="another-process"),
    pytest.param(
        Call(id=1, envelope=b"x", timeout_ms=2**64 - 1, cursor=2**64 - 1, traceparent="x", tracestate="y"), 9, id="all"
    ),
]


@pytest.mark.parametrize(("call", "code"), ANSWERED)
@pytest.mark.parametrize("stream", [False, True], ids=["call", "stream"])
async def test_is_answered(serve: Serve, raw_lane: Any, call: Call, code: int, stream: bool) -> None:
    """What is wrong with one frame is that frame's answer, and the lane goes on."""
    lane = await raw_lane(await serve())
    frame = Call()
    frame.CopyFrom(call)
    frame.stream = stream
    await lane.send(Request(calls=[frame]))
    [answer] = (await lane.read()).answers
    assert (answer.id, answer.refusal.code) == (1, code)
    await lane.send(Request(attaches=[lane_pb2.Attach(id=2, invocation_id="?")]))
    await lane.send(Request(cancels=[lane_pb2.Cancel(id=3, invocation_id="?", grace_ms=2**64 - 1)]))
    codes = [answer.refusal.code for _ in range(2) for answer in (await lane.read()).answers]
    assert codes == [5, 5]  # NOT_FOUND


@pytest.mark.parametrize("at", ["opening", "later"])
async def test_credit_abuse(serve: Serve, raw_lane: Any, envelope: Any, work: Any, at: str) -> None:
    """More credit than a stream may have is refused with its frame, or ends the lane."""
    lane = await raw_lane(await serve())
    credit = MAX_CREDIT + 1 if at == "opening" else MAX_CREDIT
    await lane.send(Request(calls=[Call(id=1, envelope=envelope("emit", 1), stream=True, event_credit=credit)]))
    if at == "opening":
        [answer] = (await lane.read()).answers
        assert answer.refusal.code == INVALID.value[0]
        return
    assert (await lane.read()).events
    await lane.send(Request(credits=[lane_pb2.Credit(id=1, events=2**32 - 1)]))
    assert await lane.ended() is INVALID
    work.release.set()


async def test_kinds_in_one_message(serve: Serve, raw_lane: Any, envelope: Any, work: Any) -> None:
    """Frames of several kinds in one message are taken in the order of their ids."""
    lane = await raw_lane(await serve())
    call = Call(id=2, envelope=envelope("hold"), invocation_id="one")
    await lane.send(Request(calls=[call], cancels=[lane_pb2.Cancel(id=n, invocation_id="one", grace_ms=5000) for n in (1, 3)]))
    seen: dict[int, Any] = {}
    while len(seen) < 3:
        message = await lane.read()
        seen |= {answer.id: answer for answer in (*message.answers, *message.cancelled)}
    assert seen[1].refusal.code == 5  # NOT_FOUND: nothing had begun
    assert b"workflow cancelled" in seen[2].envelope


async def test_dropped_in_the_same_breath(serve: Serve, raw_lane: Any, envelope: Any, work: Any) -> None:
    """A frame that is dropped as soon as it is there leaves nothing behind."""
    server = await serve()
    lane = await raw_lane(server)
    for n in range(1, 50):
        await lane.send(Request(calls=[Call(id=n, envelope=envelope("hold"))]))
        await lane.send(Request(dropped=[n, n, n + 1]))
    await lane.send(Request(calls=[Call(id=99, envelope=envelope("echo"))]))
    while 99 not in [answer.id for answer in (await lane.read()).answers]:
        pass
    [served] = server._lanes.lanes
    await soon(lambda: not served.open_frames)
    work.release.set()


def garbage(chance: random.Random, number: int, sound: bytes) -> lane_pb2.LaneRequest | bytes:
    """Return a message of one frame that is wrong in some way; three in a hundred end the lane."""
    match chance.randrange(8):
        case 0:
            return Request(calls=[Call(id=number, envelope=sound[: chance.randrange(len(sound))])])
        case 1:
            return Request(calls=[Call(id=number, envelope=chance.randbytes(chance.randrange(200)))])
        case 2:
            return Request(attaches=[lane_pb2.Attach(id=number, invocation_id="none", cursor=chance.getrandbits(64))])
        case 3:
            return Request(cancels=[lane_pb2.Cancel(id=number, invocation_id="\x00", grace_ms=chance.getrandbits(64))])
        case 4:
            return Request(credits=[lane_pb2.Credit(id=chance.getrandbits(64), events=chance.getrandbits(32))])
        case 5:
            return Request(dropped=[chance.getrandbits(64) for _ in range(4)], ping=True)
        case 6:  # a kind that nobody knows
            return Request(ping=True).SerializeToString() + b"\xa2\x1f\x05hello"
        case _ if chance.random() < 0.25:
            return chance.choice(
                [
                    chance.randbytes(20),
                    Request(calls=[Call(id=1)] * 2),
                    b"\x12\xff\x01",
                    Request(hello=lane_pb2.Hello(version=1)),
                ]
            )
    return Request(calls=[Call(id=number, envelope=sound, invocation_id=chance.randbytes(3).hex() * 30)])


@pytest.mark.timeout(240)
@pytest.mark.slow
async def test_100_000_frames(serve: Serve, connect: Connect, raw_lane: Any, envelope: Any, work: Any) -> None:
    """100,000 garbage frames: each lane answers or ends with a status, memory is flat, another caller's calls are served."""
    server = await serve()
    honest = await connect(server, lane="always")
    chance, sound = random.Random(7), envelope("unknown")
    ends: Counter[grpc.StatusCode] = Counter()
    answers = 0
    sizes: list[int] = []

    async def one_lane(frames: int) -> int:
        """Send at most *frames* frames by one lane, read what comes, and return how many were sent."""
        nonlocal answers
        lane = await raw_lane_on(channel)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < frames:
                sent += 1
                try:
                    await lane.send(garbage(chance, sent, sound))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return
            await lane.call.done_writing()

        sending = asyncio.create_task(send())
        try:
            while (raw := await lane.call.read()) is not grpc.aio.EOF:
                answers += len(lane_pb2.LaneResponse.FromString(raw).answers)
        except grpc.aio.AioRpcError:
            pass
        if await lane.call.details() != "Internal error from Core":  # what grpc.aio says when it was answered while it sent
            ends[await lane.call.code()] += 1
        await sending
        return sent

    async with grpc.aio.insecure_channel(server.address.removeprefix("http://")) as channel:

        async def raw_lane_on(channel: grpc.aio.Channel) -> Any:
            lane = RawLane(channel.stream_stream(LANE_METHOD)())
            await lane.send(Request(hello=lane_pb2.Hello(version=1)))
            return lane

        total = 0
        tracemalloc.start()
        try:
            while total < 100_000:
                total += sum(await asyncio.gather(*(one_lane(500) for _ in range(8))))
                if len(sizes) * 20_000 <= total:
                    sizes.append(tracemalloc.get_traced_memory()[0])
                assert (await asyncio.wait_for(honest.run_remote_workflow("w", ["echo"], "1", 20), 20)).result == 1
        finally:
            tracemalloc.stop()
    assert set(ends) <= {grpc.StatusCode.OK, INVALID}
    assert ends[INVALID] > 100
    assert answers > 10_000
    assert sizes[-1] - sizes[1] < 4 * 2**20, sizes
    assert (await honest.describe()).lanes.open == 1
