"""Streams of events: what a run emits reaches its readers in order, once, without a gap or with one that is said."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from blazen_peer import (
    Context,
    Event,
    InvocationConflictError,
    InvocationNotFoundError,
    PeerClient,
    PeerError,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    UnknownStepError,
    ValidationError,
    Workflow,
    WorkflowError,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.wire import SubWorkflowEvent, SubWorkflowRequest

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
Wires = Callable[[PeerServer], Awaitable[Any]]
TOKEN = "t" * 43


class Found(Event, event_type="demo::Found"):
    n: int
    padding: str = ""


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)


class Work:
    """Steps that emit as a test says."""

    def __init__(self, registry: Registry) -> None:
        self.more, self.emitted, self.runs, self.padding = asyncio.Queue[int](), 0, 0, ""

        @registry.step("emit")
        async def emit(event: StartEvent, ctx: Context) -> StopEvent:
            """Emit as many events as each number from ``more`` says; 0 ends."""
            self.runs += 1
            while count := await self.more.get():
                for _ in range(count):
                    self.emitted += 1
                    ctx.emit(Found(n=self.emitted, padding=self.padding))
            return StopEvent(result="done")

        @registry.step("burst")
        async def burst(event: StartEvent, ctx: Context) -> StopEvent:
            for n in range(1, event.data + 1):
                ctx.emit(Found(n=n))
            return StopEvent(result=event.data)

        @registry.step("burst_in_thread")
        def burst_in_thread(event: StartEvent, ctx: Context) -> StopEvent:
            assert threading.current_thread() is not threading.main_thread()
            for n in range(1, event.data + 1):
                ctx.emit(Found(n=n))
            return StopEvent(result=event.data)

        @registry.step("fail")
        async def fail(event: StartEvent, ctx: Context) -> StopEvent:
            ctx.emit(Event.dynamic("demo::Odd", [1, "é", None]))
            raise ValueError("boom")


@pytest.fixture
def work(registry: Registry) -> Work:
    return Work(registry)


def shown(events: list[Event]) -> list[Any]:
    """Return what matters of each event: the number, the gap, the result."""
    return [event.data["n"] if event.event_type == "demo::Found" else (event.event_type, event.data) for event in events]


@pytest.mark.parametrize("step_id", ["burst", "burst_in_thread"])
async def test_events_then_the_result(serve: Serve, connect: Connect, work: Work, step_id: str) -> None:
    """A stream gives what the run emits, in order, from tasks and threads, then its StopEvent; and the result beside it."""
    client = await connect(await serve())
    stream = client.stream_remote_workflow("w", [step_id], "100")
    with pytest.raises(ValidationError, match="read it to its end"):
        _ = stream.result
    events = [event async for event in stream]
    assert shown(events) == [*range(1, 101), ("blazen::StopEvent", 100)]
    assert (stream.result.result, stream.cursor) == (100, 100)
    assert isinstance(events[-1], StopEvent)


async def test_as_they_come(serve: Serve, connect: Connect, work: Work) -> None:
    """Each event arrives while the run goes on, not at its end."""
    client = await connect(await serve())
    stream = client.stream_remote_workflow("w", ["emit"], "null")
    async with asyncio.timeout(10):
        for n in (1, 2, 3):
            work.more.put_nowait(1)
            assert shown([await anext(stream)]) == [n]
        work.more.put_nowait(0)
        assert shown([event async for event in stream]) == [("blazen::StopEvent", "done")]


async def test_failure(serve: Serve, connect: Connect, work: Work) -> None:
    """A run that fails ends its stream with the error, after its events."""
    client = await connect(await serve())
    stream = client.stream_remote_workflow("w", ["fail"], "null")
    assert shown([await anext(stream)]) == [("demo::Odd", [1, "é", None])]
    with pytest.raises(WorkflowError, match="failed: boom"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_refusals(serve: Serve, connect: Connect, work: Work) -> None:
    """What is refused as a plain call is refused as a stream, with the same error."""
    client = await connect(await serve())
    with pytest.raises(UnknownStepError):
        await anext(client.stream_remote_workflow("w", ["nope"], "null"))
    with pytest.raises(ValidationError):
        client.stream_remote_workflow("w", ["emit"], "{")
    work.more.put_nowait(0)
    await client.run_remote_workflow("w", ["emit"], "null", invocation_id="one")
    with pytest.raises(InvocationConflictError):
        await anext(client.stream_remote_workflow("w", ["emit"], "1", invocation_id="one"))


async def test_several_readers(serve: Serve, connect: Connect, work: Work) -> None:
    """A stream, a plain call and an attached reader of one invocation id share one run."""
    client, other = [await connect(await serve()) for _ in range(1)] * 2
    stream = client.stream_remote_workflow("w", ["emit"], "null", invocation_id="one")
    work.more.put_nowait(2)
    first = await anext(stream)
    plain = asyncio.create_task(client.run_remote_workflow("w", ["emit"], "null", invocation_id="one"))
    attached = other.attach("one")
    again = client.stream_remote_workflow("w", ["emit"], "null", invocation_id="one")
    work.more.put_nowait(1)
    work.more.put_nowait(0)
    assert shown([first] + [event async for event in stream]) == [1, 2, 3, ("blazen::StopEvent", "done")]
    for reader in (attached, again, client.attach("one")):
        assert shown([event async for event in reader]) == [1, 2, 3, ("blazen::StopEvent", "done")]
    assert (await plain).result == "done"
    assert work.runs == 1


async def test_attach_with_a_cursor(serve: Serve, connect: Connect, work: Work) -> None:
    """Who attaches with a cursor gets what comes after it, while the run goes on and after; beyond the last is an error."""
    client = await connect(await serve())
    await client.run_remote_workflow("w", ["burst"], "10", invocation_id="one")
    assert shown([event async for event in client.attach("one", cursor=8)]) == [9, 10, ("blazen::StopEvent", 10)]
    with pytest.raises(PeerError, match="cursor 11 is beyond the last event, 10"):
        await anext(client.attach("one", cursor=11))


async def test_attach_is_for_ones_own(serve: Serve, connect: Connect, work: Work) -> None:
    """Somebody else's run is as one that never was."""
    server = await serve(token=TOKEN)
    mine, other = await connect(server, "node-a", token=TOKEN), await connect(server, "node-b", token=TOKEN)
    await mine.run_remote_workflow("w", ["burst"], "1", invocation_id="one")
    for invocation_id in ("one", "two"):
        with pytest.raises(InvocationNotFoundError, match=f"no invocation {invocation_id} of this caller's"):
            await anext(other.attach(invocation_id))


async def test_gap(serve: Serve, connect: Connect, work: Work) -> None:
    """A reader behind what is kept gets one event that says which ones are missing."""
    client = await connect(await serve(settings=ServerSettings(stream_events=10, lame_duck_secs=0)))
    stream = client.stream_remote_workflow("w", ["burst"], "100")
    gap, *rest = [event async for event in stream]
    assert (gap.event_type, gap.data) == ("blazen::Gap", {"first": 1, "last": 90})
    assert shown(rest) == [*range(91, 101), ("blazen::StopEvent", 100)]
    assert stream.cursor == 100


async def test_slow_reader(serve: Serve, connect: Connect, work: Work) -> None:
    """A reader that stands still slows neither the run nor another reader, though its connection is full."""
    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=1))
    client = await connect(server)
    slow = client.stream_remote_workflow("w", ["emit"], "null", invocation_id="one")
    work.more.put_nowait(1)
    await anext(slow)
    quick = client.attach("one", cursor=1)
    async with asyncio.timeout(20):
        work.padding = "x" * 4000
        for _ in range(20):
            work.more.put_nowait(500)
            for _ in range(500):
                await anext(quick)
        work.more.put_nowait(0)
        assert shown([event async for event in quick]) == [("blazen::StopEvent", "done")]
        rest = [event async for event in slow]
    gaps = [event.data for event in rest if event.event_type == "blazen::Gap"]
    assert gaps, "40 MB do not fit into what is kept and the connection's window"
    missing = sum(gap["last"] - gap["first"] + 1 for gap in gaps)
    assert missing + len(rest) - len(gaps) == 10_000 + 1
    assert slow.cursor == 10_001


async def test_leaving_early(serve: Serve, connect: Connect, work: Work) -> None:
    """Who leaves a stream leaves the run alone."""
    server = await serve()
    client = await connect(server)
    work.more.put_nowait(1)
    async for _ in (stream := client.stream_remote_workflow("w", ["emit"], "null")):
        break
    await stream.aclose()
    assert server._invocations.in_progress == 1
    work.more.put_nowait(0)
    await until(lambda: server._invocations.in_progress == 0)


@pytest.mark.parametrize("way", ["stream", "attach"])
async def test_broken_connection(serve: Serve, connect: Connect, work: Work, wire: Wires, way: str) -> None:
    """The connection breaks again and again: the stream goes on where it was, without a gap and without a repeat."""
    cut = await wire(await serve())
    client = await connect(cut.address)
    stream = client.stream_remote_workflow("w", ["emit"], "null", 60, invocation_id="one", retries=5)
    work.more.put_nowait(5)
    events = [await anext(stream) for _ in range(5)]
    if way == "attach":
        stream = client.attach("one", cursor=stream.cursor, retries=5)
    for _ in range(3):
        cut.cut()
        work.more.put_nowait(5)
        async with asyncio.timeout(10):
            events += [await anext(stream) for _ in range(5)]
    work.more.put_nowait(0)
    events += [event async for event in stream]
    assert shown(events) == [*range(1, 21), ("blazen::StopEvent", "done")]
    assert work.runs == 1


async def test_broken_connection_with_a_gap(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """What passes out of the bounded log while nobody is connected is a gap that is said, not a silent one."""
    server = await serve(settings=ServerSettings(stream_events=10, lame_duck_secs=0))
    cut = await wire(server)
    client = await connect(cut.address)
    stream = client.stream_remote_workflow("w", ["emit"], "null", 60, retries=9)
    work.more.put_nowait(5)
    events = [await anext(stream) for _ in range(5)]
    cut.refusing = True
    cut.cut()
    work.more.put_nowait(100)
    work.more.put_nowait(0)
    await until(lambda: server._invocations.in_progress == 0)
    cut.refusing = False
    events += [event async for event in stream]
    assert shown(events) == [
        *range(1, 6),
        ("blazen::Gap", {"first": 6, "last": 95}),
        *range(96, 106),
        ("blazen::StopEvent", "done"),
    ]


async def test_broken_connection_unasked(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """Without ``retries`` or a lane a broken connection ends the stream; by the cursor a reader goes on from there."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="never")
    stream = client.stream_remote_workflow("w", ["emit"], "null", 60, invocation_id="one")
    work.more.put_nowait(2)
    events = [await anext(stream) for _ in range(2)]
    cut.cut()
    with pytest.raises(TransportError) as caught:
        await anext(stream)
    assert caught.value.may_have_run is True
    work.more.put_nowait(1)
    work.more.put_nowait(0)
    async with asyncio.timeout(10):
        again = await connect(cut.address)
        events += [event async for event in again.attach("one", cursor=stream.cursor)]
    assert shown(events) == [1, 2, 3, ("blazen::StopEvent", "done")]


async def test_another_process(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """Another process in the place of the one that ran it does not run it again: the stream ends with an error that says so."""
    first, second = await serve(), await serve()
    cut = await wire(first)
    client = await connect(cut.address)
    stream = client.stream_remote_workflow("w", ["emit"], "null", 60, retries=5)
    work.more.put_nowait(1)
    await anext(stream)
    cut.target_port = int(second.address.rpartition(":")[2])
    cut.cut()
    with pytest.raises(TransportError, match="another process") as caught:
        await anext(stream)
    assert caught.value.may_have_run is True
    assert work.runs == 1
    work.more.put_nowait(0)


async def test_heartbeats(serve: Serve, connect: Connect, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens the peer says so; a reader that hears not even that takes the connection for lost."""
    server = await serve()
    server._invocations._heartbeat_secs = 0.05
    client = await connect(server)
    monkeypatch.setattr("blazen_peer.remote_stream.SILENCE_SECS", 0.5)
    stream = client.stream_remote_workflow("w", ["emit"], "null")
    waiting = asyncio.create_task(anext(stream))
    await asyncio.wait([waiting], timeout=1.2)  # longer than the silence that would end it
    assert not waiting.done()
    server._invocations._heartbeat_secs = 60
    await stream_ends_silent(client)
    work.more.put_nowait(1)
    assert shown([await waiting]) == [1]
    work.more.put_nowait(0)
    work.more.put_nowait(0)


async def stream_ends_silent(client: PeerClient) -> None:
    """See a stream end on which nothing is heard."""
    with pytest.raises(TransportError, match=r"silent for 0\.5 s"):
        await asyncio.wait_for(anext(client.stream_remote_workflow("w", ["emit"], "null")), 10)


async def test_raw_stream(serve: Serve, work: Work) -> None:
    """On the wire a stream is SubWorkflowEvents: numbered events, then one that holds the response; Attach says the same."""
    server = await serve()
    target = server.address.removeprefix("http://")
    async with grpc.aio.insecure_channel(target) as channel:
        request = peer_pb2.PostcardRequest(postcard_payload=SubWorkflowRequest("w", ("burst",), b"2", 5).encode())
        metadata = (("blazen-invocation-id", "one"),)
        call = channel.unary_stream("/blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents")(
            request.SerializeToString(), metadata=metadata, timeout=10
        )
        frames = [
            SubWorkflowEvent.decode(peer_pb2.PostcardResponse.FromString(message).postcard_payload) async for message in call
        ]
        attach = channel.unary_stream("/blazen_peer.control.v1.PeerControl/Attach")(
            control_pb2.AttachRequest(invocation_id="one").SerializeToString(), timeout=10
        )
        attached = [control_pb2.AttachResponse.FromString(message) async for message in attach]
    assert [(f.sequence, f.event_type, f.data_json) for f in frames] == [
        (1, "demo::Found", b'{"n":1,"padding":""}'),
        (2, "demo::Found", b'{"n":2,"padding":""}'),
        (2, "blazen::End", b"null"),
    ]
    assert frames[-1].terminal is not None
    assert frames[-1].terminal.result_json == b"2"
    assert [f.terminal for f in frames[:-1]] == [None, None]
    assert [(a.sequence, a.event_type, a.data_json) for a in attached] == [
        (f.sequence, f.event_type, f.data_json) for f in frames
    ]
    assert [a.HasField("response") for a in attached] == [False, False, True]
    assert attached[-1].response == frames[-1].terminal.encode()


NOT_EMITTED = [
    pytest.param(StopEvent, "reserved", id="stop"),
    pytest.param(lambda: Event.dynamic("blazen::Gap"), "reserved", id="reserved"),
    pytest.param(lambda: Event.dynamic("demo::E", float("nan")), "NaN|JSON|finite", id="not-json"),
    pytest.param(lambda: Event.dynamic("demo::E", "x" * 2000), "over the 1000 bytes", id="too-large"),
    pytest.param(lambda: {"n": 1}, "only events", id="no-event"),
]


@pytest.mark.parametrize(("make", "why"), NOT_EMITTED)
async def test_what_cannot_be_emitted(
    serve: Serve, connect: Connect, registry: Registry, make: Callable[[], Any], why: str
) -> None:
    """What cannot be shown to readers is refused where it is emitted, in tasks and in threads."""

    @registry.step("task")
    async def task(event: StartEvent, ctx: Context) -> StopEvent:
        with pytest.raises(ValidationError, match=why):
            ctx.emit(make())
        return StopEvent()

    @registry.step("thread")
    def thread(event: StartEvent, ctx: Context) -> StopEvent:
        with pytest.raises(ValidationError, match=why):
            ctx.emit(make())
        return StopEvent()

    client = await connect(await serve(settings=ServerSettings(stream_bytes=1000, lame_duck_secs=0)))
    for step_id in ("task", "thread"):
        await client.run_remote_workflow("w", [step_id], "null")


async def test_without_a_reader() -> None:
    """A local run, and a step in a unit test, emit into nothing."""
    registry = Registry()

    @registry.step("emits")
    async def emits(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.emit(Found(n=1))
        return StopEvent(result=1)

    assert (await Workflow("w", ["emits"], registry=registry).run()).result == 1
    Context().emit(Found(n=1))


async def test_reflection(serve: Serve) -> None:
    """gRPC's reflection lists the services and describes them, to those whom the gate admits and nobody else."""
    server = await serve(token=TOKEN)
    asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    described = reflection_pb2.ServerReflectionRequest(file_containing_symbol="blazen_peer.control.v1.PeerControl")
    async with grpc.aio.insecure_channel(server.address.removeprefix("http://")) as channel:
        method = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(iter([asked]), timeout=10).read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        call = method(
            iter([asked, described.SerializeToString()]), timeout=10, metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
        listed = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        file = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
    names = {service.name for service in listed.list_services_response.service}
    assert {"blazen.peer.v1.BlazenPeer", "blazen_peer.control.v1.PeerControl", "grpc.health.v1.Health"} <= names
    assert b"Cancel" in file.file_descriptor_response.file_descriptor_proto[0]
