"""The engine: ticks in, commands out; no event loop anywhere."""

from __future__ import annotations

import types
from typing import Any

import pytest

from blazen_peer.engine import Commands, Ended, RoutingTable, RunState, StepDefinition, Work
from blazen_peer.errors import ValidationError, WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent


class Found(Event, event_type="demo::Found"):
    words: int


class Document(StartEvent):
    document: str


class Report(StopEvent):
    ratio: float


def never(_event: Event) -> None:
    raise AssertionError("the engine calls no step")


def define(step_id: str, *accepts: str, **classes: type[Event]) -> StepDefinition:
    by_name = {cls.event_type: cls for cls in classes.values()}
    return StepDefinition(step_id, accepts, None, never, True, False, types.MappingProxyType(by_name), ())


BEGIN = define("begin", START)
LEFT = define("left", "demo::Found", wanted=Found)
RIGHT = define("right", "demo::Found", "demo::Other")


def started(*more: StepDefinition, limit: int = 100) -> RunState:
    state = RunState(RoutingTable((BEGIN, *more)), max_in_flight=limit)
    assert state.begun(StartEvent(data=1)) == [Work(BEGIN, StartEvent(data=1))]
    return state


def failure(commands: Commands) -> WorkflowError:
    assert isinstance(commands, Ended)
    assert commands.event is None
    assert commands.error is not None
    return commands.error


def test_every_acceptor_gets_the_event() -> None:
    """All steps that accept an event are executed, in the order they were given."""
    state = started(LEFT, RIGHT)
    event = Found(words=1)
    assert state.returned(BEGIN, event) == [Work(LEFT, event), Work(RIGHT, event)]
    assert state.in_flight == 2


@pytest.mark.parametrize("several", [list, tuple])
def test_fan_out(several: type) -> None:
    """A list or tuple of events is so many events."""
    state = started(RIGHT)
    events = several([Found(words=1), Event.dynamic("demo::Other", 2)])
    assert state.returned(BEGIN, events) == [Work(RIGHT, events[0]), Work(RIGHT, events[1])]


@pytest.mark.parametrize("nothing", [None, [], ()], ids=repr)
def test_nothing_while_others_run(nothing: Any) -> None:
    """A step that returns nothing ends its branch, not the run."""
    state = started(RIGHT)
    assert state.returned(BEGIN, [Found(words=1), Found(words=2)])
    assert state.returned(RIGHT, nothing) == []
    assert state.in_flight == 1


def test_stop_ends_the_run() -> None:
    """A StopEvent ends the run, whatever stands beside it, and gives its payload's text."""
    state = started(RIGHT)
    ended = state.returned(BEGIN, [Found(words=1), StopEvent(result={"a": 1}), StopEvent(result=2)])
    assert ended == Ended(StopEvent(result={"a": 1}), '{"a":1}', None)
    assert state.ended == ended


def test_dynamic_stop_ends_the_run() -> None:
    """A dynamic blazen::StopEvent ends a run like a typed one."""
    ended = started().returned(BEGIN, Event.dynamic(STOP, None))
    assert isinstance(ended, Ended)
    assert ended.data_json == "null"


def test_after_the_end() -> None:
    """Whatever comes after the end commands nothing and changes nothing."""
    state = started(RIGHT)
    state.returned(BEGIN, [Found(words=1), Found(words=2), Found(words=3)])
    ended = state.returned(RIGHT, StopEvent())
    assert state.returned(RIGHT, Found(words=1)) == []
    assert state.raised(RIGHT, ValueError("late")) == []
    assert state.stopped(WorkflowError("late")) == []
    assert state.ended == ended


def test_sent() -> None:
    """An event that a step sends while it goes on is routed; the sender stays in flight."""
    state = started(LEFT, RIGHT)
    event = Found(words=1)
    assert state.sent("begin", event) == [Work(LEFT, event), Work(RIGHT, event)]
    assert state.in_flight == 3
    assert state.returned(BEGIN, None) == []
    assert state.in_flight == 2


def test_sent_stop() -> None:
    """A StopEvent that is sent ends the run; what is sent after the end counts for nothing, whatever it is."""
    state = started(LEFT)
    ended = state.sent("begin", StopEvent(result=1))
    assert isinstance(ended, Ended)
    for event in (Event.dynamic("demo::Nobody"), StopEvent(result=2), Found(words=1)):
        assert state.sent("begin", event) == []
        assert state.ended is ended
    assert state.in_flight == 1


def test_sent_and_not_accepted() -> None:
    """An event that is sent and that no step accepts fails the run, naming its sender."""
    error = failure(started().sent("begin", Event.dynamic("demo::Nobody")))
    assert (str(error), error.step_id) == ("no handler for event type: demo::Nobody", "begin")


def test_stopped_from_outside() -> None:
    """A deadline or an owner ends the run with its own error."""
    error = WorkflowError("workflow cancelled")
    assert failure(started().stopped(error)) is error


def test_nothing_left() -> None:
    """With nothing in flight and no StopEvent the run fails at once, and names the last step."""
    error = failure(started().returned(BEGIN, None))
    assert str(error) == "no event is left and no StopEvent came: the last step was 'begin'"
    assert error.step_id == "begin"


def test_nobody_accepts() -> None:
    """An event that nobody accepts fails the run and names its emitter."""
    error = failure(started().returned(BEGIN, Event.dynamic("demo::Stray")))
    assert str(error) == "no handler for event type: demo::Stray"
    assert error.step_id == "begin"


def test_nobody_starts() -> None:
    """A run whose steps cannot start fails, with nobody to name."""
    error = failure(RunState(RoutingTable((RIGHT,))).begun(StartEvent()))
    assert str(error) == f"no handler for event type: {START}"
    assert error.step_id is None


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED = [
    pytest.param(ValueError("boom"), "boom", id="message-alone"),
    pytest.param(ValueError(), "ValueError", id="no-message"),
    pytest.param(Speechless(), "Speechless", id="broken-str"),
    pytest.param(ValueError("a\ud800b"), "a?b", id="surrogate"),
]


@pytest.mark.parametrize(("error", "message"), RAISED)
def test_step_raises(error: Exception, message: str) -> None:
    """A step that raises fails the run: its id, the message, and the cause kept."""
    failed = failure(started().raised(BEGIN, error))
    assert str(failed) == f"step 'begin' failed: {message}"
    assert failed.step_id == "begin"
    assert failed.__cause__ is error


def test_step_raises_pydantic_error() -> None:
    """An event that a step could not make is told in one line, without the value."""
    try:
        Found(words="canary")  # type: ignore[arg-type]
    except ValueError as error:
        failed = failure(started().raised(BEGIN, error))
    assert str(failed).startswith("step 'begin' failed: words: Input should be a valid integer")
    assert "canary" not in str(failed)
    assert "\n" not in str(failed)


RETURNED = [
    pytest.param(5, "step 'begin' returned int, not an event, a list of events or None", id="number"),
    pytest.param("x", "step 'begin' returned str, not an event, a list of events or None", id="text"),
    pytest.param(Found, "step 'begin' returned ModelMetaclass, not an event, a list of events or None", id="class"),
    pytest.param([None], "step 'begin' returned a list that holds NoneType, not only events", id="list-of-none"),
    pytest.param({}, "step 'begin' returned dict, not an event, a list of events or None", id="dict"),
]


@pytest.mark.parametrize(("output", "message"), RETURNED)
def test_step_returns_something_else(output: object, message: str) -> None:
    """What is neither event, list of events nor None fails the run, naming the step."""
    error = failure(started().returned(BEGIN, output))
    assert (str(error), error.step_id) == (message, "begin")


def test_input_does_not_fit() -> None:
    """An input that the typed StartEvent refuses fails the run, naming the step and field but not the value."""
    typed = define("typed", START, wanted=Document)
    error = failure(RunState(RoutingTable((typed,))).begun(StartEvent(data={"document": 5, "other": "canary"})))
    assert str(error) == "step 'typed' cannot take this input: document: Input should be a valid string"
    assert error.step_id == "typed"


def test_converted() -> None:
    """A dynamic event reaches a step as the class that it wants; a step that wants none gets it as it is."""
    state = started(LEFT, RIGHT)
    dynamic = Event.dynamic("demo::Found", {"words": 3})
    assert state.returned(BEGIN, dynamic) == [Work(LEFT, Found(words=3)), Work(RIGHT, dynamic)]


def test_dynamic_event_does_not_fit() -> None:
    """A dynamic event that the class refuses fails the run at the step that wanted it."""
    error = failure(started(LEFT).returned(BEGIN, Event.dynamic("demo::Found", {})))
    assert (str(error), error.step_id) == ("step 'left' cannot take demo::Found: words: Field required", "left")


NOT_JSON = [
    pytest.param(StopEvent(result=float("nan")), id="nan"),
    pytest.param(StopEvent(result="\ud800"), id="surrogate"),
    pytest.param(StopEvent(result=2**64), id="too-large"),
    pytest.param(StopEvent(result={1, 2}), id="set"),
    pytest.param(Report(ratio=float("inf")), id="typed-infinity"),
]


@pytest.mark.parametrize("event", NOT_JSON)
def test_result_that_is_not_json(event: StopEvent) -> None:
    """A result that no peer could read fails the run here, naming the step."""
    error = failure(started().returned(BEGIN, event))
    assert str(error).startswith("step 'begin' returned a result that is not strict JSON: ")
    assert error.step_id == "begin"


def test_in_flight_is_bounded() -> None:
    """A step that multiplies its events ends as an error before it takes all memory."""
    state = started(RIGHT, limit=4)
    assert state.returned(BEGIN, [Found(words=n) for n in range(4)])
    error = failure(state.returned(RIGHT, [Found(words=n) for n in range(2)]))
    assert (str(error), error.step_id) == ("more than 4 steps in flight at once", "right")


REFUSED = [
    pytest.param((), "at least one step", id="no-steps"),
    pytest.param((BEGIN, BEGIN), "given twice", id="twice"),
]


@pytest.mark.parametrize(("steps", "why"), REFUSED)
def test_table_refused(steps: tuple[StepDefinition, ...], why: str) -> None:
    """A workflow has steps, each with its own id."""
    with pytest.raises(ValidationError, match=why):
        RoutingTable(steps)


DEFINITIONS = [
    pytest.param("", (START,), id="empty-id"),
    pytest.param("a\nb", (START,), id="newline"),
    pytest.param("a", (), id="accepts-nothing"),
    pytest.param("a", (STOP,), id="accepts-the-end"),
]


@pytest.mark.parametrize(("step_id", "accepts"), DEFINITIONS)
def test_definition_refused(step_id: str, accepts: tuple[str, ...]) -> None:
    """A step has an id in printable text, and accepts something that can reach it."""
    with pytest.raises(ValidationError):
        define(step_id, *accepts)
