"""What a step is: an id, the events it accepts and emits, and the code behind it (which the engine never calls)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blazen_peer.engine.retry import Retry
from blazen_peer.errors import ValidationError
from blazen_peer.events import STOP, Event

__all__ = ["StepDefinition", "check_step_id"]


def check_step_id(step_id: str) -> str:
    """Return *step_id* when it can be one.

    Raises:
        ValidationError: It is empty, or not printable text.
    """
    if not isinstance(step_id, str) or not step_id or not step_id.isprintable():
        raise ValidationError(f"step id {step_id!r} is not valid: use printable text such as 'my_app::analyze'")
    return step_id


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step, as registered or built. Equal when everything in it is.

    Attributes:
        id: Its name in this process and on the wire, such as ``my_app::analyze``.
        accepts: Wire names of the events it takes; at least one.
        emits: Wire names of what it returns, sorted as declared; None where that was not declared (any event may come).
        handler: What to call with the event, and with the context as well when ``wants_context``.
        is_async: Calling the handler gives an awaitable at once; otherwise it runs in a thread.
        wants_context: It takes a ``Context`` as its second argument.
        accepted_classes: The class that events of that accepted wire name are validated into; no entry: passed as they are.
        emitted_classes: The classes it declares to return, as far as they are known; for describing it.
        timeout_secs: How long one execution may take, in seconds; None: as long as the run.
        retry: When an execution that failed is tried again; None: never.
        max_concurrent: How many executions may go on at once in this process; None: any number.
        turns: Holds that limit, whatever runs they belong to. Never touched here.
        plain: Awaiting the handler is all there is to an execution: no thread, no timeout, no retry, no limit.
    """

    id: str
    accepts: tuple[str, ...]
    emits: tuple[str, ...] | None
    handler: Callable[..., Any]
    is_async: bool
    wants_context: bool
    accepted_classes: Mapping[str, type[Event]]
    emitted_classes: tuple[type[Event], ...]
    timeout_secs: float | None = None
    retry: Retry | None = None
    max_concurrent: int | None = None
    turns: Any = field(default=None, repr=False, compare=False)
    plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_step_id(self.id)
        if self.timeout_secs is not None and not (math.isfinite(self.timeout_secs) and self.timeout_secs > 0):
            raise ValidationError(f"step {self.id!r}: timeout_secs is {self.timeout_secs!r}: use more than 0 seconds, or None")
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise ValidationError(f"step {self.id!r}: retry is {type(self.retry).__name__}: use Retry(...), or None")
        if self.max_concurrent is not None and not (isinstance(self.max_concurrent, int) and self.max_concurrent > 0):
            raise ValidationError(f"step {self.id!r}: max_concurrent is {self.max_concurrent!r}: use 1 or more, or None")
        guarded = self.timeout_secs is not None or self.retry is not None or self.max_concurrent is not None
        object.__setattr__(self, "plain", self.is_async and not guarded)
        if not self.accepts:
            raise ValidationError(f"step {self.id!r} accepts no event: annotate its first parameter, or give accepts=")
        if STOP in self.accepts:
            raise ValidationError(f"step {self.id!r} accepts {STOP}, which ends the run and is handed to no step")

    @property
    def event_classes(self) -> tuple[type[Event], ...]:
        """The classes it is known to accept or emit, each once. Several may share a wire name: two typed ``StopEvent``, say."""
        return tuple(dict.fromkeys((*self.accepted_classes.values(), *self.emitted_classes)))
