"""One run: concurrency, deadlines, cancellation, and steps that misbehave."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from blazen_peer.errors import WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.identity import Caller
from blazen_peer.runtime import Context, Run, Workflow, WorkflowBuilder, current_run, define_step
from blazen_peer.runtime import run as run_module


class N(Event, event_type="demo::N"):
    n: int


def flow(*handlers: tuple[str, Callable[..., Any]]) -> Workflow:
    """Build a workflow of handlers by the event that each accepts; their names are step-0, step-1, ... What they emit is left
    undeclared, so that those that never end well can be built."""
    steps = [define_step(f"step-{number}", handler, accepts=[accepts]) for number, (accepts, handler) in enumerate(handlers)]
    return Workflow("w", [replace(step, emits=None) for step in steps])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0.001)


async def fan(event: Event) -> list[Event]:
    return [N(n=n) for n in range(event.data)]


async def test_acceptors_run_concurrently() -> None:
    """Several steps that accept one event run at once: neither could finish without the other."""
    barrier = asyncio.Barrier(2)

    async def meet(event: Event) -> Event | None:
        return StopEvent(result="met") if await barrier.wait() else None

    async with asyncio.timeout(10):
        assert (await flow((START, meet), (START, meet)).run(None)).result == "met"


async def test_fan_out_runs_concurrently() -> None:
    """Many events of one step are executed at once."""
    barrier = asyncio.Barrier(100)

    async def meet(event: Event) -> Event | None:
        return StopEvent(result="met") if await barrier.wait() == 0 else None

    async with asyncio.timeout(10):
        assert (await flow((START, fan), ("demo::N", meet)).run(100)).result == "met"


async def test_fan_in() -> None:
    """What was fanned out can be gathered again."""
    seen: list[int] = []

    async def gather(event: Event) -> Event | None:
        seen.append(event.data["n"])
        return StopEvent(result=sum(seen)) if len(seen) == 100 else None

    assert (await flow((START, fan), ("demo::N", gather)).run(100)).result == sum(range(100))


async def test_first_stop_cancels_the_rest() -> None:
    """The first StopEvent ends the run and cancels what is in flight."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> Event | None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    async def fast(event: Event) -> Event:
        await waiting.wait()
        return StopEvent(result="fast")

    async with asyncio.timeout(10):
        assert (await flow((START, slow), (START, fast)).run(None)).result == "fast"
        await cancelled.wait()


async def test_failure_cancels_the_rest() -> None:
    """A step that raises ends the run, its cause kept, and cancels what is in flight."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def broken(event: Event) -> None:
        await waiting.wait()
        raise ValueError("boom")

    async with asyncio.timeout(10):
        with pytest.raises(WorkflowError) as caught:
            await flow((START, slow), (START, broken)).run(None)
        await cancelled.wait()
    assert (str(caught.value), caught.value.step_id) == ("step 'step-1' failed: boom", "step-1")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_timeout() -> None:
    """The deadline ends the run and cancels its steps; the text has the seconds as they were given."""
    cancelled = asyncio.Event()

    async def slow(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    for timeout_secs, text in ((0.05, "0.05s"), (0, "0s")):
        cancelled.clear()
        async with asyncio.timeout(10):
            with pytest.raises(WorkflowError) as caught:
                await flow((START, slow)).run(None, timeout_secs=timeout_secs)
            await cancelled.wait()
        assert str(caught.value) == f"workflow timed out after {text}"
        assert caught.value.step_id is None


TIMEOUT_TEXTS = [(1, "1s"), (1.0, "1s"), (1.5, "1.5s"), (3600, "3600s"), (1234567.0, "1234567s")]


@pytest.mark.parametrize(("timeout_secs", "text"), TIMEOUT_TEXTS, ids=str)
async def test_timeout_text(timeout_secs: float, text: str) -> None:
    """A deadline that has come says the timeout as it was given, however little of it was left to this run."""

    async def slow(event: Event) -> None:
        await asyncio.Event().wait()

    run = flow((START, slow)).start(None, timeout_secs=timeout_secs, deadline=asyncio.get_running_loop().time())
    with pytest.raises(WorkflowError) as caught:
        await run.wait()
    assert str(caught.value) == f"workflow timed out after {text}"


async def test_no_time_at_all() -> None:
    """With a timeout of 0, what finishes without waiting succeeds: here a chain of three."""

    async def first(event: Event) -> Event:
        return Event.dynamic("demo::A", event.data)

    async def second(event: Event) -> Event:
        return Event.dynamic("demo::B", event.data)

    async def third(event: Event) -> Event:
        return StopEvent(result=event.data)

    workflow = flow((START, first), ("demo::A", second), ("demo::B", third))
    assert (await workflow.run("x", timeout_secs=0)).result == "x"


async def test_endless_loop_without_waiting() -> None:
    """Steps that go round for ever and never wait are ended by the deadline, and let other tasks have their turns."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def again(event: Event) -> Event:
        return N(n=1)

    ticking = asyncio.create_task(tick())
    async with asyncio.timeout(10):
        with pytest.raises(WorkflowError, match=r"timed out after 0\.1s"):
            await flow((START, again), ("demo::N", again)).run(None, timeout_secs=0.1)
    ticking.cancel()
    assert turns >= 3


async def test_endless_multiplication() -> None:
    """A step that doubles its events is ended by the bound on what is in flight."""

    async def double(event: Event) -> list[Event]:
        return [N(n=1), N(n=2)]

    async with asyncio.timeout(60):
        with pytest.raises(WorkflowError, match="more than 10000 steps in flight"):
            await flow((START, double), ("demo::N", double)).run(None)


async def test_swallowed_cancellation(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A step that swallows its cancellation delays no outcome; it is named in the log, cancelled again, and reaped."""
    monkeypatch.setattr(run_module, "CHASE_SECS", (0.02, 0.02, 0.02))
    times = 0
    over = asyncio.Event()

    async def stubborn(event: Event) -> None:
        nonlocal times
        while times < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                times += 1
        over.set()

    run = flow((START, stubborn)).start(None, timeout_secs=0.02)
    async with asyncio.timeout(10):
        with caplog.at_level(logging.WARNING), pytest.raises(WorkflowError, match="timed out"):
            await run.wait()
        assert run.running_step_ids == ("step-0",)
        await over.wait()
        await until(lambda: run not in run_module._ALIVE)
    assert run.running_step_ids == ()
    assert "still runs after" in caplog.text
    assert "step-0" in caplog.text


async def test_chase_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A step that outlives every cancellation is left alone in the end, and still named by its run."""
    monkeypatch.setattr(run_module, "CHASE_SECS", (0.01, 0.01))
    release = asyncio.Event()
    cancellations = 0

    async def deaf(event: Event) -> None:
        nonlocal cancellations
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                cancellations += 1

    run = flow((START, deaf)).start(None, timeout_secs=0.01)
    with pytest.raises(WorkflowError):
        await run.wait()
    await until(lambda: cancellations == 3)
    assert run._timer is None
    assert run.running_step_ids == ("step-0",)
    release.set()
    await until(lambda: run not in run_module._ALIVE)
    assert len(caplog.records) == 2


async def test_cancel() -> None:
    """A run that is cancelled ends at once as such; afterwards cancelling it changes nothing."""
    waiting = asyncio.Event()

    async def slow(event: Event) -> None:
        waiting.set()
        await asyncio.Event().wait()

    run = flow((START, slow)).start(None)
    async with asyncio.timeout(10):
        await waiting.wait()
        run.cancel()
        run.cancel()
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await run.wait()
        await until(lambda: run not in run_module._ALIVE)


async def test_cancel_before_the_first_step() -> None:
    """A run cancelled before its first step had a turn executes none."""
    executed = []

    async def note(event: Event) -> Event:
        executed.append(event)
        return StopEvent()

    run = flow((START, note)).start(None)
    run.cancel()
    with pytest.raises(WorkflowError, match="workflow cancelled"):
        await run.wait()
    await until(lambda: run not in run_module._ALIVE)
    assert executed == []


async def test_cancelled_wait_leaves_the_run() -> None:
    """Cancelling a wait severs the wait; the run goes on, for all others who wait."""
    go = asyncio.Event()

    async def slow(event: Event) -> Event:
        await go.wait()
        return StopEvent(result="done")

    run = flow((START, slow)).start(None)
    waits = [asyncio.create_task(run.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.wait(waits, timeout=0.01)
    go.set()
    async with asyncio.timeout(10):
        assert (await waits[1]).result == "done"
        assert (await run.wait()).result == "done"
    assert waits[0].cancelled()


async def test_cancelled_awaiter_of_run() -> None:
    """Cancelling the task that awaits ``workflow.run`` cancels its run: it is that task's own."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(flow((START, slow)).run(None))
    async with asyncio.timeout(10):
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await cancelled.wait()


async def test_nested_run_ends_with_its_parent() -> None:
    """A workflow run inside a step is cancelled when the step is."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    child = flow((START, slow))

    async def parent(event: Event) -> Event:
        return (await child.run(None)).event

    run = flow((START, parent)).start(None)
    async with asyncio.timeout(10):
        await waiting.wait()
        run.cancel()
        await cancelled.wait()


async def test_nested_failure() -> None:
    """A child's failure that the step lets pass is the step's failure, with both ids told."""

    async def broken(event: Event) -> None:
        raise ValueError("boom")

    child = flow((START, broken))

    async def parent(event: Event) -> Event:
        return (await child.run(None)).event

    with pytest.raises(WorkflowError) as caught:
        await WorkflowBuilder("p").step("parent", [START], [STOP], parent).build().run(None)
    assert str(caught.value) == "step 'parent' failed: step 'step-0' failed: boom"


async def test_step_raises_cancelled_error() -> None:
    """A CancelledError of a step's own making is that step's failure, and leaves the task of the caller alone."""

    async def odd(event: Event) -> None:
        raise asyncio.CancelledError

    async with asyncio.timeout(10):
        with pytest.raises(WorkflowError) as caught:
            await flow((START, odd)).run(None)
    assert str(caught.value) == "step 'step-0' failed: CancelledError"


async def test_step_calls_exit() -> None:
    """A step that calls sys.exit, async or plain, fails; it does not end the peer."""

    async def leave(event: Event) -> None:
        sys.exit("bye")

    def leave_plain(event: Event) -> None:
        sys.exit("bye")

    for handler in (leave, leave_plain):
        with pytest.raises(WorkflowError, match="step 'step-0' failed: bye"):
            await flow((START, handler)).run(None)


def test_keyboard_interrupt() -> None:
    """A KeyboardInterrupt inside a step goes on to the program, and the run is over: nothing hangs."""
    runs: list[Run] = []

    async def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        runs.append(flow((START, interrupt)).start(None))
        await runs[0].wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert isinstance(runs[0].outcome.exception(), WorkflowError)


def test_loop_goes_away() -> None:
    """When the event loop is shut down, its runs end as cancelled: with a step waiting, or with none begun."""
    runs: list[Run] = []

    async def slow(event: Event) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        runs.append(flow((START, slow)).start(None))
        await asyncio.sleep(0)
        runs.append(flow((START, slow)).start(None))

    asyncio.run(main())
    assert [str(run.outcome.exception()) for run in runs] == ["workflow cancelled"] * 2
    assert not set(runs) & run_module._ALIVE


async def test_task_cancelled_before_it_began() -> None:
    """A run whose first task is cancelled from outside before its first turn ends as cancelled: it would hang otherwise."""

    async def never(event: Event) -> None:
        raise AssertionError("it began")

    run = flow((START, never)).start(None)
    for task in run._tasks:
        task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(WorkflowError, match="workflow cancelled"):
            await run.wait()


async def test_unwanted_failure_warns_of_nothing() -> None:
    """A failure that nobody waits for is reported by nobody when its future goes."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    async def broken(event: Event) -> None:
        raise ValueError("boom")

    outcome = flow((START, broken)).start(None).outcome
    await until(outcome.done)
    await until(lambda: not run_module._ALIVE)
    del outcome
    gc.collect()
    assert reported == []


async def test_context() -> None:
    """A step that asks for its context sees its run's names, caller and time left; so does a plain one in its thread."""
    seen: list[Context] = []
    runs: list[Any] = []

    async def first(event: Event, ctx: Context) -> Event:
        seen.append(ctx)
        runs.append(current_run())
        return N(n=1)

    def second(event: Event, ctx: Context) -> Event:
        seen.append(ctx)
        runs.append(current_run())
        return StopEvent(result=ctx.time_left_secs)

    caller = Caller.claimed("node-a")
    run = flow((START, first), ("demo::N", second)).start(
        None, caller=caller, run_id="r1", invocation_id="i1", node_id="node-b", timeout_secs=60
    )
    result = await run.wait()
    assert 0 < result.result <= 60
    assert [ctx.step_id for ctx in seen] == ["step-0", "step-1"]
    for ctx in seen:
        assert (ctx.workflow_name, ctx.run_id, ctx.invocation_id, ctx.node_id) == ("w", "r1", "i1", "node-b")
        assert ctx.caller == caller
        assert ctx.deadline == run.info.deadline
    assert runs == [run.info, run.info]
    assert current_run() is None


def test_context_for_unit_tests() -> None:
    """A context can be made without a run, and cannot be changed."""
    ctx = Context()
    assert (ctx.time_left_secs, ctx.deadline, ctx.invocation_id, str(ctx.caller)) == (None, None, None, "anonymous")
    with pytest.raises(AttributeError):
        ctx.run_id = "other"  # type: ignore[misc]


async def test_plain_function_runs_in_a_thread() -> None:
    """A plain function never blocks the loop: here it waits for what the loop does meanwhile."""
    release = threading.Event()
    names: list[str] = []

    def blocking(event: Event) -> Event:
        names.append(threading.current_thread().name)
        return StopEvent(result=release.wait(10))

    run = flow((START, blocking)).start(None)
    await until(lambda: bool(names))
    release.set()
    async with asyncio.timeout(10):
        assert (await run.wait()).result is True
    assert names == ["blazen-step"]


async def test_plain_function_that_gives_a_coroutine() -> None:
    """What a plain function returns is awaited on the loop when it can be."""

    async def inner(event: Event) -> Event:
        return StopEvent(result=threading.current_thread() is threading.main_thread())

    def outer(event: Event) -> Awaitable[Event]:
        return inner(event)

    assert (await flow((START, outer)).run(None)).result is True


async def test_timeout_of_a_stuck_thread() -> None:
    """A plain function that is stuck delays no outcome."""
    release = threading.Event()

    def stuck(event: Event) -> Sequence[Event] | None:
        release.wait(10)
        return None

    async with asyncio.timeout(5):
        with pytest.raises(WorkflowError, match=r"timed out after 0\.02s"):
            await flow((START, stuck)).run(None, timeout_secs=0.02)
    release.set()


def test_stuck_thread_holds_no_process() -> None:
    """A process ends although a plain function is stuck in its thread."""
    program = """
import asyncio, threading
from blazen_peer.errors import WorkflowError
from blazen_peer.runtime import WorkflowBuilder
def stuck(event): threading.Event().wait()
workflow = WorkflowBuilder("w").step("s", ["blazen::StartEvent"], ["blazen::StopEvent"], stuck).build()
try: asyncio.run(workflow.run(None, timeout_secs=0.05))
except WorkflowError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "workflow timed out after 0.05s\n"
    assert done.stderr == ""


async def test_input_event_is_shared() -> None:
    """All acceptors of the start see one and the same frozen event."""
    seen: list[Event] = []

    async def note(event: Event) -> Event | None:
        seen.append(event)
        return StopEvent() if len(seen) == 2 else None

    start = StartEvent(data=1)
    await flow((START, note), (START, note)).run(start)
    assert seen[0] is seen[1] is start
