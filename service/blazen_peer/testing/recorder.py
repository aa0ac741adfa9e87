"""Which step was executed, how often, and for whom."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from blazen_peer.engine import StepDefinition
from blazen_peer.events import Event
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.context import current_run
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.workflow import Workflow

__all__ = ["WAIT_SECS", "Execution", "Recorder"]

WAIT_SECS: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a step, as it began.

    Attributes:
        step_id: The step.
        event: What it was called with.
        workflow_name: The workflow of its run.
        run_id: Its run.
        caller: Who asked for the run; ``ANONYMOUS`` for a local one.
        invocation_id: The caller's id of the call, if it gave one.
        node_id: The node that runs it; None outside a server.
    """

    step_id: str
    event: Event
    workflow_name: str = ""
    run_id: str = ""
    caller: Caller = ANONYMOUS
    invocation_id: str | None = None
    node_id: str | None = None


class Recorder:
    """Records the executions of the steps of registries that it watches. Safe to use from several threads.

    An execution counts from its beginning, whatever becomes of it; a retry is another one.
    """

    def __init__(self) -> None:
        self._executions: list[Execution] = []
        self._grown = threading.Condition()

    @property
    def executions(self) -> tuple[Execution, ...]:
        """All executions so far, in the order they began."""
        with self._grown:
            return tuple(self._executions)

    def of(self, step_id: str) -> tuple[Execution, ...]:
        """Return the executions of one step, in the order they began."""
        return tuple(execution for execution in self.executions if execution.step_id == step_id)

    def count(self, step_id: str) -> int:
        """Return how often the step was executed."""
        return len(self.of(step_id))

    async def wait_for(self, step_id: str, count: int = 1, *, timeout_secs: float = WAIT_SECS) -> None:
        """Wait until the step was executed *count* times: the last of them has begun, and need not be over.

        Args:
            step_id: The step.
            count: How many executions there must be.
            timeout_secs: How long to wait, in seconds of real time, in :func:`virtual_time` as well.

        Raises:
            TimeoutError: It was not executed that often; the text says how often.
        """

        def wait() -> bool:
            with self._grown:
                return self._grown.wait_for(lambda: self.count(step_id) >= count, timeout_secs)

        if not await asyncio.to_thread(wait):
            raise TimeoutError(
                f"step {step_id!r} was executed {self.count(step_id)} times within {timeout_secs:g} s, not {count}"
            )

    def watch(self, registry: Registry) -> Registry:
        """Return a registry that holds what *registry* holds, now and later, with every execution recorded.

        Serve it, or make a local ``Workflow(..., registry=recorder.watch(registry))`` of it.
        """
        return _Watched(registry, self._recorded)

    def _recorded(self, definition: StepDefinition) -> StepDefinition:
        def begin(event: Event) -> None:
            run = current_run()
            execution = Execution(definition.id, event)
            if run is not None:
                execution = Execution(
                    definition.id, event, run.workflow_name, run.run_id, run.caller, run.invocation_id, run.node_id
                )
            with self._grown:
                self._executions.append(execution)
                self._grown.notify_all()

        async def perform(event: Event, *context: Any) -> Any:
            begin(event)
            return await definition.handler(event, *context)

        def perform_in_thread(event: Event, *context: Any) -> Any:
            begin(event)
            return definition.handler(event, *context)

        return dataclasses.replace(definition, handler=perform if definition.is_async else perform_in_thread)


class _Watched(Registry):
    """Another registry, each of its steps seen through *recorded*. What is registered here is registered there."""

    def __init__(self, source: Registry, recorded: Callable[[StepDefinition], StepDefinition]) -> None:
        super().__init__()
        self._source, self._recorded = source, recorded

    @property
    def generation(self) -> int:
        """The other registry's."""
        return self._source.generation

    @generation.setter
    def generation(self, _: int) -> None:
        """Do nothing: all changes are the other registry's."""

    def add(self, definition: StepDefinition) -> None:
        self._source.add(definition)

    def unregister_step(self, step_id: str) -> bool:
        return self._source.unregister_step(step_id)

    def steps(self) -> tuple[StepDefinition, ...]:
        return tuple(map(self._recorded, self._source.steps()))

    def resolve(self, step_ids: Iterable[str]) -> tuple[StepDefinition, ...]:
        return tuple(map(self._recorded, self._source.resolve(step_ids)))

    def definition_of(self, handler: object) -> StepDefinition:
        return self._recorded(self._source.definition_of(handler))

    def register_workflow(self, workflow: Workflow) -> Workflow:
        return self._source.register_workflow(workflow)

    def unregister_workflow(self, name: str) -> bool:
        return self._source.unregister_workflow(name)

    def workflow(self, name: str) -> Workflow | None:
        workflow = self._source.workflow(name)
        return None if workflow is None else self._seen(workflow)

    def workflows(self) -> tuple[Workflow, ...]:
        return tuple(map(self._seen, self._source.workflows()))

    @contextmanager
    def isolated(self) -> Iterator[Registry]:
        with self._source.isolated():
            yield self

    def _seen(self, workflow: Workflow) -> Workflow:
        steps = Registry()
        for definition in workflow.steps:
            steps.add(self._recorded(definition))
        ids = [item.id for item in workflow.steps]  # checked when it was made
        return Workflow.from_step_ids(workflow.name, ids, steps, data_class=workflow.data_class)
