"""The state of one run, and what each tick makes of it.

Several steps that accept an event all get it, at once. A step returns one event, a list or tuple of events, or None. The first
``StopEvent`` ends the run. A run with nothing in flight and no ``StopEvent`` has failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import pydantic

from blazen_peer.engine.routing import RoutingTable
from blazen_peer.engine.steps import StepDefinition
from blazen_peer.errors import WorkflowError
from blazen_peer.events import START, Event, StopEvent, convert, describe_invalid

__all__ = ["MAX_IN_FLIGHT", "Commands", "Ended", "RunState", "Work", "message_of"]

MAX_IN_FLIGHT = 10_000  # step executions of one run at one time: a step that doubles its events must not take all memory


class Work(NamedTuple):
    """Command: execute *step* with *event*, which is of the class that the step wants."""

    step: StepDefinition
    event: Event


class Ended(NamedTuple):
    """Command: the run is over; cancel what is in flight. Exactly one of ``error`` and ``event`` is set.

    Attributes:
        event: What ended it, with its payload's compact JSON text in ``data_json``.
        error: Why it failed.
    """

    event: StopEvent | None
    data_json: str
    error: WorkflowError | None


Commands: TypeAlias = "list[Work] | Ended"


class RunState:
    """One run: how many executions are in flight, and whether it has ended. Owned by one run, never shared.

    Each method is one tick. After the end every tick gives no commands.

    Attributes:
        in_flight: Executions commanded and neither returned nor raised.
        ended: The end, once there.
    """

    __slots__ = ("_limit", "_routes", "ended", "in_flight")

    def __init__(self, table: RoutingTable, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._routes = table.routes
        self._limit = max_in_flight
        self.in_flight = 0
        self.ended: Ended | None = None

    def begun(self, event: Event) -> Commands:
        """The run begins with *event*, a ``blazen::StartEvent``."""
        return self._deliver((event,), None)

    def returned(self, step: StepDefinition, output: object) -> Commands:
        """*step* returned *output*."""
        self.in_flight -= 1
        if self.ended is not None:
            return []
        if isinstance(output, Event):
            return self._deliver((output,), step.id)
        if output is None:
            return self._deliver((), step.id)
        if not isinstance(output, list | tuple):
            return self._failed(f"step {step.id!r} returned {_named(output)}, not an event, a list of events or None", step.id)
        for event in output:
            if not isinstance(event, Event):
                return self._failed(f"step {step.id!r} returned a list that holds {_named(event)}, not only events", step.id)
        return self._deliver(output, step.id)

    def sent(self, step_id: str, event: Event) -> Commands:
        """The step *step_id*, which goes on, sends *event*."""
        if self.ended is not None:
            return []
        return self._deliver((event,), step_id)

    def raised(self, step: StepDefinition, error: BaseException) -> Commands:
        """*step* raised *error*."""
        self.in_flight -= 1
        if self.ended is not None:
            return []
        return self._failed(f"step {step.id!r} failed: {message_of(error)}", step.id, error)

    def stopped(self, error: WorkflowError) -> Commands:
        """Somebody outside ended the run: its deadline, its owner."""
        if self.ended is not None:
            return []
        self.ended = Ended(None, "", error)
        return self.ended

    def _deliver(self, events: Sequence[Event], emitter: str | None) -> Commands:
        for event in events:
            if isinstance(event, StopEvent):
                return self._finished(event, emitter)
        work: list[Work] = []
        for event in events:
            routes = self._routes.get(event.event_type)
            if routes is None:
                return self._failed(f"no handler for event type: {event.event_type}", emitter)
            for step, wanted in routes:
                if wanted is None or type(event) is wanted:
                    work.append(Work(step, event))
                    continue
                try:
                    work.append(Work(step, convert(event, wanted)))
                except Exception as error:  # a validator of the user's may raise anything
                    what = "this input" if event.event_type == START else event.event_type
                    return self._failed(f"step {step.id!r} cannot take {what}: {message_of(error)}", step.id, error)
            if self.in_flight + len(work) > self._limit:
                return self._failed(f"more than {self._limit} steps in flight at once", emitter)
        self.in_flight += len(work)
        if self.in_flight == 0:
            return self._failed(f"no event is left and no StopEvent came: the last step was {emitter!r}", emitter)
        return work

    def _finished(self, event: StopEvent, emitter: str | None) -> Ended:
        try:
            self.ended = Ended(event, event.data_json, None)
        except Exception as error:  # a serializer of the user's may raise anything
            return self._failed(
                f"step {emitter!r} returned a result that is not strict JSON: {message_of(error)}", emitter, error
            )
        return self.ended

    def _failed(self, message: str, step_id: str | None, cause: BaseException | None = None) -> Ended:
        error = WorkflowError(message, step_id)
        error.__cause__ = cause
        self.ended = Ended(None, "", error)
        return self.ended


def _named(value: object) -> str:
    return type(value).__name__


def message_of(error: BaseException) -> str:
    """Return the message alone, as text that UTF-8 can carry; the type's name where there is none."""
    if isinstance(error, pydantic.ValidationError):
        return describe_invalid(error)
    try:
        text = str(error)
    except Exception:  # its own __str__ is broken: the run must end all the same
        text = ""
    return text.encode(errors="replace").decode() or type(error).__name__
