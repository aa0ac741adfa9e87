"""The steps and workflows of this process by name. A peer looks up here what a caller names, and runs nothing else.

There is one registry for the process; servers and tests may have one of their own. Safe to use from several threads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from blazen_peer.engine import Retry, StepDefinition
from blazen_peer.errors import UnknownStepError, ValidationError
from blazen_peer.runtime.definition import EventName, define_step

if TYPE_CHECKING:
    from blazen_peer.runtime.workflow import Workflow

__all__ = [
    "DEFAULT_REGISTRY",
    "Registry",
    "isolated_registry",
    "register_workflow",
    "registered_steps",
    "step",
    "unregister_step",
    "unregister_workflow",
]

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """Steps and workflows by name.

    Attributes:
        generation: Grows with every change, so that what was resolved from here can be kept until it does.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._lock = threading.Lock()
        self._steps: dict[str, StepDefinition] = {}
        self._workflows: dict[str, Workflow] = {}

    def step(
        self,
        step_id: str,
        *,
        accepts: Iterable[EventName] | None = None,
        emits: Iterable[EventName] | None = None,
        timeout_secs: float | None = None,
        retry: Retry | None = None,
        max_concurrent: int | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator that registers a function as the step *step_id* and returns the function itself.

        Args:
            step_id: The step's name, here and on the wire, such as ``my_app::analyze``.
            accepts: Wire names or classes of the events it takes; None: from the annotation of its first parameter.
            emits: Likewise for what it returns or sends; None: from its return annotation.
            timeout_secs: How long one execution may take, in seconds; None: as long as the run.
            retry: When an execution that failed is tried again; None: never.
            max_concurrent: How many executions may go on at once in this process, whatever runs they belong to; None: any
                number.

        Raises:
            ValidationError: The id is another function's, or the signature is not a step's.
        """
        # Annotations may name classes that are local to the function around the step: the caller's names resolve them.
        localns = sys._getframe(1).f_locals
        define = partial(
            define_step,
            step_id,
            accepts=accepts,
            emits=emits,
            timeout_secs=timeout_secs,
            retry=retry,
            max_concurrent=max_concurrent,
            localns=localns,
        )

        def register(function: F) -> F:
            self.add(define(function))
            return function

        return register

    def add(self, definition: StepDefinition) -> None:
        """Register *definition*; the same one again changes nothing.

        Raises:
            ValidationError: Its id is taken by another one.
        """
        with self._lock:
            there = self._steps.get(definition.id)
            if there is None:
                self._steps[definition.id] = definition
                self.generation += 1
            elif there != definition:
                raise ValidationError(
                    f"step id {definition.id!r} is taken by {_place(there.handler)}: choose another, or unregister that one"
                )

    def unregister_step(self, step_id: str) -> bool:
        """Forget the step; return whether it was there."""
        with self._lock:
            self.generation += 1
            return self._steps.pop(step_id, None) is not None

    def steps(self) -> tuple[StepDefinition, ...]:
        """Return all steps, sorted by id."""
        with self._lock:
            return tuple(sorted(self._steps.values(), key=lambda definition: definition.id))

    def resolve(self, step_ids: Iterable[str]) -> tuple[StepDefinition, ...]:
        """Return the steps of these ids, in this order.

        Raises:
            UnknownStepError: The first id that is not registered.
        """
        with self._lock:
            found = []
            for step_id in step_ids:
                definition = self._steps.get(step_id)
                if definition is None:
                    raise UnknownStepError(f"unknown step id `{step_id}`", step_id)
                found.append(definition)
            return tuple(found)

    def definition_of(self, handler: object) -> StepDefinition:
        """Return the step that *handler* is registered as.

        Raises:
            ValidationError: It is no step here, or several.
        """
        with self._lock:
            found = [definition for definition in self._steps.values() if definition.handler == handler]
        if len(found) != 1:
            how = "is not registered: decorate it with @step(id)" if not found else "is several steps: name them by id"
            raise ValidationError(f"{_place(handler)} {how}")
        return found[0]

    def register_workflow(self, workflow: Workflow) -> Workflow:
        """Register *workflow* under its name, so that a caller may run it whole; return it.

        Raises:
            ValidationError: The name is another workflow's.
        """
        with self._lock:
            there = self._workflows.setdefault(workflow.name, workflow)
            if there is not workflow:
                raise ValidationError(f"workflow name {workflow.name!r} is taken: choose another, or unregister that one")
            self.generation += 1
        return workflow

    def unregister_workflow(self, name: str) -> bool:
        """Forget the workflow; return whether it was there."""
        with self._lock:
            self.generation += 1
            return self._workflows.pop(name, None) is not None

    def workflow(self, name: str) -> Workflow | None:
        """Return the workflow registered as *name*, or None."""
        with self._lock:
            return self._workflows.get(name)

    def workflows(self) -> tuple[Workflow, ...]:
        """Return all workflows, sorted by name."""
        with self._lock:
            return tuple(sorted(self._workflows.values(), key=lambda workflow: workflow.name))

    @contextmanager
    def isolated(self) -> Iterator[Registry]:
        """Empty this registry while entered; what it held comes back on leaving. For tests."""
        with self._lock:
            kept = self._steps, self._workflows
            self._steps, self._workflows = {}, {}
            self.generation += 1
        try:
            yield self
        finally:
            with self._lock:
                self._steps, self._workflows = kept
                self.generation += 1


def _place(handler: object) -> str:
    """Return where *handler* is defined, for an error's reader."""
    function = getattr(handler, "__func__", handler)
    name = getattr(function, "__qualname__", type(handler).__qualname__)
    return f"{getattr(function, '__module__', '?')}.{name}"


DEFAULT_REGISTRY: Final = Registry()
"""The registry of this process, which ``@step`` fills and servers serve."""


step = DEFAULT_REGISTRY.step
unregister_step = DEFAULT_REGISTRY.unregister_step
registered_steps = DEFAULT_REGISTRY.steps
register_workflow = DEFAULT_REGISTRY.register_workflow
unregister_workflow = DEFAULT_REGISTRY.unregister_workflow
isolated_registry = DEFAULT_REGISTRY.isolated
