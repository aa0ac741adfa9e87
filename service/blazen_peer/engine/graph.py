"""What is wrong with a workflow that can be seen before it runs, from the events that its steps declare.

A problem is certain where it rests on event classes alone: then no run could go well there. Where it rests on a name that no
class declares, a step may know more than it says, and the problem is only likely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from blazen_peer.engine.steps import StepDefinition
from blazen_peer.events import START, STOP, Event

__all__ = ["GraphProblem", "WorkflowWarning", "check_graph"]

_WELL_KNOWN = frozenset({START, STOP})


class WorkflowWarning(UserWarning):
    """A workflow looks wrong, as far as the names of dynamic events can tell."""


class GraphProblem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        message: One line for whoever builds the workflow: the step, the event, what to do.
        certain: It rests on classes alone: refuse the workflow. Otherwise warn.
    """

    message: str
    certain: bool


def check_graph(steps: Sequence[StepDefinition]) -> list[GraphProblem]:
    """Return the problems of a workflow of *steps*, of which at least one accepts ``blazen::StartEvent``.

    Steps that no event can reach, events that nobody accepts, events that nobody emits, no way to a ``StopEvent``. A step whose
    ``emits`` is not declared may emit anything, so it ends what can be known of the steps behind it. What a step sends by its
    context counts where its ``emits`` names it.
    """
    reached = _reached(steps)
    reached_ids = {step.id for step in reached}
    anything = any(step.emits is None for step in reached)
    emitted = {name for step in steps for name in step.emits or ()}
    accepted = {name for step in steps for name in step.accepts}
    problems: list[GraphProblem] = []
    for step in steps:
        problems += _unemitted(step, reached=step.id in reached_ids, anything=anything, emitted=emitted)
        for name in step.emits or ():
            if name != STOP and name not in accepted:
                typed = _is_typed(name, step.emitted_classes)
                problems.append(
                    GraphProblem(f"step {step.id!r} emits {name}, which no step accepts: add one, or do not emit it", typed)
                )
    if not anything and not any(STOP in (step.emits or ()) for step in reached):
        typed = all(_is_typed(name, step.emitted_classes) for step in reached for name in step.emits or ())
        problems.append(
            GraphProblem(f"no step that a run can reach emits {STOP}, so no run could finish: let one return StopEvent", typed)
        )
    return problems


def _reached(steps: Sequence[StepDefinition]) -> list[StepDefinition]:
    """Return the steps that some event of a run can come to."""
    takers: dict[str, list[StepDefinition]] = {}
    for step in steps:
        for name in step.accepts:
            takers.setdefault(name, []).append(step)
    reached: dict[str, StepDefinition] = {}
    names = [START]
    while names:
        for step in takers.pop(names.pop(), ()):
            if step.id in reached:
                continue
            if step.emits is None:
                return list(steps)
            reached[step.id] = step
            names += step.emits
    return list(reached.values())


def _unemitted(step: StepDefinition, *, reached: bool, anything: bool, emitted: set[str]) -> Iterable[GraphProblem]:
    if anything:
        return
    classes: Mapping[str, type[Event]] = step.accepted_classes
    if not reached:
        names = " or ".join(step.accepts)
        yield GraphProblem(
            f"step {step.id!r} is unreachable: no step that a run can reach emits {names}; remove it, or emit that event",
            all(name in classes or name in _WELL_KNOWN for name in step.accepts),
        )
        return
    for name in step.accepts:
        if name != START and name not in emitted:
            yield GraphProblem(
                f"step {step.id!r} accepts {name}, which no step emits: do not accept it, or declare it by emits=",
                name in classes,
            )


def _is_typed(name: str, classes: Iterable[type[Event]]) -> bool:
    return name in _WELL_KNOWN or any(cls.event_type == name for cls in classes)
