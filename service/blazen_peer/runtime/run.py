"""One run: performs the engine's commands with asyncio tasks.

A chain of steps runs in one task, one step after the other; each further event of a fan-out gets a task of its own. The run
belongs to whoever started it: a caller that stops waiting does not end it, and its end does not wait for its steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any

from blazen_peer import telemetry
from blazen_peer.engine import Commands, Ended, RoutingTable, RunState, StepDefinition, Work
from blazen_peer.errors import WorkflowError
from blazen_peer.events import Event
from blazen_peer.runtime.context import Context, RunInfo, enter_run
from blazen_peer.runtime.execution import CANCELLED, TIMED_OUT, counted, execute, note_end
from blazen_peer.runtime.memory import MAKING, RunMemory
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.runtime.threads import StepThreads

__all__ = ["Run"]

SLICE_SECS = 0.01  # steps that never wait give the loop a turn this often, so that deadlines and other runs get theirs
CHASE_SECS = (1.0, 5.0, 30.0)  # after these, steps that outlive their run are named in the log and cancelled again; then left

_LOG = logging.getLogger(__name__)
_ALIVE: set[Run] = set()  # asyncio holds tasks weakly; here their runs are held until the last task is over


class _Place:
    """Where a task is: the step it is at."""

    __slots__ = ("step",)

    def __init__(self, step: StepDefinition | None = None) -> None:
        self.step = step


class Run:
    """A workflow under way, or over. Made by ``Workflow.start``; belongs to the event loop it was made in.

    Attributes:
        info: Its names, caller and deadline.
    """

    __slots__ = (
        "_in_threads",
        "_loop",
        "_memory",
        "_on_end",
        "_outcome",
        "_recording",
        "_result",
        "_state",
        "_stopped",
        "_tasks",
        "_threads",
        "_timeout_secs",
        "_timer",
        "_waiters",
        "info",
    )

    def __init__(
        self,
        table: RoutingTable,
        event: Event,
        info: RunInfo,
        *,
        timeout_secs: float | None,
        threads: StepThreads,
        trace_parent: telemetry.TraceContext | None,
        on_end: Callable[[Run], None] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.info = info
        self._on_end = on_end
        self._result: WorkflowResult | None = None
        self._outcome: asyncio.Future[WorkflowResult] | None = None
        self._threads = threads
        self._recording = False
        self._memory: RunMemory | None = None
        self._state = RunState(table)
        self._tasks: dict[asyncio.Task[Any], _Place] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_secs = timeout_secs
        self._waiters: list[asyncio.Future[None]] = []
        self._in_threads: dict[asyncio.Future[Any], StepDefinition] = {}
        self._stopped: asyncio.Future[None] | None = None
        _ALIVE.add(self)
        # The deadline is armed after the first slice: with no time at all, what never waits still succeeds, and the many runs
        # that are over by then need no timer.
        place = _Place()
        self._spawn(self._lead(event, place, trace_parent), place)
        if info.deadline is not None:
            self._loop.call_soon(self._arm, info.deadline)

    @property
    def outcome(self) -> asyncio.Future[WorkflowResult]:
        """A future of the :class:`WorkflowResult`, or of the :class:`WorkflowError`. Wait by :meth:`wait`, or by
        ``asyncio.wait``: a task that awaits the future itself cancels it when cancelled."""
        if self._outcome is None:  # made when it is asked for: most runs are waited for by `wait`
            self._outcome = self._loop.create_future()
            if self._state.ended is not None:
                self._tell(self._outcome, self._state.ended)
        return self._outcome

    async def wait(self) -> WorkflowResult:
        """Wait for the outcome. Cancelling this wait leaves the run alone.

        Raises:
            WorkflowError: The run failed, timed out or was cancelled.
        """
        state = self._state
        if state.ended is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if state.ended is None:
                    self._waiters.remove(waiter)
        if self._result is None:
            return self.outcome.result()  # raises the error
        return self._result

    def cancel(self) -> None:
        """End the run as ``workflow cancelled``, if it is not over; its steps are cancelled and not waited for."""
        self._stop(CANCELLED)

    @property
    def result(self) -> WorkflowResult | None:
        """The result, once the run has succeeded."""
        return self._result

    @property
    def error(self) -> WorkflowError | None:
        """Why the run has failed, once it has."""
        return None if self._state.ended is None else self._state.ended.error

    @property
    def memory(self) -> RunMemory:
        """What its steps keep between them."""
        if self._memory is None:  # only when a step asks: most runs keep nothing
            with MAKING:
                self._memory = self._memory or RunMemory()
        return self._memory

    @property
    def exported(self) -> dict[str, str]:
        """What its steps exported so far: JSON text by key. A copy."""
        return {} if self._memory is None else self._memory.exported.copy()

    def send(self, step_id: str, event: Event) -> None:
        """Route *event*, which the step *step_id* sends while it goes on. Callable from any thread."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._send(step_id, event)  # at once: the step may return with nothing else in flight
            return
        with suppress(RuntimeError):  # the loop is closed, so the run is over
            self._loop.call_soon_threadsafe(self._send, step_id, event)

    def _send(self, step_id: str, event: Event) -> None:
        commands = self._state.sent(step_id, event)
        if isinstance(commands, Ended):
            self._settle(commands, spared=None)  # the sender is in flight as the others are
        else:
            for work in commands:
                self._begin(work)

    async def call_in_thread(self, step: StepDefinition, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return what ``call(*args)`` gives in a thread, for *step*; the run knows of it until it has returned."""
        future = self._threads.run(call, *args, left=self._left)
        self._in_threads[future] = step
        try:
            return await future
        finally:
            if not future.cancelled():  # otherwise the function goes on: nothing can interrupt it
                del self._in_threads[future]

    def _left(self, future: asyncio.Future[Any]) -> None:
        """A function whose step was cancelled has returned, or will never be called."""
        del self._in_threads[future]
        self._rest()

    def abandon(self, task: asyncio.Task[Any], step: StepDefinition) -> None:
        """Cancel *task*, which executes *step* and which nobody waits for any more, and keep it until it is over."""
        self._tasks[task] = _Place(step)
        task.add_done_callback(self._abandoned_over)
        task.cancel()

    def _abandoned_over(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # nobody asks for it: no warning then
        self._gone(task)

    @property
    def running_step_ids(self) -> tuple[str, ...]:
        """The steps that are executing, after the end of the run as well, plain functions in threads included; sorted."""
        in_tasks = [place.step.id for place in self._tasks.values() if place.step is not None]
        left_in_threads = [step.id for future, step in self._in_threads.items() if future.cancelled()]
        return tuple(sorted(in_tasks + left_in_threads))

    def on_stopped(self, callback: Callable[[], object]) -> None:
        """Call *callback* when the run is over and none of its steps runs any more."""
        self._when_stopped().add_done_callback(lambda _: callback())

    async def wait_stopped(self, timeout_secs: float) -> bool:
        """Wait until the run is over and none of its steps runs any more, at most *timeout_secs*; say whether that is so."""
        await asyncio.wait((self._when_stopped(),), timeout=timeout_secs)
        return self._when_stopped().done()

    async def _lead(self, event: Event, place: _Place, trace_parent: telemetry.TraceContext | None) -> None:
        """The first task: enters the run and its span, and stays until the outcome when the span is recorded."""
        info, began, metered = self.info, monotonic(), telemetry.metered()
        enter_run(info)
        with telemetry.run_span(
            info.workflow_name,
            info.run_id,
            node_id=info.node_id,
            caller=info.caller,
            invocation_id=info.invocation_id,
            data_class=info.data_class,
            parent=trace_parent,
        ) as span:
            self._recording = span.is_recording() or metered
            try:
                await self._work(self._follow(self._state.begun(event)), place)
                if self._recording and self._state.ended is None:
                    await asyncio.wait((self.outcome,))
            except asyncio.CancelledError:
                if self._state.ended is None:
                    self.cancel()  # the whole event loop is going away
            ended = self._state.ended
            if self._recording and ended is not None:
                note_end(span, info, ended.error, monotonic() - began)

    async def _work(self, work: Work | None, place: _Place) -> None:
        """Execute *work* and what follows from it, until nothing does."""
        state, info, recording = self._state, self.info, self._recording
        turn = monotonic() + SLICE_SECS
        commands: Commands
        while work is not None:
            step, event = work
            place.step = step
            try:
                if monotonic() > turn:
                    await asyncio.sleep(0)
                    turn = monotonic() + SLICE_SECS
                if recording:
                    output = await self._traced(step, event)
                elif step.plain:
                    output = await (
                        step.handler(event, Context(info, step.id, self)) if step.wants_context else step.handler(event)
                    )
                else:
                    output = await execute(step, event, info, self)
            except (asyncio.CancelledError, KeyboardInterrupt) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError):
                    if state.ended is not None:
                        return
                    if task is not None and task.cancelling():
                        raise
                self._follow(state.raised(step, error))
                if isinstance(error, KeyboardInterrupt):
                    raise
                return
            except (Exception, SystemExit) as error:
                commands = state.raised(step, error)
            else:
                commands = state.returned(step, output)
            work = self._follow(commands)
        place.step = None

    async def _traced(self, step: StepDefinition, event: Event) -> Any:
        with telemetry.step_span(step.id, event.event_type):
            try:
                with counted(step):
                    return await execute(step, event, self.info, self, recorded=True)
            except asyncio.CancelledError:
                if self._state.ended is None:
                    raise
                return None  # cancelled by the end of its run: not a failed step

    def _follow(self, commands: Commands) -> Work | None:
        """Perform *commands*: settle the end, or start tasks for all work but the first, which is returned."""
        if isinstance(commands, Ended):
            self._settle(commands, asyncio.current_task(self._loop))
            return None
        if not commands:
            return None
        for work in commands[1:]:
            self._begin(work)
        return commands[0]

    def _begin(self, work: Work) -> None:
        place = _Place()
        self._spawn(self._work(work, place), place)

    def _spawn(self, work: Coroutine[Any, Any, None], place: _Place) -> None:
        task = self._loop.create_task(work)
        self._tasks[task] = place
        task.add_done_callback(self._over)

    def _arm(self, deadline: float) -> None:
        if self._state.ended is None:
            self._timer = self._loop.call_at(deadline, self._time_out)

    def _time_out(self) -> None:
        self._stop(f"{TIMED_OUT}{self._timeout_secs:.10g}s")

    def _stop(self, why: str) -> None:
        commands = self._state.stopped(WorkflowError(why))
        if isinstance(commands, Ended):
            self._settle(commands, asyncio.current_task(self._loop))

    def _settle(self, ended: Ended, spared: asyncio.Task[Any] | None) -> None:
        """Give the outcome at once, then cancel what is in flight but *spared*, which is ending by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        refs = self.info.refs.finish(succeeded=ended.event is not None) if self.info.refs is not None else ()
        if ended.event is not None:
            self._result = WorkflowResult(ended.event, ended.data_json)
            if refs:
                self._result.remote_refs = {ref.uuid: ref for ref in refs}
            if self._memory is not None:
                self._result.state_json = self.exported
        if self._outcome is not None and not self._outcome.done():
            self._tell(self._outcome, ended)
        if self._on_end is not None:
            self._on_end(self)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        others = [task for task in self._tasks if task is not spared]
        for task in others:
            task.cancel()
        if others:
            self._timer = self._loop.call_later(CHASE_SECS[0], self._chase, 0)

    def _tell(self, outcome: asyncio.Future[WorkflowResult], ended: Ended) -> None:
        if self._result is not None:
            outcome.set_result(self._result)
        elif ended.error is not None:
            outcome.set_exception(ended.error)
            outcome.exception()  # nobody need ask for it: no warning then

    def _chase(self, times: int) -> None:
        """Say which steps swallow their cancellation, and cancel them again."""
        info, steps = self.info, ", ".join(self.running_step_ids)
        text = "run %s of %s is over, but still runs after %g s: %s"
        _LOG.warning(text, info.run_id, info.workflow_name, CHASE_SECS[times], steps)
        for task in list(self._tasks):
            task.cancel()
        times += 1
        self._timer = self._loop.call_later(CHASE_SECS[times], self._chase, times) if times < len(CHASE_SECS) else None

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._state.ended is None:
            if task.cancelled():
                self.cancel()
            elif error is not None:  # not a step's: those are caught where they are raised
                _LOG.error("run %s of %s broke", self.info.run_id, self.info.workflow_name, exc_info=error)
                self._stop(f"the run broke: {type(error).__name__}")
        self._gone(task)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not self._tasks:
            _ALIVE.discard(self)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._rest()

    def _rest(self) -> None:
        """Tell who waits for it that nothing of the run runs any more, if that is so."""
        if self._stopped is not None and not (self._tasks or self._in_threads or self._stopped.done()):
            self._stopped.set_result(None)

    def _when_stopped(self) -> asyncio.Future[None]:
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            self._rest()
        return self._stopped
