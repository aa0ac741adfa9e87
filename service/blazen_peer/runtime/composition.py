"""Steps that are made of others: a workflow here, a workflow on a peer, several at once.

Each is an ordinary step definition: it stands in a workflow's list, in another ``parallel``, or in the registry. What it runs
is a child of the run that its step belongs to: one trace, at most the parent's time left, and gone when the parent ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from blazen_peer import telemetry
from blazen_peer.engine import Retry, StepDefinition, message_of
from blazen_peer.errors import ValidationError, WorkflowError
from blazen_peer.events import START, Event, StartEvent, StopEvent, convert
from blazen_peer.runtime.context import Context
from blazen_peer.runtime.definition import EventName, define_step
from blazen_peer.runtime.execution import counted, execute
from blazen_peer.runtime.registry import DEFAULT_REGISTRY, Registry
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.runtime.workflow import StepLike, Workflow, definition_of

__all__ = ["RemoteRunner", "local_step", "parallel", "remote_step"]


class RemoteRunner(Protocol):
    """Who runs workflows elsewhere: a ``PeerClient``."""

    def run_remote_workflow(
        self,
        workflow_name: str,
        step_ids: Sequence[str],
        input_json: str,
        timeout_secs: float | None = None,
        *,
        retries: int = 0,
    ) -> Awaitable[WorkflowResult]:
        """Run the steps once and return the result."""


def remote_step(
    client: RemoteRunner,
    workflow_name: str,
    step_ids: Sequence[str] = (),
    *,
    step_id: str | None = None,
    accepts: Iterable[EventName] = (StartEvent,),
    emits: EventName = StopEvent,
    timeout_secs: float | None = None,
    retries: int = 0,
    retry: Retry | None = None,
    max_concurrent: int | None = None,
) -> StepDefinition:
    """Return a step that hands its event's data to a workflow on a peer, and emits the result.

    Args:
        client: A ``PeerClient`` of that peer.
        workflow_name: What the peer knows the workflow by.
        step_ids: The steps there; empty: the whole workflow of that name.
        step_id: The step's own id; None: *workflow_name*.
        accepts: The events it takes.
        emits: The event it makes of the result: a name, or a class, which the result is validated into.
        timeout_secs: How long the remote run may take; never more than what this one has left.
        retries: How often the call is repeated when the connection breaks; it never runs twice.
        retry: When a call that failed is made anew: another run, so for what may run twice.
        max_concurrent: How many such calls this step makes at once in this process.

    Raises:
        ValidationError: As for ``@step``.
    """
    if isinstance(step_ids, str):
        raise ValidationError("step_ids is one string: give a list of step ids")
    ids = tuple(step_ids)

    async def call(event: Event) -> Event:
        result = await client.run_remote_workflow(workflow_name, ids, event.data_json, timeout_secs, retries=retries)
        return _emitted(emits, result.event)

    name = workflow_name if step_id is None else step_id
    return define_step(name, call, accepts=accepts, emits=(emits,), retry=retry, max_concurrent=max_concurrent)


def local_step(
    workflow: Workflow,
    *,
    step_id: str | None = None,
    accepts: Iterable[EventName] = (StartEvent,),
    emits: EventName = StopEvent,
    timeout_secs: float | None = None,
    retry: Retry | None = None,
    max_concurrent: int | None = None,
) -> StepDefinition:
    """Return a step that hands its event's data to *workflow* in this process, and emits the result.

    The arguments are those of :func:`remote_step`; ``step_id`` is the workflow's name where it is not given. The child
    has a state of its own: what it exports is in its own result, not in its parent's.
    """

    async def call(event: Event) -> Event:
        given = event if event.event_type == START else event.data
        return _emitted(emits, (await workflow.run(given, timeout_secs=timeout_secs)).event)

    name = workflow.name if step_id is None else step_id
    return define_step(name, call, accepts=accepts, emits=(emits,), retry=retry, max_concurrent=max_concurrent)


def parallel(
    steps: Sequence[StepLike] | Mapping[str, StepLike],
    *,
    mode: Literal["all", "first"] = "all",
    step_id: str | None = None,
    emits: EventName = StopEvent,
    sends: Iterable[EventName] = (),
    timeout_secs: float | None = None,
    retry: Retry | None = None,
    max_concurrent: int | None = None,
    registry: Registry = DEFAULT_REGISTRY,
) -> StepDefinition:
    """Return a step that executes *steps*, each with the event it takes itself, at once, and emits one event.

    ``"all"`` waits for all of them; the event carries the list of what theirs carried, in their order, or, where they were
    given by name, an object of it by these names. The first that fails ends the others and fails the step. ``"first"`` takes
    the first that succeeds, ends the others, and carries what that one's event carried; it fails when all of them did.

    Args:
        steps: What ``Workflow`` takes: definitions (such as a :func:`remote_step`), functions decorated with ``@step``, ids.
            Each takes the same event, and returns one event. Their own timeouts, retries and limits hold.
        mode: Which of them decide.
        step_id: The step's own id; None: made of theirs, such as ``first(left, right)``.
        emits: The event it makes: a name, or a class, which what it carries is validated into.
        sends: The events that the steps inside send by their context beside it, for the workflow's check.
        timeout_secs, retry, max_concurrent: For the step as a whole, as for ``@step``.
        registry: Where functions and ids are looked up.

    Raises:
        ValidationError: No steps, one without a common event, another mode.
    """
    if mode not in ("all", "first"):
        raise ValidationError(f"parallel(mode={mode!r}): use 'all' or 'first'")
    names = list(steps) if isinstance(steps, Mapping) else None
    branches = [definition_of(item, registry) for item in (steps.values() if isinstance(steps, Mapping) else steps)]
    if not branches:
        raise ValidationError("parallel needs at least one step")
    accepts = _common(branches)

    async def call(event: Event, ctx: Context) -> Event:
        tasks = [asyncio.create_task(_branch(branch, event, ctx)) for branch in branches]
        try:
            if mode == "first":
                return _emitted(emits, await _first(tasks, branches))
            data = [output.data for output in await _all(tasks, branches)]
            return _event(emits, data if names is None else dict(zip(names, data, strict=True)))
        finally:
            _leave(tasks, branches, ctx)

    return define_step(
        f"{mode}({', '.join(branch.id for branch in branches)})" if step_id is None else step_id,
        call,
        accepts=accepts,
        emits=(emits, *sends),
        timeout_secs=timeout_secs,
        retry=retry,
        max_concurrent=max_concurrent,
    )


def _common(branches: Sequence[StepDefinition]) -> list[EventName]:
    """Return the events that all *branches* take: as a class where they agree on it."""
    common: list[EventName] = []
    for name in branches[0].accepts:
        if all(name in branch.accepts for branch in branches):
            classes = {branch.accepted_classes.get(name) for branch in branches}
            wanted = classes.pop()
            common.append(wanted if wanted is not None and not classes else name)
    if not common:
        raise ValidationError(f"parallel: {', '.join(branch.id for branch in branches)} take no event in common")
    return common


async def _branch(step: StepDefinition, event: Event, ctx: Context) -> Event:
    wanted = step.accepted_classes.get(event.event_type)
    with telemetry.step_span(step.id, event.event_type) as span:
        try:
            with counted(step):
                given = event if wanted is None else convert(event, wanted)
                output = await execute(step, given, ctx._run, ctx._port, recorded=span.is_recording())
        except SystemExit as error:  # out of a task of its own it would end the process
            raise WorkflowError(message_of(error), step.id) from error
    if not isinstance(output, Event):
        raise WorkflowError(f"it returned {type(output).__name__}, not one event", step.id)
    return output


async def _all(tasks: Sequence[asyncio.Task[Event]], branches: Sequence[StepDefinition]) -> list[Event]:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task, branch in zip(tasks, branches, strict=True):
        if task.done() and (error := _failure(task)) is not None:
            raise WorkflowError(f"{branch.id!r} failed: {message_of(error)}", branch.id) from error
    return [task.result() for task in tasks]


async def _first(tasks: Sequence[asyncio.Task[Event]], branches: Sequence[StepDefinition]) -> Event:
    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:  # in their order, where several are done
            if task in done and _failure(task) is None:
                return task.result()
    errors = [_failure(task) for task in tasks]
    texts = [f"{branch.id!r}: {message_of(error)}" for branch, error in zip(branches, errors, strict=True) if error is not None]
    raise WorkflowError(f"none succeeded: {'; '.join(texts)}") from errors[-1]


def _failure(task: asyncio.Task[Event]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _leave(tasks: Sequence[asyncio.Task[Event]], branches: Sequence[StepDefinition], ctx: Context) -> None:
    """Cancel the branches that still run; the run keeps them until they are over, and nobody waits for them."""
    for task, branch in zip(tasks, branches, strict=True):
        if not task.done():
            ctx._port.abandon(task, branch)
        elif not task.cancelled():
            task.exception()  # a failure that decided nothing: no warning then


def _emitted(emits: EventName, event: Event) -> Event:
    """Return *event* as the one that is declared: itself, or what it carries in another."""
    if (emits if isinstance(emits, str) else emits.event_type) == event.event_type:
        return event if isinstance(emits, str) else convert(event, emits)
    return _event(emits, event.data)


def _event(emits: EventName, data: Any) -> Event:
    if isinstance(emits, str):
        return Event.dynamic(emits, data)
    return convert(Event.dynamic(emits.event_type, data), emits)
