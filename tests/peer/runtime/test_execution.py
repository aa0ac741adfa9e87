"""A step's own timeout, retries and concurrency limit."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from blazen_peer.engine import Retry
from blazen_peer.errors import ValidationError, WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.runtime import Context, Registry, Workflow, WorkflowBuilder
from blazen_peer.runtime import execution as execution_module

RunVirtual = Callable[[Any], tuple[Any, float]]


@pytest.fixture(autouse=True)
def half_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance is one half."""
    monkeypatch.setattr(execution_module, "random", lambda: 0.5)


def one_step(handler: Callable[..., Any], **options: Any) -> Workflow:
    return WorkflowBuilder("w").step("s", [START], [STOP], handler, **options).build()


def failing(times: int, error: Exception) -> tuple[Callable[..., Any], list[tuple[int, float]]]:
    """Return a step that fails so many times, and the list of (attempt, when it began)."""
    began: list[tuple[int, float]] = []

    async def handler(event: StartEvent, ctx: Context) -> StopEvent:
        began.append((ctx.attempt, asyncio.get_running_loop().time()))
        if len(began) <= times:
            raise error
        return StopEvent(result=ctx.attempt)

    return handler, began


def test_timeout(run_virtual: RunVirtual) -> None:
    """An execution that takes longer than its step may is cancelled and fails the run, which had time left."""
    cancelled: list[bool] = []

    async def slow(event: StartEvent) -> StopEvent:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return StopEvent()

    async def main() -> None:
        with pytest.raises(WorkflowError) as caught:
            await one_step(slow, timeout_secs=1.5).run(None, timeout_secs=60)
        assert (str(caught.value), caught.value.step_id) == ("step 's' failed: timed out after 1.5s", "s")
        assert isinstance(caught.value.__cause__, TimeoutError)

    _, secs = run_virtual(main())
    assert secs == pytest.approx(1.5)
    assert cancelled == [True]


def test_in_time(run_virtual: RunVirtual) -> None:
    """The timeout is for each execution of its own."""

    async def quick(event: StartEvent, ctx: Context) -> StopEvent:
        await asyncio.sleep(0.9)
        if ctx.attempt < 4:
            raise ValueError("again")
        return StopEvent(result="done")

    result, secs = run_virtual(one_step(quick, timeout_secs=1, retry=Retry(attempts=4, delay_secs=0)).run(None))
    assert result.result == "done"
    assert secs == pytest.approx(3.6)


async def test_own_timeout_error() -> None:
    """A TimeoutError that the step itself raises keeps its text."""

    async def handler(event: StartEvent) -> StopEvent:
        raise TimeoutError("the database did not answer")

    with pytest.raises(WorkflowError, match="step 's' failed: the database did not answer"):
        await one_step(handler, timeout_secs=5).run(None)


async def test_timeout_of_a_thread() -> None:
    """A plain function that takes too long is given up, though its thread goes on."""
    release = threading.Event()

    def stuck(event: StartEvent) -> StopEvent:
        release.wait(10)
        return StopEvent()

    async with asyncio.timeout(5):
        with pytest.raises(WorkflowError, match=r"step 's' failed: timed out after 0\.02s"):
            await one_step(stuck, timeout_secs=0.02).run(None)
    release.set()


def test_retry(run_virtual: RunVirtual, caplog: pytest.LogCaptureFixture) -> None:
    """A step that fails is executed again after growing waits, and knows which execution it is; the log has no message."""
    handler, began = failing(3, ValueError("canary"))
    with caplog.at_level(logging.DEBUG):
        result, _ = run_virtual(one_step(handler, retry=Retry(attempts=4, delay_secs=1, jitter=0.2)).run(None))
    assert result.result == 4
    assert [attempt for attempt, _ in began] == [1, 2, 3, 4]
    assert [when for _, when in began] == pytest.approx([0, 0.9, 2.7, 6.3])
    assert [record.args[2] for record in caplog.records if record.name.endswith("execution")] == ["ValueError"] * 3  # type: ignore[index]
    assert "canary" not in caplog.text


def test_retry_used_up(run_virtual: RunVirtual) -> None:
    """When all executions failed, the last one's error is the step's."""
    handler, began = failing(9, ValueError("boom"))

    async def main() -> None:
        with pytest.raises(WorkflowError, match=r"^step 's' failed: boom$"):
            await one_step(handler, retry=Retry(attempts=3)).run(None)

    run_virtual(main())
    assert len(began) == 3


def test_retry_of_other_errors(run_virtual: RunVirtual) -> None:
    """An error that is not worth another try fails the step at once."""
    handler, began = failing(1, KeyError("k"))

    async def main() -> None:
        with pytest.raises(WorkflowError):
            await one_step(handler, retry=Retry(on=(OSError, ValueError))).run(None)

    run_virtual(main())
    assert len(began) == 1


def test_retry_without_time(run_virtual: RunVirtual) -> None:
    """Where the next execution would begin after the run's end, the run fails now, by what went wrong."""
    handler, began = failing(9, ValueError("boom"))

    async def main() -> None:
        with pytest.raises(WorkflowError, match="step 's' failed: boom"):
            await one_step(handler, retry=Retry(attempts=9, delay_secs=4, jitter=0)).run(None, timeout_secs=10)

    _, secs = run_virtual(main())
    assert (len(began), secs) == (2, pytest.approx(4))


def test_retry_after_timeout(run_virtual: RunVirtual) -> None:
    """An execution that timed out is tried again."""

    async def handler(event: StartEvent, ctx: Context) -> StopEvent:
        await asyncio.sleep(60 if ctx.attempt == 1 else 0)
        return StopEvent(result=ctx.attempt)

    result, secs = run_virtual(one_step(handler, timeout_secs=2, retry=Retry(delay_secs=1, jitter=0)).run(None))
    assert (result.result, secs) == (2, pytest.approx(3))


async def test_no_retry_of_a_cancelled_run() -> None:
    """A run that is cancelled between two executions makes no other."""
    handler, began = failing(9, ValueError("boom"))
    run = one_step(handler, retry=Retry(attempts=9, delay_secs=30)).start(None)
    async with asyncio.timeout(10):
        while not began:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(WorkflowError, match="workflow cancelled"):
            await run.wait()
        while run.running_step_ids:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert len(began) == 1


async def test_retry_of_a_plain_function() -> None:
    """A plain function is executed again, too, in a thread each time."""
    attempts: list[int] = []

    def handler(event: StartEvent, ctx: Context) -> StopEvent:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("again")
        return StopEvent(result=threading.current_thread().name)

    assert (await one_step(handler, retry=Retry(delay_secs=0)).run(None)).result == "blazen-step"
    assert attempts == [1, 2, 3]


class Part(Event, event_type="demo::Part"):
    n: int


def test_fan_in_that_is_tried_again(run_virtual: RunVirtual) -> None:
    """A fan-in that failed gets its list again, and an event that only joined a list does not join another."""
    seen: list[Any] = []

    async def fan(event: StartEvent) -> list[Part]:
        return [Part(n=n) for n in range(4)]

    async def gather(event: Part, ctx: Context) -> StopEvent | None:
        parts = ctx.collect(event, 2)
        seen.append((event.n, ctx.attempt, parts and [part.n for part in parts]))
        if ctx.attempt < 3:
            raise ValueError("again")
        return StopEvent() if event.n == 3 else None

    builder = WorkflowBuilder("w").step("fan", None, None, fan)
    run_virtual(builder.step("gather", None, None, gather, retry=Retry(attempts=3, delay_secs=1)).build().run(None))
    got = {n: [parts for number, _, parts in seen if number == n] for n in range(4)}
    assert got == {0: [None] * 3, 1: [[0, 1]] * 3, 2: [None] * 3, 3: [[2, 3]] * 3}


class Gauge:
    """How many are inside at once, and the most there were."""

    def __init__(self) -> None:
        self.lock, self.inside, self.most = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1


def test_max_concurrent_over_runs(run_virtual: RunVirtual) -> None:
    """A limit holds over all runs, of several workflows that share the step."""
    registry, gauge = Registry(), Gauge()

    @registry.step("s", max_concurrent=3)
    async def step(event: StartEvent) -> StopEvent:
        with gauge:
            await asyncio.sleep(1)
        return StopEvent()

    async def main() -> None:
        workflows = [Workflow("a", ["s"], registry=registry), Workflow.from_step_ids("b", ["s"], registry)]
        await asyncio.gather(*(workflow.run(None, timeout_secs=60) for workflow in workflows * 10))

    _, secs = run_virtual(main())
    assert (gauge.most, secs) == (3, pytest.approx(7))


def test_max_concurrent_and_timeout(run_virtual: RunVirtual) -> None:
    """Waiting for a turn takes nothing of the step's own time."""

    async def step(event: StartEvent) -> StopEvent:
        await asyncio.sleep(1)
        return StopEvent()

    async def main() -> None:
        workflow = one_step(step, max_concurrent=1, timeout_secs=1.5)
        await asyncio.gather(*(workflow.run(None) for _ in range(5)))

    assert run_virtual(main())[1] == pytest.approx(5)


def test_turn_is_free_between_executions(run_virtual: RunVirtual) -> None:
    """Who waits for its next execution holds no turn."""
    order: list[tuple[str, int]] = []

    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        order.append((event.data, ctx.attempt))
        if event.data == "fails" and ctx.attempt == 1:
            raise ValueError("boom")
        return StopEvent()

    async def main() -> None:
        workflow = one_step(step, max_concurrent=1, retry=Retry(delay_secs=10, jitter=0))
        await asyncio.gather(workflow.run("fails"), workflow.run("works"))

    run_virtual(main())
    assert order == [("fails", 1), ("works", 1), ("fails", 2)]


async def test_max_concurrent_in_threads() -> None:
    """A limit holds in threads; a function whose run is over counts until it returns."""
    gauge, release, begun = Gauge(), threading.Event(), threading.Semaphore(0)

    def step(event: StartEvent) -> StopEvent:
        with gauge:
            begun.release()
            release.wait(10)
        return StopEvent()

    workflow = one_step(step, max_concurrent=2)
    async with asyncio.timeout(10):
        runs = [workflow.start(None) for _ in range(5)]
        for _ in range(2):
            await asyncio.to_thread(begun.acquire)
        for run in runs[:2]:
            run.cancel()
        await asyncio.to_thread(begun.acquire, timeout=0.05)
        assert gauge.inside == 2
        release.set()
        for run in runs[2:]:
            await run.wait()
    assert gauge.most == 2


async def test_cancelled_before_its_thread() -> None:
    """A function whose run ended while it waited for a thread is never called, and its turn is free again."""
    called: list[Any] = []

    def step(event: StartEvent) -> StopEvent:
        called.append(event.data)
        return StopEvent()

    workflow = one_step(step, max_concurrent=1)
    run = workflow.start("cancelled")
    run.cancel()
    async with asyncio.timeout(10):
        await workflow.run("later")
    assert called == ["later"]


async def test_thread_that_comes_too_late() -> None:
    """A function that gets its thread after its step was given up is not called: it would be beyond the limit."""
    called: list[Any] = []

    def handler(event: StartEvent) -> StopEvent:
        called.append(event)
        return StopEvent()

    [step] = one_step(handler, max_concurrent=1).steps
    turn = await step.turns.take()
    turn.leave()
    assert execution_module._in_turn(turn, step, (StartEvent(),)) is None
    assert called == []


async def test_plain_function_that_gives_a_coroutine_in_its_turn() -> None:
    """What a plain function returns is awaited within its turn."""
    gauge = Gauge()

    async def inner() -> StopEvent:
        with gauge:
            await asyncio.sleep(0)
        return StopEvent()

    def step(event: StartEvent) -> Any:
        return inner()

    workflow = one_step(step, max_concurrent=1)
    async with asyncio.timeout(10):
        await asyncio.gather(*(workflow.run(None) for _ in range(10)))
    assert gauge.most == 1


REFUSED: list[Any] = [
    pytest.param({"timeout_secs": 0}, "timeout_secs is 0", id="no-time"),
    pytest.param({"timeout_secs": float("nan")}, "timeout_secs is nan", id="nan"),
    pytest.param({"max_concurrent": 0}, "max_concurrent is 0", id="none-at-once"),
    pytest.param({"max_concurrent": 1.5}, "max_concurrent is 1.5", id="one-and-a-half"),
    pytest.param({"retry": 3}, "retry is int: use Retry", id="a-number"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_refused(options: dict[str, Any], why: str) -> None:
    """Options that mean nothing are refused where the step is defined."""

    async def handler(event: Event) -> StopEvent:
        return StopEvent()

    with pytest.raises(ValidationError, match=f"step 's': {why}"):
        one_step(handler, **options)


def test_same_step_twice() -> None:
    """Registering a step again changes nothing when its options are the same, and is refused otherwise."""
    registry = Registry()

    async def handler(event: StartEvent) -> StopEvent:
        return StopEvent()

    options: dict[str, Any] = {"timeout_secs": 1, "retry": Retry(attempts=2), "max_concurrent": 2}
    registry.step("s", **options)(handler)
    [first] = registry.steps()
    registry.step("s", **options)(handler)
    assert registry.steps()[0] is first
    with pytest.raises(ValidationError, match="is taken by"):
        registry.step("s", timeout_secs=2)(handler)
