"""Workflows as users build and run them: registered steps, built steps, inputs and results."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from blazen_peer.engine import StepDefinition
from blazen_peer.errors import UnknownStepError, ValidationError, WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.identity import ANONYMOUS
from blazen_peer.runtime import Context, Registry, Workflow, WorkflowBuilder, WorkflowResult


class Document(StartEvent):
    document: str


class Analyzed(Event, event_type="my_app::Analyzed"):
    words: int


class Report(StopEvent):
    words: int


registry = Registry()


@registry.step("my_app::analyze")
async def analyze(event: StartEvent, ctx: Context) -> Analyzed:
    assert ctx.caller == ANONYMOUS
    return Analyzed(words=len(event.data["document"].split()))


@registry.step("my_app::analyze-typed")
def analyze_typed(event: Document) -> Analyzed:
    return Analyzed(words=len(event.document.split()))


@registry.step("my_app::summarize")
async def summarize(event: Analyzed) -> StopEvent:
    return StopEvent(result={"words": event.words})


@registry.step("my_app::echo")
async def echo(event: StartEvent) -> StopEvent:
    return StopEvent(result=event.data)


INPUT = {"document": "one two three"}
WAYS = [
    pytest.param(["my_app::analyze", "my_app::summarize"], id="ids"),
    pytest.param([analyze, summarize], id="functions"),
    pytest.param(registry.resolve(["my_app::analyze", "my_app::summarize"]), id="definitions"),
    pytest.param([summarize, "my_app::analyze-typed"], id="typed-start-in-any-order"),
]


@pytest.mark.parametrize("steps", WAYS)
async def test_run(steps: list[Any]) -> None:
    """A workflow's steps are named by id, function or definition, and hand events to one another."""
    result = await Workflow("w", steps, registry=registry).run(INPUT)
    assert result.result == {"words": 3}
    assert result.event.event_type == STOP
    assert result.event.data_json == result.data_json == '{"words":3}'
    assert (result.total_input_tokens, result.total_output_tokens, result.total_cost_usd) == (0, 0, 0.0)


INPUTS = [None, 0, "", [], {}, False, [1, {"a": None}], "\U0001f600", 2**64 - 1]


@pytest.mark.parametrize("value", INPUTS, ids=repr)
async def test_any_json_value(value: Any) -> None:
    """Any JSON value goes in and comes out the same."""
    assert (await Workflow("w", [echo], registry=registry).run(value)).result == value


async def test_start_event_as_input() -> None:
    """A start event is taken as it is, typed or not."""
    workflow = Workflow("w", [analyze_typed, summarize], registry=registry)
    for event in (Document(document="a b"), StartEvent(data={"document": "a b"}), Event.dynamic(START, {"document": "a b"})):
        assert (await workflow.run(event)).result == {"words": 2}


async def test_other_event_as_input() -> None:
    """A run does not start with any other event."""
    with pytest.raises(ValidationError, match=r"starts with blazen::StartEvent, not with my_app::Analyzed"):
        await Workflow("w", [echo], registry=registry).run(Analyzed(words=1))


async def test_input_that_does_not_fit() -> None:
    """An input that the typed StartEvent refuses is the run's failure, with the step's id, field and reason."""
    with pytest.raises(WorkflowError) as caught:
        await Workflow("w", [analyze_typed, summarize], registry=registry).run({"text": "canary"})
    assert str(caught.value) == "step 'my_app::analyze-typed' cannot take this input: document: Field required"
    assert caught.value.step_id == "my_app::analyze-typed"


async def test_typed_result() -> None:
    """A typed StopEvent's fields are the result; the event stays what the step returned."""
    builder = WorkflowBuilder("w").step(name="s", accepts=[START], emits=[STOP], handler=lambda event: Report(words=7))
    result = await builder.build().run(None)
    assert (result.event, result.result) == (Report(words=7), {"words": 7})


async def test_local_and_remote_agree() -> None:
    """A result read from its JSON text equals the local one: a tuple is a list in both."""
    workflow = WorkflowBuilder("w").step("s", [START], [STOP], lambda event: StopEvent(result={"a": (1, 2)})).build()
    local = await workflow.run(None)
    remote = WorkflowResult.from_json(local.data_json)
    assert remote == local
    assert remote.result == local.result == {"a": [1, 2]}
    assert remote.event.data_json == local.event.data_json
    assert remote.event == StopEvent(result={"a": [1, 2]})


def test_result_from_bad_json() -> None:
    """A remote payload that is not strict JSON is refused."""
    with pytest.raises(ValidationError):
        WorkflowResult.from_json("NaN")


class Remote:
    """A handler as an object, as in the reference's other languages."""

    async def invoke(self, event: Event) -> Event:
        return Event.dynamic(STOP, {"got": event.data, "type": event.event_type})


class PlainWithContext:
    def invoke(self, event: Event, ctx: Context) -> list[Event]:
        return [Event.dynamic("demo::Next", ctx.step_id)]


async def test_builder() -> None:
    """Handlers are objects with invoke as well, async or plain, with or without a context; events may be dynamic throughout."""
    workflow = (
        WorkflowBuilder(name="distributed-example")
        .step(name="first", accepts=["blazen::StartEvent"], emits=["demo::Next"], handler=PlainWithContext())
        .step(name="remote", accepts=["demo::Next"], emits=["blazen::StopEvent"], handler=Remote())
        .build()
    )
    assert [step.id for step in workflow.steps] == ["first", "remote"]
    assert (await workflow.run({})).result == {"got": "first", "type": "demo::Next"}


REFUSED = [
    pytest.param([], "at least one step", id="no-steps"),
    pytest.param([echo, "my_app::echo"], "given twice", id="twice"),
    pytest.param([summarize], "no step that accepts blazen::StartEvent", id="cannot-start"),
    pytest.param([len], "not registered", id="no-step"),
]


@pytest.mark.parametrize(("steps", "why"), REFUSED)
def test_refused(steps: list[Any], why: str) -> None:
    """A workflow that could never run is refused when it is made."""
    with pytest.raises(ValidationError, match=why):
        Workflow("w", steps, registry=registry)


def test_unknown_step() -> None:
    """The first unknown id is named, however the workflow is made."""
    for make in (lambda ids: Workflow("w", ids, registry=registry), lambda ids: Workflow.from_step_ids("w", ids, registry)):
        with pytest.raises(UnknownStepError) as caught:
            make(["my_app::echo", "x", "y"])
        assert (str(caught.value), caught.value.step_id) == ("unknown step id `x`", "x")


@pytest.mark.parametrize(("ids", "why"), [([], "at least one"), (["my_app::echo"] * 2, "given twice")], ids=["none", "twice"])
def test_step_ids_refused(ids: list[str], why: str) -> None:
    """A caller's list of ids is not empty and names no step twice."""
    with pytest.raises(ValidationError, match=why):
        Workflow.from_step_ids("w", ids, registry)


async def test_step_ids_that_cannot_start() -> None:
    """Steps named by a caller that cannot start fail their run, not its assembly."""
    workflow = Workflow.from_step_ids("w", ["my_app::summarize"], registry)
    with pytest.raises(WorkflowError) as caught:
        await workflow.run(None)
    assert str(caught.value) == "no handler for event type: blazen::StartEvent"


@pytest.mark.parametrize("timeout_secs", [-1, -0.001, math.nan], ids=repr)
async def test_timeout_refused(timeout_secs: float) -> None:
    """A timeout is 0 or more."""
    with pytest.raises(ValidationError, match="timeout_secs"):
        await Workflow("w", [echo], registry=registry).run(None, timeout_secs=timeout_secs)


async def test_no_deadline() -> None:
    """An infinite timeout is none."""
    run = Workflow("w", [echo], registry=registry).start(None, timeout_secs=math.inf)
    assert run.info.deadline is None
    assert run.info.time_left_secs is None
    await run.wait()


async def test_runs_at_once() -> None:
    """One workflow runs any number of times at once, each run with its own events."""
    workflow = Workflow("w", [analyze, summarize], registry=registry)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*(workflow.run({"document": "w " * n}) for n in range(50)))
    assert [result.result["words"] for result in results] == list(range(50))


def test_definitions_are_listed() -> None:
    """A workflow tells its steps."""
    steps = Workflow("w", [analyze, summarize], registry=registry).steps
    assert all(isinstance(step, StepDefinition) for step in steps)
    assert [step.id for step in steps] == ["my_app::analyze", "my_app::summarize"]
