"""Runs on a server: whose they are, what outlives what, what is looked up when, which limits hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from blazen_peer import (
    Context,
    EncodeError,
    OverloadedError,
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    UnknownStepError,
    Workflow,
    WorkflowError,
)
from blazen_peer.runtime.registry import Registry

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
TOKEN = "t" * 43


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)


async def test_a_run_survives_its_callers_disconnect(
    serve: Serve, connect: Connect, registry: Registry, severed: asyncio.Event
) -> None:
    """A caller whose connection breaks severs its wait only; the run goes on to its end."""
    begun, go, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @registry.step("slow")
    async def slow(event: StartEvent) -> StopEvent:
        begun.set()
        await go.wait()
        finished.set()
        return StopEvent()

    server = await serve()
    client = await connect(server)
    call = asyncio.create_task(client.run_remote_workflow("w", ["slow"], "1"))
    async with asyncio.timeout(10):
        await begun.wait()
        await client.aclose()
        await asyncio.wait([call])
        await severed.wait()
        assert server._invocations.in_progress == 1
        go.set()
        await finished.wait()
    await until(lambda: server._invocations.in_progress == 0)


async def test_a_run_survives_its_callers_deadline(
    serve: Serve, registry: Registry, raw_call: Callable[..., Awaitable[bytes]], severed: asyncio.Event
) -> None:
    """The deadline of the RPC ends the wait; the run has its own."""
    from blazen_peer.wire import SubWorkflowRequest

    go, finished = asyncio.Event(), asyncio.Event()

    @registry.step("slow")
    async def slow(event: StartEvent) -> StopEvent:
        await go.wait()
        finished.set()
        return StopEvent()

    server = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(server, SubWorkflowRequest("w", ("slow",), b"1", 60).encode(), timeout_secs=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(severed.wait(), 10)
    assert server._invocations.in_progress == 1
    go.set()
    await asyncio.wait_for(finished.wait(), 10)


@pytest.mark.parametrize(("token", "expected"), [(None, "anonymous"), (TOKEN, "claimed:node-a")], ids=["open", "token"])
async def test_caller(serve: Serve, connect: Connect, registry: Registry, token: str | None, expected: str) -> None:
    """A step sees who called, with which invocation, on which node, and how much time it has; in a thread as well."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        assert ctx.time_left_secs is not None
        assert ctx.invocation_id
        return StopEvent(result=[str(ctx.caller), ctx.node_id, ctx.workflow_name, ctx.step_id, round(ctx.time_left_secs)])

    @registry.step("tells-in-a-thread")
    def tells_in_a_thread(event: StartEvent, ctx: Context) -> StopEvent:
        assert ctx.time_left_secs is not None
        return StopEvent(result=[str(ctx.caller), ctx.node_id, ctx.workflow_name, ctx.step_id, round(ctx.time_left_secs)])

    client = await connect(await serve(token=token), token=token)
    for step_id in ("tells", "tells-in-a-thread"):
        result = await client.run_remote_workflow("pipeline", [step_id], "null", 42)
        assert result.result == [expected, "node-b", "pipeline", step_id, 42]


async def test_registry_changes_while_serving(serve: Serve, connect: Connect, registry: Registry) -> None:
    """What is registered later is found; what was removed is not; what was registered anew is the new one."""
    client = await connect(await serve())

    async def result_of(step_ids: Sequence[str]) -> Any:
        return (await client.run_remote_workflow("w", step_ids, "null")).result

    with pytest.raises(UnknownStepError) as caught:
        await result_of(["late"])
    assert caught.value.step_id == "late"

    @registry.step("late")
    async def late(event: StartEvent) -> StopEvent:
        return StopEvent(result="first")

    assert await result_of(["late"]) == "first"
    registry.unregister_step("late")
    with pytest.raises(UnknownStepError):
        await result_of(["late"])

    @registry.step("late")
    async def other(event: StartEvent) -> StopEvent:
        return StopEvent(result="second")

    assert await result_of(["late"]) == "second"
    with pytest.raises(UnknownStepError, match="unknown workflow `w`"):
        await result_of([])
    registry.register_workflow(Workflow("w", ["late"], registry=registry))
    assert await result_of([]) == "second"
    registry.unregister_workflow("w")
    with pytest.raises(UnknownStepError, match="unknown workflow `w`"):
        await result_of([])


async def test_what_callers_name_is_not_kept_for_ever(serve: Serve, connect: Connect, registry: Registry) -> None:
    """Any number of workflow names do not grow the peer's memory: what was assembled is kept within a bound."""

    @registry.step("s")
    async def s(event: StartEvent) -> StopEvent:
        return StopEvent()

    server = await serve()
    client = await connect(server)
    await asyncio.gather(*(client.run_remote_workflow(f"name-{number}", ["s"], "null") for number in range(600)))
    assert len(server._invocations._resolution._resolved) <= 256


async def test_overloaded(serve: Serve, connect: Connect, registry: Registry) -> None:
    """Beyond ``max_runs``, where none may wait, callers get OverloadedError with the time to wait; later calls are taken."""
    go = asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        await go.wait()
        return StopEvent(result=1)

    server = await serve(settings=ServerSettings(max_runs=2, max_queued_runs=0, drain_secs=0))
    client = await connect(server)
    calls = [asyncio.create_task(client.run_remote_workflow("w", ["waits"], "null")) for _ in range(2)]
    await until(lambda: server._invocations.in_progress == 2)
    with pytest.raises(OverloadedError) as caught:
        await client.run_remote_workflow("w", ["waits"], "null")
    assert caught.value.retry_after_secs is not None
    assert caught.value.retry_after_secs > 0
    go.set()
    assert [result.result for result in await asyncio.gather(*calls)] == [1, 1]
    assert (await client.run_remote_workflow("w", ["waits"], "null")).result == 1


async def test_message_limits(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A request or an answer over a limit is an EncodeError with the size and the limit, whichever end's limit it is."""

    @registry.step("grows")
    async def grows(event: StartEvent) -> StopEvent:
        return StopEvent(result="x" * int(event.data))

    async def too_large(client: PeerClient, input_json: str) -> EncodeError:
        with pytest.raises(EncodeError) as caught:
            await client.run_remote_workflow("w", ["grows"], input_json)
        return caught.value

    small = await serve(settings=ServerSettings(max_message_bytes=2000, drain_secs=0))
    over_the_servers = await too_large(await connect(small), '"' + "1" * 3000 + '"')
    assert over_the_servers.limit_bytes == 2000
    assert over_the_servers.size_bytes is not None
    assert over_the_servers.size_bytes > 3000
    for input_json in ('"' + "1" * 3000 + '"', "3000"):
        error = await too_large(await connect(await serve(), max_message_bytes=2000), input_json)
        assert error.limit_bytes == 2000
    result = await (await connect(small)).run_remote_workflow("w", ["grows"], "1000")
    assert result.result == "x" * 1000


async def test_an_answer_over_the_servers_own_limit(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A result that the server itself may not send is an EncodeError with sizes as well, not a fault without a name."""

    @registry.step("grows")
    async def grows(event: StartEvent) -> StopEvent:
        return StopEvent(result="x" * 3000)

    client = await connect(await serve(settings=ServerSettings(max_message_bytes=2000, drain_secs=0)))
    with pytest.raises(EncodeError) as caught:
        await client.run_remote_workflow("w", ["grows"], "null")
    assert caught.value.limit_bytes == 2000


async def test_a_blocking_function_blocks_nobody(serve: Serve, connect: Connect, registry: Registry) -> None:
    """While a plain function holds its thread, other calls and health are answered."""
    release = threading.Event()

    @registry.step("blocks")
    def blocks(event: StartEvent) -> StopEvent:
        assert release.wait(20)
        return StopEvent(result="released")

    @registry.step("quick")
    async def quick(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    server = await serve()
    client = await connect(server)
    blocked = asyncio.create_task(client.run_remote_workflow("w", ["blocks"], "null"))
    await until(lambda: server._invocations.in_progress == 1)
    async with asyncio.timeout(10):
        for number in range(20):
            assert (await client.run_remote_workflow("w", ["quick"], str(number))).result == number
        await connect(server)
        release.set()
        assert (await blocked).result == "released"


@pytest.mark.parametrize("text", ["", "boom\nsecond line", "é" * 100_000, "\ud800"], ids=["none", "lines", "long", "surrogate"])
async def test_error_texts(serve: Serve, connect: Connect, registry: Registry, text: str) -> None:
    """Whatever a step's exception says, the caller gets a WorkflowError that names the step."""

    @registry.step("fails")
    async def fails(event: StartEvent) -> StopEvent:
        raise ValueError(text)

    client = await connect(await serve())
    with pytest.raises(WorkflowError, match="step 'fails' failed: "):
        await client.run_remote_workflow("w", ["fails"], "null")


async def test_a_chain_of_peers(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A step may call on to another peer: result and failure come back through both."""
    second = await connect(await serve("node-c"))

    @registry.step("relay")
    async def relay(event: StartEvent) -> StopEvent:
        return StopEvent(result=(await second.run_remote_workflow("inner", ["leaf"], event.data)).result)

    @registry.step("leaf")
    async def leaf(event: StartEvent) -> StopEvent:
        return StopEvent(result={"twice": event.data * 2})

    first = await connect(await serve("node-b"))
    assert (await first.run_remote_workflow("outer", ["relay"], '"21"')).result == {"twice": 42}
    with pytest.raises(WorkflowError, match=r"step 'relay' failed: .*step 'leaf' failed: "):
        await first.run_remote_workflow("outer", ["relay"], '"{}"')
