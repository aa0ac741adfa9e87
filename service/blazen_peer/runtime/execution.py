"""One step's execution with one event: in a thread where it is plain, within its timeout, its retries and its turns."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from random import random
from time import monotonic
from typing import Any

from opentelemetry.trace import Span

from blazen_peer import telemetry
from blazen_peer.engine import StepDefinition
from blazen_peer.events import Event
from blazen_peer.runtime.context import Context, RunInfo, RunPort
from blazen_peer.runtime.turns import Turn

__all__ = ["CANCELLED", "TIMED_OUT", "counted", "execute", "note_end"]

CANCELLED = "workflow cancelled"
TIMED_OUT = "workflow timed out after "

_LOG = logging.getLogger(__name__)


async def execute(step: StepDefinition, event: Event, info: RunInfo, port: RunPort, *, recorded: bool = False) -> Any:
    """Return what *step* makes of *event*, or raise what its last execution raised. *recorded*: the current span is the step's.

    Waiting for a turn, or between two executions, takes of the run's time, not of the step's own.

    Raises:
        TimeoutError: An execution was over the step's ``timeout_secs``.
    """
    failures = 0
    collected: dict[Hashable, Any] | None = None if step.retry is None else {}  # what an execution collected, the next one has
    while True:
        try:
            return await _once(step, event, Context(info, step.id, port, failures + 1, collected), port)
        except Exception as error:
            failures += 1
            if step.retry is None:
                raise
            wait_secs = step.retry.wait_secs(error, failures, chance=random(), time_left_secs=info.time_left_secs)  # noqa: S311
            if wait_secs is None:
                raise
            _LOG.info(
                "step %s of run %s failed with %s: execution %d begins in %.3f s",
                step.id,
                info.run_id,
                type(error).__name__,
                failures + 1,
                wait_secs,
            )
        await asyncio.sleep(wait_secs)
        if recorded:
            telemetry.note_attempt(failures + 1)


@contextmanager
def counted(step: StepDefinition) -> Iterator[None]:
    """Count what is done inside as one execution of *step*, its repeats included."""
    began, outcome = monotonic(), "failed"
    try:
        yield
        outcome = "ok"
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        telemetry.step_ended(step.id, outcome, monotonic() - began)


def note_end(span: Span, info: RunInfo, error: BaseException | None, duration_secs: float) -> None:
    """Say on the run's *span*, and in the metrics, how it ended."""
    outcome = "ok"
    if error is not None:
        telemetry.mark_failed(span, error)
        text = str(error)
        outcome = "cancelled" if text == CANCELLED else "timeout" if text.startswith(TIMED_OUT) else "failed"
    telemetry.run_ended(info.workflow_name, outcome, duration_secs)


async def _once(step: StepDefinition, event: Event, context: Context, port: RunPort) -> Any:
    turn: Turn | None = await step.turns.take() if step.turns is not None else None
    try:
        if step.timeout_secs is None:
            return await _called(step, event, context, port, turn)
        try:
            async with asyncio.timeout(step.timeout_secs) as timeout:
                return await _called(step, event, context, port, turn)
        except TimeoutError as error:
            if timeout.expired():  # else it is the step's own
                raise TimeoutError(f"timed out after {step.timeout_secs:.10g}s") from error
            raise
    finally:
        if turn is not None:
            turn.leave()


async def _called(step: StepDefinition, event: Event, context: Context, port: RunPort, turn: Turn | None) -> Any:
    args = (event, context) if step.wants_context else (event,)
    if step.is_async:
        return await step.handler(*args)
    if turn is None:
        output = await port.call_in_thread(step, step.handler, args)
    else:
        output = await port.call_in_thread(step, _in_turn, (turn, step, args))
    return await output if inspect.isawaitable(output) else output


def _in_turn(turn: Turn, step: StepDefinition, args: tuple[Any, ...]) -> Any:
    """Call the handler in its thread, which keeps the turn until it returns."""
    if not turn.enter_thread():
        return None  # nobody waits for it
    try:
        return step.handler(*args)
    finally:
        turn.leave_thread()
