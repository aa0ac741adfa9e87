"""The graph check: what can be seen of a workflow before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pytest

from blazen_peer.engine import StepDefinition
from blazen_peer.engine.graph import check_graph
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent


class A(Event, event_type="demo::A"):
    pass


class B(Event, event_type="demo::B"):
    pass


def step(step_id: str, accepts: Sequence[str | type[Event]], emits: Sequence[str | type[Event]] | None) -> StepDefinition:
    """Return a step that takes and returns these, by class or by a bare name; None: not declared."""

    def names(items: Sequence[str | type[Event]]) -> tuple[str, ...]:
        return tuple(item if isinstance(item, str) else item.event_type for item in items)

    return StepDefinition(
        id=step_id,
        accepts=names(accepts),
        emits=None if emits is None else names(emits),
        handler=lambda event: event,
        is_async=False,
        wants_context=False,
        accepted_classes=MappingProxyType({item.event_type: item for item in accepts if not isinstance(item, str)}),
        emitted_classes=tuple(item for item in emits or () if not isinstance(item, str)),
    )


SOUND: list[Any] = [
    pytest.param([step("s", [StartEvent], [StopEvent])], id="one-step"),
    pytest.param([step("s", [START], [STOP])], id="by-name"),
    pytest.param([step("a", [StartEvent], [A]), step("b", [A], [StopEvent])], id="chain"),
    pytest.param([step("b", [A], [StopEvent]), step("a", [StartEvent], [A])], id="any-order"),
    pytest.param([step("a", [START], ["demo::A"]), step("b", [A], [StopEvent])], id="name-to-class"),
    pytest.param([step("a", [StartEvent], [A]), step("b", [A], [A, StopEvent])], id="loop-with-a-way-out"),
    pytest.param([step("a", [StartEvent], [A, StopEvent]), step("b", [A], [])], id="a-step-that-ends-nothing"),
    pytest.param([step("a", [StartEvent], [A, B]), step("b", [A, B], [StopEvent])], id="two-events-one-step"),
    pytest.param([step("a", [StartEvent], [StartEvent, StopEvent])], id="starts-again"),
    pytest.param([step("a", [StartEvent], None), step("b", [A], [StopEvent])], id="undeclared-may-emit-it"),
    pytest.param([step("a", [StartEvent], None), step("b", [A], [B]), step("c", [B], [])], id="undeclared-may-stop"),
]


@pytest.mark.parametrize("steps", SOUND)
def test_sound(steps: list[StepDefinition]) -> None:
    """Nothing is said of a workflow whose declared events lead from start to stop."""
    assert check_graph(steps) == []


END = step("end", [StartEvent], [StopEvent])
WRONG: list[Any] = [
    pytest.param(
        [step("a", [StartEvent], [A, StopEvent])],
        [("step 'a' emits demo::A, which no step accepts", True)],
        id="nobody-accepts",
    ),
    pytest.param(
        [step("a", [START], ["demo::A", STOP])],
        [("step 'a' emits demo::A, which no step accepts", False)],
        id="nobody-accepts-dynamic",
    ),
    pytest.param(
        [step("a", [StartEvent], [A]), step("b", [A, B], [StopEvent])],
        [("step 'b' accepts demo::B, which no step emits", True)],
        id="nobody-emits",
    ),
    pytest.param(
        [step("a", [StartEvent], [A]), step("b", [A, "demo::B"], [StopEvent])],
        [("step 'b' accepts demo::B, which no step emits", False)],
        id="nobody-emits-dynamic",
    ),
    pytest.param(
        [END, step("b", [A, B], [])],
        [("step 'b' is unreachable: no step that a run can reach emits demo::A or demo::B;", True)],
        id="unreachable",
    ),
    pytest.param(
        [END, step("b", [A, "demo::B"], [])], [("step 'b' is unreachable: no step that a run", False)], id="unreachable-dynamic"
    ),
    pytest.param(
        [END, step("b", [A], [B]), step("c", [B], [A])],
        [("step 'b' is unreachable", True), ("step 'c' is unreachable", True)],
        id="unreachable-island",
    ),
    pytest.param(
        [END, step("b", [A], None), step("c", [B], [StopEvent])],
        [("step 'b' is unreachable", True), ("step 'c' is unreachable", True)],
        id="undeclared-but-unreachable",
    ),
    pytest.param([step("a", [StartEvent], [])], [("no step that a run can reach emits blazen::StopEvent", True)], id="no-stop"),
    pytest.param(
        [step("a", [StartEvent], [A]), step("b", [A], [A])],
        [("no step that a run can reach emits blazen::StopEvent", True)],
        id="loop-without-a-way-out",
    ),
    pytest.param(
        [step("a", [START], ["demo::A"]), step("b", [A], [])],
        [("no step that a run can reach emits blazen::StopEvent", False)],
        id="no-stop-dynamic",
    ),
    pytest.param(
        [step("a", [StartEvent], [A]), step("b", [A], []), step("c", [B], [StopEvent])],
        [("step 'c' is unreachable", True), ("no step that a run can reach emits blazen::StopEvent", True)],
        id="stop-out-of-reach",
    ),
]


@pytest.mark.parametrize(("steps", "expected"), WRONG)
def test_wrong(steps: list[StepDefinition], expected: list[tuple[str, bool]]) -> None:
    """Each problem names the step and the event; it is certain where classes alone say so, and only likely otherwise."""
    problems = check_graph(steps)
    assert [problem.certain for problem in problems] == [certain for _, certain in expected]
    for problem, (text, _) in zip(problems, expected, strict=True):
        assert problem.message.startswith(text)


def test_long_chain() -> None:
    """A chain of a thousand steps, given last first, is checked as well."""
    chain = [step(f"s{n}", [f"demo::E{n}"], [f"demo::E{n + 1}"]) for n in range(1, 1000)]
    steps = [step("s0", [START], ["demo::E1"]), *chain, step("end", ["demo::E1000"], [STOP])]
    assert check_graph(steps[::-1]) == []
