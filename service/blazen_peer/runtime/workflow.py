"""A workflow: steps that are routed to one another by the events they accept and emit."""

from __future__ import annotations

import asyncio
import contextvars
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from blazen_peer import telemetry
from blazen_peer.engine import Retry, RoutingTable, StepDefinition, WorkflowWarning, check_graph
from blazen_peer.errors import EncodeError, PermissionDeniedError, ValidationError
from blazen_peer.events import START, Event, StartEvent
from blazen_peer.flows import check_class_name
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.context import RunInfo, current_run
from blazen_peer.runtime.definition import EventName, define_step
from blazen_peer.runtime.local_refs import LOCAL_REFS
from blazen_peer.runtime.registry import DEFAULT_REGISTRY, Registry
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.runtime.run import Run
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.runtime.threads import StepThreads, default_threads

__all__ = ["DEFAULT_TIMEOUT_SECS", "DataClassOf", "StepHandler", "StepLike", "Workflow", "WorkflowBuilder", "definition_of"]

DEFAULT_TIMEOUT_SECS = 300.0  # the same as a server's


class StepHandler(Protocol):
    """An object that performs a step: ``invoke`` takes the event, or event and context, and may be async or plain."""

    @property  # read-only: so a method fits
    def invoke(self) -> Callable[..., Any]:
        """What performs the step."""


StepLike: TypeAlias = "str | StepDefinition | Callable[..., Any]"

DataClassOf: TypeAlias = "str | Callable[[Any], str]"
"""The laxest data class that a workflow may be called with: a name, or what gives the name for an input, any JSON value."""


class Workflow:
    """Steps under a name, ready to run any number of times, at once too. Never changes.

    Args:
        name: For people, traces and, when registered, for callers of a peer.
        steps: Ids of registered steps, functions decorated with ``@step``, or definitions.
        registry: Where ids and functions are looked up; by default the process-wide one.
        data_class: The laxest class of data that it may be called with: a name, or a function that gives one for the input,
            quickly and without waiting. A peer with a policy refuses calls with a laxer one, and a workflow that says nothing
            is called with the strictest class alone. Run here, its data is of this class.

    Raises:
        ValidationError: No steps, a step twice, or none that accepts ``blazen::StartEvent``; or the classes that its steps
            accept and emit say that a run could not go well: a step that no event can reach, an event that no step accepts
            or emits, no way to a ``StopEvent``. Where only the names of dynamic events say so, it warns
            (``WorkflowWarning``).
        UnknownStepError: An id that is not registered.
    """

    __slots__ = ("_table", "_threads", "data_class", "name")

    def __init__(
        self,
        name: str,
        steps: Iterable[StepLike],
        *,
        registry: Registry = DEFAULT_REGISTRY,
        data_class: DataClassOf | None = None,
    ) -> None:
        self._assemble(name, [definition_of(item, registry) for item in steps], data_class)
        if not self._table.can_start:
            raise ValidationError(f"workflow {name!r} has no step that accepts {START}")
        self._check()

    @classmethod
    def from_step_ids(
        cls,
        name: str,
        step_ids: Iterable[str],
        registry: Registry = DEFAULT_REGISTRY,
        *,
        data_class: DataClassOf | None = None,
    ) -> Workflow:
        """Return the workflow of these registered steps, as a peer assembles it for a caller.

        Steps that cannot start make a workflow that fails when it runs: what a caller named is the caller's own affair.

        Raises:
            UnknownStepError: The first id that is not registered.
            ValidationError: No ids, or one twice.
        """
        workflow = cls.__new__(cls)
        workflow._assemble(name, registry.resolve(step_ids), data_class)
        return workflow

    def part(self, step_ids: Iterable[str]) -> Workflow | None:
        """Return the workflow of these steps of this one, with its name and data class; None where an id is not of its steps.

        Raises:
            EncodeError: An id is there twice.
        """
        own = {step.id: step for step in self.steps}
        ids = tuple(step_ids)
        if not own.keys() >= set(ids):
            return None
        part = type(self).__new__(type(self))
        try:
            part._assemble(self.name, [own[step_id] for step_id in ids], self.data_class)
        except ValidationError as error:
            raise EncodeError(str(error)) from None
        return part

    def class_of(self, input: Any) -> str | None:
        """Return the laxest data class that it may be called with for *input*; None where it declares none.

        Raises:
            ValidationError: The function that gives it raised, or gave no name of a data class.
        """
        if not callable(self.data_class):
            return self.data_class
        try:
            # What it sets in its context is not for the next call: frames of a lane are begun in one task.
            found = contextvars.copy_context().run(self.data_class, input)
        except Exception as error:  # its text may hold the input
            raise ValidationError(f"workflow {self.name!r}: its data_class= raised {type(error).__name__}") from error
        if not isinstance(found, str):
            raise ValidationError(f"workflow {self.name!r}: its data_class= gave {type(found).__name__}, not a name")
        try:
            return check_class_name(found)
        except ValidationError:  # likewise
            raise ValidationError(f"workflow {self.name!r}: its data_class= gave what names no data class") from None

    def _assemble(self, name: str, steps: Iterable[StepDefinition], data_class: DataClassOf | None = None) -> None:
        if not isinstance(name, str):
            raise ValidationError(f"a workflow's name is text, not {type(name).__name__}")
        if isinstance(data_class, str):
            check_class_name(data_class)
        elif data_class is not None and not callable(data_class):
            raise ValidationError(f"workflow {name!r}: data_class= is a name or a function, not {type(data_class).__name__}")
        self.name, self.data_class = name, data_class
        self._table = RoutingTable(steps)
        self._threads: StepThreads = default_threads()

    def _check(self) -> None:
        problems = check_graph(self.steps)
        if certain := [problem.message for problem in problems if problem.certain]:
            raise ValidationError(f"workflow {self.name!r}: {'; '.join(certain)}")
        for problem in problems:
            warnings.warn(f"workflow {self.name!r}: {problem.message}", WorkflowWarning, stacklevel=_stack_level())

    @property
    def steps(self) -> tuple[StepDefinition, ...]:
        """Its steps, in the order given."""
        return self._table.steps

    async def run(self, input: Any = None, *, timeout_secs: float | None = None) -> WorkflowResult:
        """Run once and return the result. Cancelling the task that awaits this cancels the run.

        Inside a step it is a child of that step's run: it has the same caller, at most the time that its parent has left, and
        the stricter data class of the two.

        Args:
            input: Any JSON value, which becomes the ``data`` of a ``StartEvent``; or a start event.
            timeout_secs: How long the run may take; None: ``DEFAULT_TIMEOUT_SECS``, or as long as its parent; ``math.inf``:
                for ever; 0: only what finishes without waiting succeeds.

        Raises:
            WorkflowError: The run failed, timed out or was cancelled.
            ValidationError: A timeout below 0.
            PermissionDeniedError: Its data class and its parent's cannot be compared here. Nothing ran.
        """
        parent = current_run()
        if parent is not None:
            run = self._start_child(input, timeout_secs, parent)
        else:
            run = self.start(input, timeout_secs=DEFAULT_TIMEOUT_SECS if timeout_secs is None else timeout_secs)
        try:
            return await run.wait()
        except asyncio.CancelledError:
            run.cancel()
            raise

    def _start_child(self, input: Any, timeout_secs: float | None, parent: RunInfo) -> Run:
        clock = asyncio.get_running_loop().time
        deadline = parent.deadline
        if deadline is not None:
            if parent.clock != clock:  # a loop of its own, in the thread of a plain step
                deadline = clock() + (parent.time_left_secs or 0.0)
            # Later than the parent's by next to nothing: at one and the same time the parent's end comes first.
            deadline = math.nextafter(deadline, math.inf)
        if timeout_secs is not None and not (deadline is not None and clock() + timeout_secs >= deadline):
            deadline = None
        else:
            timeout_secs = None
        return self.start(
            input,
            caller=parent.caller,
            invocation_id=parent.invocation_id,
            node_id=parent.node_id,
            timeout_secs=timeout_secs,
            deadline=deadline,
        )

    def _class_of_child(self, input: Any, parent: RunInfo) -> str | None:
        own, inherited = self.class_of(input), parent.data_class
        if own is None or inherited is None or own == inherited:
            return own or inherited
        if own in parent.classes and inherited in parent.classes:
            return min(own, inherited, key=parent.classes.index)
        raise PermissionDeniedError(
            f"a run of workflow {parent.workflow_name!r} with {inherited} data runs workflow {self.name!r}, which declares "
            f"{own}, and which of the two is stricter is known only in a server with a policy"
        )

    def start(
        self,
        input: Any = None,
        *,
        caller: Caller = ANONYMOUS,
        run_id: str | None = None,
        invocation_id: str | None = None,
        node_id: str | None = None,
        timeout_secs: float | None = None,
        deadline: float | None = None,
        trace_parent: telemetry.TraceContext | None = None,
        on_end: Callable[[Run], None] | None = None,
        refs: RunRefs | None = None,
        emit: Callable[[str, bytes], None] | None = None,
        data_class: str | None = None,
        classes: tuple[str, ...] = (),
    ) -> Run:
        """Start a run and return it at once. It belongs to whoever called this, and ends by itself, by its deadline, or by
        :meth:`Run.cancel`.

        Args:
            input: As for :meth:`run`.
            caller: Who asked for it.
            run_id: Unique; None makes one.
            invocation_id: The caller's id of this call.
            node_id: The node that runs it.
            timeout_secs: How long it may take, and what its error says; None: for ever, if there is no *deadline* either.
            deadline: When it must be over, by ``loop.time()``, where that is not *timeout_secs* from now (a run that waited
                for its turn has less).
            trace_parent: The remote caller's trace context.
            on_end: Called with the run as soon as it is over.
            refs: Where its session refs are held; None: with those of the run in whose step this is called, or of this process.
            emit: Called, in any thread, with the type and the JSON of each event that a step emits to the run's stream; None:
                they go nowhere.
            data_class: The class of the run's data; None: what the workflow declares, and the run in whose step this is called.
            classes: The data classes of the mesh, strictest first, where they are known.

        Raises:
            ValidationError: A timeout below 0.
            PermissionDeniedError: As for :meth:`run`.
        """
        clock = asyncio.get_running_loop().time
        if timeout_secs is not None:
            if not timeout_secs >= 0:
                raise ValidationError(f"timeout_secs is {timeout_secs!r}: use 0 or more seconds")
            if deadline is None and timeout_secs != math.inf:
                deadline = clock() + timeout_secs
        elif deadline is not None:
            timeout_secs = round(max(0.0, deadline - clock()), 3)
        event = input if isinstance(input, Event) else StartEvent(data=input)
        if event.event_type != START:
            raise ValidationError(f"a run starts with {START}, not with {event.event_type}")
        parent = current_run() if refs is None else None  # a server gives refs, and is nobody's child
        if parent is not None:
            data_class, classes = data_class or self._class_of_child(event.data, parent), parent.classes
        elif data_class is None and self.data_class is not None:
            data_class = self.class_of(event.data)
        info = RunInfo(
            workflow_name=self.name,
            run_id=run_id if run_id is not None else secrets.token_hex(16),
            caller=caller,
            invocation_id=invocation_id,
            node_id=node_id,
            deadline=deadline,
            clock=clock,
            refs=refs if refs is not None else _local_refs(data_class),
            emit=emit,
            data_class=data_class,
            classes=classes,
        )
        return Run(
            self._table,
            event,
            info,
            timeout_secs=timeout_secs,
            threads=self._threads,
            trace_parent=trace_parent,
            on_end=on_end,
        )

    def __repr__(self) -> str:
        return f"Workflow({self.name!r}, {[step.id for step in self.steps]!r})"


class WorkflowBuilder:
    """Builds a workflow from handlers that need no registration; its arguments are those of :class:`Workflow`."""

    def __init__(self, name: str, *, data_class: DataClassOf | None = None) -> None:
        self._name, self._data_class = name, data_class
        self._steps: list[StepDefinition] = []

    def step(
        self,
        name: str,
        accepts: Iterable[EventName] | None,
        emits: Iterable[EventName] | None,
        handler: Callable[..., Any] | StepHandler,
        *,
        timeout_secs: float | None = None,
        retry: Retry | None = None,
        max_concurrent: int | None = None,
    ) -> WorkflowBuilder:
        """Add the step *name*; return this builder.

        Args:
            name: The step's id in this workflow.
            accepts: Wire names or classes of the events it takes; None: from the handler's annotations.
            emits: Likewise for what it returns or sends.
            handler: A function, async or plain, or an object with ``invoke``; called with the event, or event and context.
            timeout_secs: How long one execution may take, in seconds; None: as long as the run.
            retry: When an execution that failed is tried again; None: never.
            max_concurrent: How many executions may go on at once, over all runs of the workflow; None: any number.

        Raises:
            ValidationError: The handler's signature is not a step's.
        """
        self._steps.append(
            define_step(
                name,
                handler,
                accepts=accepts,
                emits=emits,
                timeout_secs=timeout_secs,
                retry=retry,
                max_concurrent=max_concurrent,
            )
        )
        return self

    def add(self, step: StepLike) -> WorkflowBuilder:
        """Add a step that there is: a definition, such as ``remote_step`` makes, a decorated function, or an id.

        Raises:
            ValidationError, UnknownStepError: As for :class:`Workflow`.
        """
        self._steps.append(definition_of(step, DEFAULT_REGISTRY))
        return self

    def build(self) -> Workflow:
        """Return the workflow.

        Raises:
            ValidationError: As for :class:`Workflow`.
        """
        return Workflow(self._name, self._steps, data_class=self._data_class)


def _local_refs(data_class: str | None) -> RunRefs:
    parent = current_run()
    return parent.refs.child(data_class) if parent is not None and parent.refs is not None else RunRefs(LOCAL_REFS)


def definition_of(item: StepLike, registry: Registry) -> StepDefinition:
    """Return the step that *item* is: itself, by its id, or the one that the function is registered as.

    Raises:
        UnknownStepError: The id is not registered.
        ValidationError: The function is no step, or several.
    """
    if isinstance(item, StepDefinition):
        return item
    if isinstance(item, str):
        return registry.resolve((item,))[0]
    return registry.definition_of(item)


def _stack_level() -> int:
    """Return how far up from the caller of this is the code that builds the workflow: a warning names its line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is globals():
        level, frame = level + 1, frame.f_back
    return level
