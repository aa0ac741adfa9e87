"""What anybody may send on a lane: it is answered or ends with a status, memory stays flat, other lanes do not notice."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from blazen_peer.transport.lane_limits import MAX_CREDIT, MAX_FRAME_BYTES
from blazen_peer.transport.proto import lane_pb2
from tests.peer.conftest import Serve
from tests.peer.lane.conftest import soon
from tests.peer.lane.garbage import ENDS

Request = lane_pb2.LaneRequest
Call = lane_pb2.Call
INVALID = grpc.StatusCode.INVALID_ARGUMENT
HELLO = lane_pb2.Hello(version=1)


@pytest.mark.parametrize("kind", ENDS)
async def test_ends_the_lane(serve: Serve, raw_lane: Any, kind: str) -> None:
    """What breaks a lane's rules ends it, typed."""
    lane = await raw_lane(await serve())
    await lane.send(ENDS[kind](1))
    assert await lane.ended() is INVALID


HELLOS = [
    pytest.param(Request(ping=True), id="none"),
    pytest.param(Request(hello=lane_pb2.Hello(version=2)), id="another-version"),
    pytest.param(Request(hello=lane_pb2.Hello()), id="no-version"),
    pytest.param(Request(hello=lane_pb2.Hello(version=1), calls=[Call(id=1)]), id="a-frame-with-it"),
    pytest.param(Request(hello=lane_pb2.Hello(version=1, client_node_id="a b")), id="no-node-id"),
    pytest.param(b"\xff", id="no-protobuf"),
    pytest.param(Request(hello=HELLO, calls=[Call(id=1)]), id="with-a-call"),
    pytest.param(Request(hello=HELLO, cancels=[lane_pb2.Cancel(id=1)]), id="with-a-cancel"),
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
