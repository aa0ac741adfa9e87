"""Calls that carry an invocation id: what a repeat gets, whose it is, and that nothing runs twice, whatever breaks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from blazen_peer import (
    Context,
    InvocationConflictError,
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    ValidationError,
    WorkflowError,
)
from blazen_peer.runtime import run_table
from blazen_peer.runtime.registry import Registry
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]
TOKEN = "t" * 43


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)


class Work:
    """Steps that a test steers, and how often each began."""

    def __init__(self, registry: Registry) -> None:
        self.begun: Counter[str] = Counter()
        self.go = asyncio.Event()

        @registry.step("count")
        async def count(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun["count"] += 1
            return StopEvent(result=self.begun["count"])

        @registry.step("hold")
        async def hold(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun["hold"] += 1
            await self.go.wait()
            return StopEvent(result=event.data)

        @registry.step("fail")
        async def fail(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun["fail"] += 1
            raise ValueError(f"attempt {self.begun['fail']}")


@pytest.fixture
def work(registry: Registry) -> Work:
    return Work(registry)


async def test_repeat_while_running(serve: Serve, connect: Connect, work: Work) -> None:
    """A repeat of a call that runs waits for the same run: it is executed once, and all get its answer."""
    server = await serve()
    clients = [await connect(server) for _ in range(3)]
    calls = [asyncio.create_task(c.run_remote_workflow("w", ["hold"], "7", invocation_id="one")) for c in clients]
    await until(lambda: work.begun["hold"])
    late = asyncio.create_task(clients[0].run_remote_workflow("w", ["hold"], "7", 5, invocation_id="one"))
    await clients[0].describe()  # later than that call on the same connection
    work.go.set()
    assert [result.result for result in await asyncio.gather(*calls, late)] == [7] * 4
    assert work.begun["hold"] == 1


async def test_repeat_after_the_end(serve: Serve, connect: Connect, work: Work) -> None:
    """A repeat of a call that is over gets the stored answer; without an id of one's own each call is a run of its own."""
    client = await connect(await serve())
    for _ in range(3):
        assert (await client.run_remote_workflow("w", ["count"], "null", invocation_id="one")).result == 1
    assert (await client.run_remote_workflow("w", ["count"], "null")).result == 2
    assert (await client.run_remote_workflow("w", ["count"], "null")).result == 3


async def test_failures_are_stored(serve: Serve, connect: Connect, work: Work) -> None:
    """A failure is an answer too: a repeat gets the same one and does not try again."""
    client = await connect(await serve())
    for _ in range(2):
        with pytest.raises(WorkflowError, match=r"attempt 1$"):
            await client.run_remote_workflow("w", ["fail"], "null", invocation_id="one")
        with pytest.raises(WorkflowError, match="timed out"):
            await client.run_remote_workflow("w", ["hold"], "null", 0.05, invocation_id="two")
    assert work.begun == {"fail": 1, "hold": 1}


async def test_refusals_are_not_stored(serve: Serve, connect: Connect, work: Work, registry: Registry) -> None:
    """A refused call ran nothing, and may be made again under the same id."""
    client = await connect(await serve(settings=ServerSettings(max_runs=1, max_queued_runs=0, drain_secs=0)))
    held = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "null"))
    await until(lambda: work.begun["hold"])
    with pytest.raises(Exception, match="as many as may"):
        await client.run_remote_workflow("w", ["count"], "null", invocation_id="one")
    work.go.set()
    await held
    assert (await client.run_remote_workflow("w", ["count"], "null", invocation_id="one")).result == 1


OTHERS = [
    pytest.param(("other", ["hold"], "7"), id="another-workflow"),
    pytest.param(("w", ["hold", "count"], "7"), id="another-step"),
    pytest.param(("w", ["hold"], "8"), id="another-input"),
    pytest.param(("w", ["hold"], "7 "), id="other-bytes-of-the-same-input"),
    pytest.param(("whold", ["hold"], "7"), id="names-that-run-into-each-other"),
]


@pytest.mark.parametrize("request_", OTHERS)
async def test_conflict(serve: Serve, connect: Connect, work: Work, request_: tuple[str, list[str], str]) -> None:
    """Another request under the same id is refused, while the first runs and after; another timeout is no other request."""
    client = await connect(await serve())
    first = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", invocation_id="one"))
    await until(lambda: work.begun["hold"])
    for _ in range(2):
        with pytest.raises(InvocationConflictError, match="used for another request"):
            await client.run_remote_workflow(*request_, invocation_id="one")
        work.go.set()
        await first
    assert (await client.run_remote_workflow("w", ["hold"], "7", 1, invocation_id="one")).result == 7
    assert work.begun["hold"] == 1


async def test_conflict_on_the_wire(serve: Serve, raw_call: RawCall, work: Work) -> None:
    """A conflict is ALREADY_EXISTS for any client."""
    server = await serve()
    pairs = [("blazen-invocation-id", "one")]
    await raw_call(server, SubWorkflowRequest("w", ("count",), b"1", None).encode(), metadata=pairs)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(server, SubWorkflowRequest("w", ("count",), b"2", None).encode(), metadata=pairs)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_calls_without_an_id(serve: Serve, raw_call: RawCall, work: Work) -> None:
    """Blazen's own clients send no id: each of their calls is a run of its own."""
    server = await serve()
    envelope = SubWorkflowRequest("w", ("count",), b"null", None).encode()
    answers = [SubWorkflowResponse.decode(await raw_call(server, envelope)).result_json for _ in range(2)]
    assert answers == [b"1", b"2"]


async def test_another_caller(serve: Serve, connect: Connect, work: Work) -> None:
    """Another caller's same id is another run, though the request be the same."""
    server = await serve(token=TOKEN)
    for number, node in enumerate(("node-a", "node-b", "node-c"), 1):
        client = await connect(server, node, token=TOKEN)
        for _ in range(2):
            assert (await client.run_remote_workflow("w", ["count"], "null", invocation_id="one")).result == number


async def test_tombstone(serve: Serve, connect: Connect, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its answer is no longer kept, a repeat is refused, and not run again."""
    server = await serve()
    monkeypatch.setattr(server._invocations._table, "_max_answers", 1)
    client = await connect(server)
    for name in ("one", "two"):
        await client.run_remote_workflow("w", ["count"], "null", invocation_id=name)
    with pytest.raises(InvocationConflictError, match="no longer kept: it is not run again"):
        await client.run_remote_workflow("w", ["count"], "null", invocation_id="one")
    assert work.begun["count"] == 2
    assert run_table.MAX_ANSWERS == 10_000


async def test_two_at_the_same_moment(serve: Serve, connect: Connect, work: Work) -> None:
    """Two repeats that arrive together, with inputs large enough to be read in threads, are one run."""
    client = await connect(await serve())
    document = '"' + "x" * 400_000 + '"'
    calls = (client.run_remote_workflow("w", ["count"], document, invocation_id="one") for _ in range(8))
    assert [result.result for result in await asyncio.gather(*calls)] == [1] * 8


ARGUMENTS = [
    pytest.param({"invocation_id": ""}, id="id-empty"),
    pytest.param({"invocation_id": "a b"}, id="id-with-a-space"),
    pytest.param({"invocation_id": "é"}, id="id-not-ascii"),
    pytest.param({"invocation_id": "x" * 129}, id="id-too-long"),
    pytest.param({"invocation_id": 7}, id="id-not-text"),
    pytest.param({"retries": -1}, id="retries-negative"),
    pytest.param({"retries": 1.5}, id="retries-not-whole"),
    pytest.param({"retries": True}, id="retries-true"),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
async def test_bad_arguments(serve: Serve, connect: Connect, work: Work, arguments: dict[str, Any]) -> None:
    """An id or a number of retries that is none is a ValidationError, and nothing is sent."""
    client = await connect(await serve())
    with pytest.raises(ValidationError):
        await client.run_remote_workflow("w", ["count"], "null", **arguments)
    assert not work.begun


Wires = Callable[[PeerServer], Awaitable[Any]]


async def test_broken_connection(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """The connection breaks while the run goes on, again and again: it is executed once, and its answer arrives."""
    cut = await wire(await serve())
    client = await connect(cut.address)
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30, retries=5))
    await until(lambda: work.begun["hold"])
    for breaks in range(1, 4):
        cut.cut()
        await until(lambda: cut.connections > breaks)  # noqa: B023 - waited for before it changes
    work.go.set()
    assert (await asyncio.wait_for(call, 20)).result == 7
    assert work.begun["hold"] == 1


async def test_answer_lost_on_the_way(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """The run ends while nobody is connected: its stored answer arrives with the next connection."""
    server = await serve()
    cut = await wire(server)
    client = await connect(cut.address)
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30, retries=8))
    await until(lambda: work.begun["hold"])
    cut.refusing = True
    cut.cut()
    work.go.set()
    await until(lambda: server._invocations.in_progress == 0)
    cut.refusing = False
    assert (await asyncio.wait_for(call, 20)).result == 7
    assert work.begun["hold"] == 1


async def test_not_unless_asked(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """Without ``retries`` or a lane a broken connection ends the call with an error that says that it may have run."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="never")
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30))
    await until(lambda: work.begun["hold"])
    cut.cut()
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(call, 10)
    assert caught.value.may_have_run is True
    work.go.set()


async def test_no_more_often_than_asked(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """When the peer stays away, the call ends after its retries, and says that an earlier attempt may have run."""
    cut = await wire(await serve())
    client = await connect(cut.address, lane="never")
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30, retries=2))
    await until(lambda: work.begun["hold"])
    cut.refusing = True
    cut.cut()
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(call, 10)
    assert caught.value.may_have_run is True
    work.go.set()


async def test_restarted_server(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """Another process answers where the run was begun: it refuses the repeat, nothing runs twice, and the caller hears that it
    may have run."""
    first, second = await serve(), await serve()
    cut = await wire(first)
    client = await connect(cut.address)
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30, retries=5))
    await until(lambda: work.begun["hold"])
    cut.target_port = int(second.address.rpartition(":")[2])
    cut.cut()
    with pytest.raises(TransportError, match="another process") as caught:
        await asyncio.wait_for(call, 10)
    assert caught.value.may_have_run is True
    assert type(caught.value) is TransportError
    assert work.begun["hold"] == 1
    work.go.set()


async def test_restarted_before_the_call(serve: Serve, connect: Connect, work: Work, wire: Wires) -> None:
    """A call that was never sent to the process that went away goes to the one in its place, and is taken up there."""
    first, second = await serve(), await serve()
    cut = await wire(first)
    client = await connect(cut.address)
    cut.target_port = int(second.address.rpartition(":")[2])
    cut.cut()
    async with asyncio.timeout(10):
        while True:  # until the client has noticed: a call that it sends before may have run
            with suppress(TransportError):
                await client.describe()
                break
    call = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", 30, retries=5))
    await until(lambda: work.begun["hold"])
    assert (first._invocations.in_progress, second._invocations.in_progress) == (0, 1)
    before = cut.connections
    cut.cut()
    await until(lambda: cut.connections > before)
    work.go.set()
    assert (await asyncio.wait_for(call, 20)).result == 7
    assert work.begun["hold"] == 1


async def test_repeats_while_draining(serve: Serve, connect: Connect, work: Work) -> None:
    """A server that is going away refuses new calls, and answers repeats of those that it has."""
    server = await serve(settings=ServerSettings(lame_duck_secs=0, drain_secs=10))
    client = await connect(server)
    first = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", invocation_id="one"))
    await until(lambda: work.begun["hold"])
    draining = asyncio.create_task(server.drain())
    await until(lambda: server._invocations._refusing)
    repeat = asyncio.create_task(client.run_remote_workflow("w", ["hold"], "7", invocation_id="one"))
    with pytest.raises(TransportError, match="going away"):
        await client.run_remote_workflow("w", ["hold"], "7", invocation_id="two")
    work.go.set()
    assert [(await first).result, (await repeat).result] == [7, 7]
    await draining
