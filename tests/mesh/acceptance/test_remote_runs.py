"""Repeats, cancels and streams through real sidecars, and through sidecars that die in the middle."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from blazen_peer import (
    CancelOutcome,
    Context,
    Event,
    InvocationNotFoundError,
    PermissionDeniedError,
    StartEvent,
    StopEvent,
    TransportError,
    WorkflowError,
)

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call
HOLD = ("hold", ["demo::hold"], '"kept"', 60)


async def kill(child: Any) -> None:
    """Kill a process as a crash would, and wait until it is gone."""
    child.send(signal.SIGKILL)
    async with asyncio.timeout(10):
        await child.wait()


async def test_cancel(remote: Any) -> None:
    """A run is cancelled through both sidecars, by the identity that began it and no other."""
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow(*HOLD, invocation_id="one"))
    await asyncio.wait_for(remote.held.wait(), 10)
    past_the_sidecar = await remote.connect(address=remote.straight)
    with pytest.raises((PermissionDeniedError, InvocationNotFoundError)):
        await past_the_sidecar.cancel("one")
    with pytest.raises(InvocationNotFoundError):
        await client.cancel("two")
    assert (await client.cancel("one", grace_secs=5)).outcome is CancelOutcome.STOPPED
    with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
        await call


@pytest.mark.parametrize("node", [pytest.param("analyst", id="the-peers"), pytest.param("intake", id="the-callers")])
async def test_sidecar_killed_and_back(remote: Any, node: str) -> None:
    """A run loses a sidecar on its way, and with ``retries`` its caller gets the answer when it is back: executed once."""
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow(*HOLD, retries=10))
    await asyncio.wait_for(remote.held.wait(), 10)
    await kill(remote.mesh.sidecars[node].child)
    await remote.mesh.start_sidecar(node)
    remote.release.set()
    assert (await asyncio.wait_for(call, 30)).result == "kept"
    assert remote.begun == {"demo::hold": 1}


async def test_restarted_peer_is_another_process(start_remote: Any, start_process: Any) -> None:
    """The peer dies and another process takes its place: with ``retries`` too the run is executed once, and the caller hears
    that it may have run."""
    remote = await start_remote(serve=False)
    first = await start_process(remote.mesh, "analyst", "--require-identity")
    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow(*HOLD, retries=10))
    await first.executed("demo::hold")
    await kill(first.child)
    second = await start_process(remote.mesh, "analyst", "--require-identity")
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(call, 60)
    assert caught.value.may_have_run is True
    assert second.executions("demo::hold") == 1


async def test_stream_over_a_killed_sidecar(remote: Any) -> None:
    """A stream loses its sidecar, and goes on where it was when that is back: no event twice, none missing."""
    more: asyncio.Queue[int] = asyncio.Queue()

    @remote.registry.step("demo::counts")
    async def counts(event: StartEvent, ctx: Context) -> StopEvent:
        emitted = 0
        while count := await more.get():
            for _ in range(count):
                emitted += 1
                ctx.emit(Event.dynamic("demo::Counted", emitted))
        return StopEvent(result="done")

    client = await remote.connect()
    stream = client.stream_remote_workflow("counts", ["demo::counts"], "null", 60, retries=10)
    more.put_nowait(3)
    seen = [(await asyncio.wait_for(anext(stream), 10)).data for _ in range(3)]
    await kill(remote.mesh.sidecars["intake"].child)
    more.put_nowait(3)
    await remote.mesh.start_sidecar("intake")
    more.put_nowait(0)
    async with asyncio.timeout(30):
        seen += [event.data async for event in stream]
    assert seen == [1, 2, 3, 4, 5, 6, "done"]


async def test_child_through_sidecars(remote: Any) -> None:
    """The run of a step's own call is cancelled on the other side when the step's run is."""

    @remote.registry.step("demo::delegates")
    async def delegates(event: StartEvent, ctx: Context) -> StopEvent:
        async with await remote.connect() as client:
            return StopEvent(result=(await client.run_remote_workflow(*HOLD)).result)

    client = await remote.connect()
    call = asyncio.create_task(client.run_remote_workflow("p", ["demo::delegates"], "null", 60, invocation_id="parent"))
    await asyncio.wait_for(remote.held.wait(), 10)
    assert (await client.cancel("parent")).outcome is CancelOutcome.STOPPED
    with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
        await call
    async with asyncio.timeout(10):
        while remote.server._invocations.in_progress:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0.01)
    assert not remote.finished
