"""Cancelling runs: what the caller is told, whose runs they are, and that their children end too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blazen_peer import (
    CancelOutcome,
    CancelReport,
    Context,
    InvocationNotFoundError,
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    ValidationError,
    WorkflowError,
)
from blazen_peer.runtime import Run
from blazen_peer.runtime.registry import Registry

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
TOKEN = "t" * 43
HOLD = ("w", ["hold"], "null", 60)


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled, as it comes from elsewhere
            await asyncio.sleep(0.001)


class Work:
    """Steps that hold, and what became of them."""

    def __init__(self, registry: Registry) -> None:
        self.begun, self.cancelled, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.in_thread, self.let_thread_go = threading.Event(), threading.Event()

        @registry.step("hold")
        async def hold(event: StartEvent) -> StopEvent:
            self.begun.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return StopEvent(result="held")

        @registry.step("stubborn")
        async def stubborn(event: StartEvent) -> StopEvent:
            self.begun.set()
            while not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
            return StopEvent()

        @registry.step("thread")
        def thread(event: StartEvent) -> StopEvent:
            self.in_thread.set()
            self.let_thread_go.wait(20)
            return StopEvent()

        @registry.step("echo")
        async def echo(event: StartEvent) -> StopEvent:
            return StopEvent(result=event.data)


@pytest.fixture
def work(registry: Registry) -> Work:
    return Work(registry)


async def test_stopped(serve: Serve, connect: Connect, work: Work) -> None:
    """A run is stopped, its step is cancelled, and who waits for it hears ``workflow cancelled``; a repeat too."""
    client = await connect(await serve())
    call = asyncio.create_task(client.run_remote_workflow(*HOLD, invocation_id="one"))
    await until(work.begun.is_set)
    assert await client.cancel("one", grace_secs=5) == CancelReport(CancelOutcome.STOPPED)
    assert work.cancelled.is_set()
    for waiting in (call, client.run_remote_workflow(*HOLD, invocation_id="one")):
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await waiting


async def test_already_finished(serve: Serve, connect: Connect, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is over says so, and keeps its answer; so does one whose answer is no longer kept."""
    server = await serve()
    client = await connect(server)
    await client.run_remote_workflow("w", ["echo"], "1", invocation_id="one")
    assert await client.cancel("one") == CancelReport(CancelOutcome.ALREADY_FINISHED)
    assert (await client.run_remote_workflow("w", ["echo"], "1", invocation_id="one")).result == 1
    monkeypatch.setattr(server._invocations._table, "_max_answers", 0)
    await client.run_remote_workflow("w", ["echo"], "1", invocation_id="two")
    assert await client.cancel("one") == CancelReport(CancelOutcome.ALREADY_FINISHED)


@pytest.mark.parametrize("step_id", ["stubborn", "thread"])
async def test_still_stopping(
    serve: Serve, connect: Connect, work: Work, step_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that swallows its cancellation, or a function in its thread, is named, with the time since the run was stopped;
    the caller has its answer at once. When it has let go, the run has stopped."""
    client = await connect(await serve())
    call = asyncio.create_task(client.run_remote_workflow("w", [step_id], "null", 60, invocation_id="one"))
    await until(lambda: work.begun.is_set() or work.in_thread.is_set())
    report = await client.cancel("one", grace_secs=0.05)
    with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
        await call
    assert (report.outcome, report.step_ids) == (CancelOutcome.STILL_STOPPING, (step_id,))
    assert 0.04 <= report.stopping_secs < 5
    again = await client.cancel("one", grace_secs=0)
    assert (again.outcome, again.step_ids) == (CancelOutcome.STILL_STOPPING, (step_id,))
    assert again.stopping_secs >= report.stopping_secs
    waits = asyncio.Event()
    wait_stopped = Run.wait_stopped

    async def noted(run: Run, timeout_secs: float) -> bool:
        waits.set()
        return await wait_stopped(run, timeout_secs)

    monkeypatch.setattr(Run, "wait_stopped", noted)
    waiting = asyncio.create_task(client.cancel("one", grace_secs=10))
    await until(waits.is_set)
    work.release.set()
    work.let_thread_go.set()
    assert (await waiting).outcome is CancelOutcome.STOPPED
    assert (await client.cancel("one")).outcome is CancelOutcome.ALREADY_FINISHED


async def test_not_ones_own(serve: Serve, connect: Connect, work: Work) -> None:
    """Somebody else's run, and one that never was, are the same NOT_FOUND; the run goes on."""
    server = await serve(token=TOKEN)
    mine, other = await connect(server, "node-a", token=TOKEN), await connect(server, "node-b", token=TOKEN)
    call = asyncio.create_task(mine.run_remote_workflow(*HOLD, invocation_id="one"))
    await until(work.begun.is_set)
    texts = []
    for invocation_id in ("one", "two"):
        with pytest.raises(InvocationNotFoundError) as caught:
            await other.cancel(invocation_id)
        texts.append(str(caught.value).replace(invocation_id, "..."))
    assert texts[0] == texts[1]
    work.release.set()
    assert (await call).result == "held"


async def test_blocking(serve: Serve, connect: Connect, work: Work) -> None:
    """A plain thread cancels as well."""
    client = await connect(await serve())
    await client.run_remote_workflow("w", ["echo"], "1", invocation_id="one")
    report = await asyncio.to_thread(client.cancel_blocking, "one", grace_secs=1)
    assert report.outcome is CancelOutcome.ALREADY_FINISHED


@pytest.mark.parametrize("arguments", [{"invocation_id": ""}, {"invocation_id": "x", "grace_secs": -1}])
async def test_bad_arguments(serve: Serve, connect: Connect, arguments: dict[str, Any]) -> None:
    """What is no id, or no time, is a ValidationError."""
    with pytest.raises(ValidationError):
        await (await connect(await serve())).cancel(**arguments)


class Family:
    """A parent on one server whose step awaits a child on another."""

    def __init__(self, child: PeerServer, registry: Registry) -> None:
        self.client: PeerClient | None = None
        self.left_secs: list[float | None] = []

        async def connected() -> PeerClient:
            if self.client is None:
                self.client = await PeerClient.connect_async(child.address, "parent")
            return self.client

        @registry.step("parent")
        async def parent(event: StartEvent) -> StopEvent:
            result = await (await connected()).run_remote_workflow("child", ["hold"], "null", 60)
            return StopEvent(result=result.result)

        @registry.step("streams")
        async def streams(event: StartEvent) -> StopEvent:
            async for _ in (await connected()).stream_remote_workflow("child", ["hold"], "null", 60):
                pass
            return StopEvent()

        @registry.step("leaves")
        async def leaves(event: StartEvent) -> StopEvent:
            async with await PeerClient.connect_async(child.address, "parent") as client:
                await client.run_remote_workflow("child", ["hold"], "null", 60)
            return StopEvent()

        @registry.step("in_thread")
        def in_thread(event: StartEvent) -> StopEvent:
            with PeerClient.connect(child.address, "parent") as client:
                client.run_remote_workflow_blocking("child", ["hold"], "null", 60)
            return StopEvent()

        @registry.step("asks")
        async def asks(event: StartEvent, ctx: Context) -> StopEvent:
            result = await (await connected()).run_remote_workflow("child", ["left"], "null", event.data)
            return StopEvent(result=result.result)


@pytest.fixture
async def family(serve: Serve, registry: Registry, work: Work) -> Any:
    @registry.step("left")
    async def left(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.time_left_secs)

    family = Family(await serve("child"), registry)
    yield family
    if family.client is not None:
        await family.client.aclose()


@pytest.mark.parametrize("step_id", ["parent", "streams", "leaves", "in_thread"])
@pytest.mark.parametrize("end", ["cancel", "timeout"])
async def test_child_is_cancelled(serve: Serve, connect: Connect, work: Work, family: Family, step_id: str, end: str) -> None:
    """A remote run that a step awaits is cancelled when the step's own run is, or is out of time: in a task, a stream, a
    thread, or by a client that the step closes on its way out."""
    client = await connect(await serve("parent"))
    secs = 60 if end == "cancel" else 0.5
    call = asyncio.create_task(client.run_remote_workflow("w", [step_id], "null", secs, invocation_id="one"))
    await until(work.begun.is_set)
    if end == "cancel":
        assert (await client.cancel("one", grace_secs=5)).outcome is CancelOutcome.STOPPED
    with pytest.raises(WorkflowError, match="cancelled" if end == "cancel" else "timed out"):
        await call
    await until(work.cancelled.is_set)


async def test_child_that_lost_a_race(serve: Serve, connect: Connect, work: Work, family: Family, registry: Registry) -> None:
    """When another step has ended the run, the child that a step still awaits is cancelled."""

    @registry.step("faster")
    async def faster(event: StartEvent) -> StopEvent:
        await work.begun.wait()
        return StopEvent(result="won")

    client = await connect(await serve("parent"))
    assert (await client.run_remote_workflow("w", ["parent", "faster"], "null", 60)).result == "won"
    await until(work.cancelled.is_set)


async def test_child_gets_its_parents_time(serve: Serve, connect: Connect, work: Work, family: Family) -> None:
    """A remote run that a step awaits gets no more time than the step's own run has left, whatever it asks for."""
    client = await connect(await serve("parent"))
    for asked, most in (("null", 20), ("60", 20), ("5", 5)):
        left = (await client.run_remote_workflow("w", ["asks"], asked, 20)).result
        assert most - 3 < left <= most


async def test_outside_a_step(serve: Serve, connect: Connect, work: Work) -> None:
    """Outside a step, cancelling the awaiting task severs the wait alone."""
    server = await serve()
    client = await connect(server)
    call = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await until(work.begun.is_set)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await client.describe()
    assert server._invocations.in_progress == 1
    assert not work.cancelled.is_set()
    work.release.set()
    await until(lambda: server._invocations.in_progress == 0)


def limited(**settings: Any) -> ServerSettings:
    return ServerSettings(**{"max_runs": 1, "lame_duck_secs": 0, "drain_secs": 0, **settings})


async def test_queue(serve: Serve, connect: Connect, work: Work) -> None:
    """Beyond ``max_runs`` calls wait in the order they came; beyond ``max_queued_runs`` they are refused."""
    server = await serve(settings=limited(max_queued_runs=2))
    client = await connect(server)
    held = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await until(work.begun.is_set)
    ended: list[int] = []

    async def call(number: int) -> None:
        ended.append((await client.run_remote_workflow("w", ["echo"], f"{number}", 30)).result)

    waiting = []
    for number in (1, 2):
        waiting.append(asyncio.create_task(call(number)))
        await until(lambda: server._invocations.in_progress == 1 + len(waiting))
    with pytest.raises(Exception, match="1 runs are in progress and 2 wait, as many as may") as caught:
        await client.run_remote_workflow("w", ["echo"], "3")
    assert caught.value.retry_after_secs > 0  # type: ignore[attr-defined]
    work.release.set()
    await asyncio.gather(held, *waiting)
    assert ended == [1, 2]


async def test_waiting_counts(serve: Serve, connect: Connect, work: Work, registry: Registry) -> None:
    """The time that a call waits for its turn is its own: out of it, it has timed out and never runs; else it has the rest."""

    @registry.step("left")
    async def left(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.time_left_secs)

    server = await serve(settings=limited())
    client = await connect(server)
    held = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await until(work.begun.is_set)
    rest = asyncio.create_task(client.run_remote_workflow("w", ["left"], "null", 20))
    with pytest.raises(WorkflowError, match=r"^workflow timed out after 0\.3s$"):
        await client.run_remote_workflow("w", ["echo"], "null", 0.3)
    work.release.set()
    await held
    assert 10 < (await rest).result <= 19.8


async def test_cancel_while_waiting(serve: Serve, connect: Connect, work: Work) -> None:
    """A call that waits for its turn is cancelled like one that runs; it never begins."""
    server = await serve(settings=limited())
    client = await connect(server)
    held = asyncio.create_task(client.run_remote_workflow(*HOLD))
    await until(work.begun.is_set)
    waiting = asyncio.create_task(client.run_remote_workflow("w", ["echo"], "1", invocation_id="one"))
    await until(lambda: server._invocations.in_progress == 2)
    assert (await client.cancel("one")).outcome is CancelOutcome.STOPPED
    with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
        await waiting
    work.release.set()
    assert (await held).result == "held"


async def test_draining_with_a_queue(serve: Serve, connect: Connect, work: Work) -> None:
    """A server that drains runs what waits; out of its time, it cancels that too."""
    server = await serve(settings=limited(drain_secs=0.2))
    client = await connect(server)
    calls = [asyncio.create_task(client.run_remote_workflow(*HOLD, invocation_id=name)) for name in ("one", "two")]
    await until(lambda: server._invocations.in_progress == 2)
    await server.drain()
    for call in calls:
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await call
