"""Steps made of others: local workflows as steps, and several steps at once."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from blazen_peer.engine import Retry
from blazen_peer.errors import UnknownStepError, ValidationError, WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.identity import Caller
from blazen_peer.runtime import Context, Registry, Workflow, WorkflowBuilder, current_run, local_step, parallel
from blazen_peer.runtime import run as run_module
from blazen_peer.runtime.context import RunInfo, enter_run

RunVirtual = Callable[[Any], tuple[Any, float]]


class Document(StartEvent):
    text: str


class Analyzed(Event, event_type="demo::Analyzed"):
    words: int


class Both(Event, event_type="demo::Both"):
    left: int
    right: int


registry = Registry()


@registry.step("count")
async def count(event: Document) -> StopEvent:
    return StopEvent(result={"words": len(event.text.split())})


counting = Workflow("counting", [count], registry=registry)


def after(secs: float, result: Any) -> Any:
    """Return a step that succeeds after so many seconds, or fails by *result* where that is an error."""

    async def handler(event: Event) -> StopEvent:
        await asyncio.sleep(secs)
        if isinstance(result, BaseException):
            raise result
        return StopEvent(result=result)

    builder = WorkflowBuilder("w").step(f"after-{secs:g}", [START], [STOP], handler)
    return builder.build().steps[0]


@pytest.fixture
async def reported() -> list[Any]:
    """What the event loop reports: an exception that nobody asked for, say."""
    reports: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    return reports


def alone(step: Any) -> Workflow:
    return Workflow("parent", [step])


async def test_local_step() -> None:
    """A workflow is a step of another: the event's data is its input, its result the step's."""
    assert (await alone(local_step(counting)).run({"text": "a b"})).result == {"words": 2}
    assert (await alone(local_step(counting)).run(Document(text="a b c"))).result == {"words": 3}
    assert local_step(counting).id == "counting"


async def test_local_step_between_others() -> None:
    """It takes and makes the events it is told to, validated where they are classes."""

    async def begin(event: StartEvent) -> Event:
        return Event.dynamic("demo::Text", {"text": event.data})

    async def end(event: Analyzed) -> StopEvent:
        return StopEvent(result=event.words)

    builder = WorkflowBuilder("w").step("begin", None, ["demo::Text"], begin)
    builder.add(local_step(counting, step_id="middle", accepts=["demo::Text"], emits=Analyzed)).step("end", None, None, end)
    assert (await builder.build().run("a b c d")).result == 4


async def test_result_that_does_not_fit() -> None:
    """A result that the declared event refuses fails the step, naming it."""
    with pytest.raises(WorkflowError, match=r"step 'c' failed: left: Field required; right: Field required"):
        await Workflow.from_step_ids("w", ["c"], _registered("c", local_step(counting, step_id="c", emits=Both))).run(
            {"text": ""}
        )


def _registered(step_id: str, step: Any) -> Registry:
    registry = Registry()
    registry.add(step)
    return registry


async def test_child_failure() -> None:
    """A child's failure is its step's, with both ids told."""
    with pytest.raises(
        WorkflowError, match="step 'counting' failed: step 'count' cannot take this input: text: Field required"
    ):
        await alone(local_step(counting)).run({})


async def test_child_has_its_parents_facts() -> None:
    """A child run has its parent's caller, node and invocation id, and an id and a state of its own."""
    seen: list[Any] = []

    async def look(event: StartEvent, ctx: Context) -> StopEvent:
        seen.append(current_run())
        ctx.export("child", 1)
        return StopEvent()

    child = WorkflowBuilder("child").step("look", None, None, look).build()
    parent = alone(local_step(child, timeout_secs=500))
    run = parent.start(None, caller=Caller.claimed("n"), node_id="b", invocation_id="i", timeout_secs=60)
    assert (await run.wait()).state == {}
    [info] = seen
    assert (info.caller, info.node_id, info.invocation_id) == (Caller.claimed("n"), "b", "i")
    assert info.run_id != run.info.run_id
    assert 0 < info.time_left_secs <= 60


def test_child_ends_with_its_parents_time(run_virtual: RunVirtual) -> None:
    """A child has at most its parent's time; when both end, the parent says so."""

    async def main() -> None:
        child = WorkflowBuilder("child").add(after(60, None)).build()
        with pytest.raises(WorkflowError, match=r"^workflow timed out after 2s$"):
            await alone(local_step(child, timeout_secs=50)).run(None, timeout_secs=2)

    assert run_virtual(main())[1] == pytest.approx(2)


def test_child_has_less_time(run_virtual: RunVirtual) -> None:
    """A child that is given less than its parent has ends by its own timeout; one that is given nothing has all of it."""
    child = WorkflowBuilder("child").add(after(400, "done")).build()

    async def main() -> None:
        with pytest.raises(WorkflowError, match=r"^step 'child' failed: workflow timed out after 3s$"):
            await alone(local_step(child, timeout_secs=3)).run(None, timeout_secs=600)
        assert (await alone(local_step(child)).run(None, timeout_secs=600)).result == "done"

    run_virtual(main())


async def test_child_on_another_clock() -> None:
    """A parent's time is read on its own clock, which the child's event loop need not share."""
    enter_run(RunInfo(deadline=1005.0, clock=lambda: 1000.0))
    lefts: list[float] = []

    async def look(event: StartEvent, ctx: Context) -> StopEvent:
        lefts.append(ctx.time_left_secs or 0)
        return StopEvent()

    await WorkflowBuilder("child").step("look", None, None, look).build().run(None)
    assert 4 < lefts[0] <= 5.001


def test_child_outlives_no_parent_in_a_thread() -> None:
    """A child that a plain step runs in an event loop of its own has at most its parent's time as well."""
    child = WorkflowBuilder("child").add(after(60, None)).build()
    ended: list[str] = []

    def step(event: StartEvent) -> StopEvent:
        try:
            asyncio.run(child.run(None))
        except WorkflowError as error:
            ended.append(str(error))
        return StopEvent()

    async def main() -> None:
        with pytest.raises(WorkflowError, match=r"workflow timed out after 0\.1s"):
            await WorkflowBuilder("w").step("s", None, None, step).build().run(None, timeout_secs=0.1)
        async with asyncio.timeout(10):
            while not ended:  # noqa: ASYNC110 - what is polled for has no event
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert ended[0].startswith("workflow timed out after 0.")


async def test_child_is_cancelled_with_its_parent() -> None:
    """When the parent ends, its child's steps are cancelled."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(event: StartEvent) -> StopEvent:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return StopEvent()

    child = WorkflowBuilder("child").step("slow", None, None, slow).build()
    run = alone(parallel([local_step(child), after(60, None)])).start(None)
    async with asyncio.timeout(10):
        await waiting.wait()
        run.cancel()
        await cancelled.wait()


def test_all(run_virtual: RunVirtual) -> None:
    """All go on at once; what they made is a list in their order."""
    result, secs = run_virtual(alone(parallel([after(3, "a"), after(1, {"b": 1}), after(2, None)])).run(None))
    assert result.result == ["a", {"b": 1}, None]
    assert secs == pytest.approx(3)


async def test_all_by_name() -> None:
    """Steps given by name make an object, which a class may take."""

    async def end(event: Both) -> StopEvent:
        return StopEvent(result=[event.left, event.right])

    both = parallel({"left": after(0, 1), "right": after(0.001, 2)}, emits=Both)
    workflow = WorkflowBuilder("w").add(both).step("end", None, None, end).build()
    assert (await workflow.run(None)).result == [1, 2]


def test_all_fails_at_once(run_virtual: RunVirtual) -> None:
    """The first failure ends the others and the step, and says whose it was."""

    async def main() -> None:
        with pytest.raises(WorkflowError) as caught:
            await alone(parallel([after(60, "a"), after(1, ValueError("boom"))])).run(None)
        assert str(caught.value) == "step 'all(after-60, after-1)' failed: 'after-1' failed: boom"

    assert run_virtual(main())[1] == pytest.approx(1)


async def test_failures_that_decide_nothing(reported: list[Any]) -> None:
    """Two that fail in the same moment: one is told, and nothing is reported of the other when it goes."""

    async def fails(event: StartEvent) -> StopEvent:
        raise ValueError("boom")

    steps = WorkflowBuilder("w").step("a", None, None, fails).step("b", None, None, fails).build().steps
    with pytest.raises(WorkflowError, match="'a' failed: boom"):
        await alone(parallel(steps)).run(None)
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert reported == []


def test_first(run_virtual: RunVirtual) -> None:
    """The first success wins, failures before it count for nothing, and the others are ended."""
    cancelled: list[bool] = []

    async def slow(event: StartEvent) -> StopEvent:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return StopEvent()

    loser = WorkflowBuilder("w").step("slow", None, None, slow).build().steps[0]
    race = parallel([loser, after(1, ValueError("boom")), after(2, "won"), after(3, "late")], mode="first")
    result, secs = run_virtual(alone(race).run(None))
    assert (result.result, secs, cancelled) == ("won", pytest.approx(2), [True])


def test_first_of_none(run_virtual: RunVirtual) -> None:
    """Where none succeeds, the error has what each of them failed by."""

    async def main() -> None:
        race = parallel([after(2, ValueError("boom")), after(1, KeyError())], mode="first", step_id="race")
        with pytest.raises(WorkflowError) as caught:
            await alone(race).run(None)
        assert str(caught.value) == "step 'race' failed: none succeeded: 'after-2': boom; 'after-1': KeyError"

    run_virtual(main())


def test_branches_keep_their_own_rules(run_virtual: RunVirtual) -> None:
    """The timeout, the retries and the limit of each step hold inside as well, and functions and ids are looked up."""
    own, attempts = Registry(), []

    @own.step("flaky", retry=Retry(delay_secs=5, jitter=0))
    async def flaky(event: StartEvent, ctx: Context) -> StopEvent:
        attempts.append((ctx.step_id, ctx.attempt))
        if ctx.attempt < 2:
            raise ValueError("again")
        return StopEvent(result="flaky")

    @own.step("slow", timeout_secs=1)
    async def slow(event: StartEvent) -> StopEvent:
        await asyncio.sleep(60)
        return StopEvent()

    result, secs = run_virtual(alone(parallel([flaky, "slow"], mode="first", registry=own)).run(None))
    assert (result.result, secs) == ("flaky", pytest.approx(5))
    assert attempts == [("flaky", 1), ("flaky", 2)]


def test_parallel_in_parallel(run_virtual: RunVirtual) -> None:
    """They nest: the faster of two pairs."""
    pairs = [parallel([after(1, 1), after(4, 2)]), parallel([after(2, 3), after(3, 4)])]
    result, secs = run_virtual(alone(parallel(pairs, mode="first")).run(None))
    assert (result.result, secs) == ([3, 4], pytest.approx(3))


async def test_branches_share_the_runs_state() -> None:
    """The steps inside belong to the run: its state, its exports, and events they send."""

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.export("one", 1)
        return StopEvent(result=ctx.step_id)

    async def two(event: Document, ctx: Context) -> StopEvent:
        ctx.send_event(Analyzed(words=len(event.text)))
        await asyncio.Event().wait()
        return StopEvent()

    async def end(event: Analyzed, ctx: Context) -> StopEvent:
        return StopEvent(result=event.words)

    steps = WorkflowBuilder("w").step("one", None, None, one).step("two", None, None, two).build().steps
    with pytest.raises(ValidationError, match="unreachable"):
        WorkflowBuilder("w").add(parallel(steps)).step("end", None, None, end).build()
    workflow = WorkflowBuilder("w").add(parallel(steps, sends=[Analyzed])).step("end", None, None, end).build()
    async with asyncio.timeout(10):
        result = await workflow.run({"text": "abc"})
    assert (result.result, result.state) == (3, {"one": 1})


async def test_branch_that_returns_no_event() -> None:
    """A step inside returns one event; nothing, or several, fail it."""

    async def none(event: StartEvent) -> StopEvent | None:
        return None

    async def several(event: StartEvent) -> list[StopEvent]:
        return [StopEvent()]

    steps = WorkflowBuilder("w").step("none", None, None, none).step("several", None, None, several).build().steps
    with pytest.raises(WorkflowError) as caught:
        await alone(parallel(steps, mode="first", step_id="p")).run(None)
    told = "none succeeded: 'none': it returned NoneType, not one event; 'several': it returned list, not one event"
    assert str(caught.value) == f"step 'p' failed: {told}"


async def test_branch_calls_exit() -> None:
    """A step inside that calls sys.exit fails; it does not end the peer."""

    async def leave(event: StartEvent) -> StopEvent:
        sys.exit("bye")

    [step] = WorkflowBuilder("w").step("leave", None, None, leave).build().steps
    with pytest.raises(WorkflowError, match="'leave' failed: bye"):
        await alone(parallel([step, after(60, None)])).run(None)


async def test_deaf_loser(reported: list[Any]) -> None:
    """A loser that swallows its cancellation delays nobody; the run knows of it, after its end as well, until it is over."""
    release = asyncio.Event()

    async def deaf(event: StartEvent) -> StopEvent:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        raise ValueError("late")

    [step] = WorkflowBuilder("w").step("deaf", None, None, deaf).build().steps
    run = alone(parallel([step, after(0, "won")], mode="first")).start(None)
    async with asyncio.timeout(10):
        assert (await run.wait()).result == "won"
        assert not await run.wait_stopped(0.01)
        assert run.running_step_ids == ("deaf",)
        release.set()
        assert await run.wait_stopped(5)
    assert run not in run_module._ALIVE
    gc.collect()
    assert reported == []


REFUSED: list[Any] = [
    pytest.param([], {}, "at least one step", id="none"),
    pytest.param([after(0, 1)], {"mode": "some"}, "mode='some'", id="mode"),
    pytest.param([len], {}, "not registered", id="no-step"),
    pytest.param(
        [after(0, 1), local_step(counting, accepts=[Analyzed])], {}, "take no event in common", id="nothing-in-common"
    ),
]


@pytest.mark.parametrize(("steps", "options", "why"), REFUSED)
def test_refused(steps: Any, options: Any, why: str) -> None:
    """What can never run is refused when it is made."""
    with pytest.raises(ValidationError, match=why):
        parallel(steps, **options)


def test_unknown_step() -> None:
    """An id that is not registered is named."""
    with pytest.raises(UnknownStepError):
        parallel(["nobody"], registry=registry)
