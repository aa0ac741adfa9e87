"""From an event's wire name to the steps that take it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blazen_peer.engine.steps import StepDefinition
from blazen_peer.errors import ValidationError
from blazen_peer.events import START, Event

__all__ = ["Route", "RoutingTable"]


class Route(NamedTuple):
    """One step that takes an event, and the class it wants it in; None: as it is."""

    step: StepDefinition
    wanted: type[Event] | None


class RoutingTable:
    """The steps of one workflow by the events they accept, in the order they were given. Read-only once made.

    Attributes:
        steps: All the steps.
        routes: For each accepted wire name the routes of its steps.

    Raises:
        ValidationError: No steps, or two steps of one id.
    """

    __slots__ = ("routes", "steps")

    def __init__(self, steps: Iterable[StepDefinition]) -> None:
        self.steps = tuple(steps)
        self.routes: dict[str, tuple[Route, ...]] = {}
        if not self.steps:
            raise ValidationError("a workflow needs at least one step")
        seen: set[str] = set()
        for step in self.steps:
            if step.id in seen:
                raise ValidationError(f"step id {step.id!r} is given twice: each step of a workflow has its own")
            seen.add(step.id)
            for event_type in step.accepts:
                wanted = step.accepted_classes.get(event_type)
                self.routes[event_type] = (*self.routes.get(event_type, ()), Route(step, wanted))

    @property
    def can_start(self) -> bool:
        """Whether some step accepts ``blazen::StartEvent``."""
        return START in self.routes
