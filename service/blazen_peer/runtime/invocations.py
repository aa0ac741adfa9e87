"""What a server does for one call, knowing nothing of gRPC: an envelope in, a run, an envelope out, or the run's events.

A call belongs to this table and not to who waits for it: a caller that goes away severs only its own wait. One that carries an
invocation id is remembered beyond its end, so that its repeat gets the same answer and is never run again.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from blazen_peer import telemetry
from blazen_peer.config import ServerSettings
from blazen_peer.errors import (
    EncodeError,
    InvocationConflictError,
    InvocationNotFoundError,
    OtherProcessError,
    OverloadedError,
    TransportError,
)
from blazen_peer.identity import Caller
from blazen_peer.runtime.envelopes import MAX_INLINE_BYTES, answer_of, read_input
from blazen_peer.runtime.event_log import Gap, LoggedEvent
from blazen_peer.runtime.execution import CANCELLED, TIMED_OUT
from blazen_peer.runtime.invocation import Invocation
from blazen_peer.runtime.ref_serving import RefServing
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.resolution import Resolution
from blazen_peer.runtime.rulings import Rulings, RunLabel, label_of
from blazen_peer.runtime.run import Run
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.runtime.run_table import Answered, Key, MemoryRunTable, Running, RunTable, Tombstone, key_of
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.wire import SubWorkflowEvent, SubWorkflowRequest, SubWorkflowResponse
from blazen_peer.wire.cancellation import CancelOutcome, CancelReport
from blazen_peer.wire.metadata import CallMetadata
from blazen_peer.wire.stream import HEARTBEAT_SECS, end_of, gap_of, heartbeat_of

__all__ = ["Invocations"]

_RETRY_AFTER_SECS = 1.0
_FRAME_BYTES = 1024  # what a message of a stream holds beside its event's data, at most

_LOG = logging.getLogger(__name__)


class Invocations:
    """The calls of one server.

    Args:
        node_id: The server's own name.
        registry: Where step ids and workflow names are looked up; nothing else on the wire names code.
        settings: The limits.
        refs: Where the runs' session refs are held.
        workflows: The server's own workflows by name; they come before the registry's.
        rulings: The policy; None: everybody who is admitted may run everything.
        instance_id: This process's own; a repeat that is for another process is refused.
        heartbeat_secs: After how long of nothing a stream says so.
    """

    def __init__(
        self,
        node_id: str,
        registry: Registry,
        settings: ServerSettings,
        refs: RefServing,
        workflows: Mapping[str, Workflow] = MappingProxyType({}),
        *,
        rulings: Rulings | None = None,
        instance_id: str = "",
        heartbeat_secs: float = HEARTBEAT_SECS,
    ) -> None:
        self._node_id, self._settings, self._refs, self._rulings = node_id, settings, refs, rulings
        self._resolution = Resolution(registry, workflows, rulings)
        self._instance_id, self._heartbeat_secs = instance_id, heartbeat_secs
        self._loop = asyncio.get_running_loop()
        # Read anew each time: a test may take the loop's time over after the server began.
        self._table: RunTable[Invocation] = MemoryRunTable(lambda: float(self._loop.time()))
        self._log_limits = settings.stream_events, min(settings.stream_bytes, settings.max_message_bytes - _FRAME_BYTES)
        self._running: set[Invocation] = set()
        self._queue: dict[Invocation, _Queued] = {}  # in the order they came
        self._stopping: dict[Key, tuple[Run, float]] = {}  # failed runs whose steps go on, and when each was stopped
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False

    @property
    def in_progress(self) -> int:
        """How many calls are not answered: their runs have not ended, or not begun."""
        return len(self._running) + len(self._queue)

    async def invoke(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
        """Answer one ``InvokeSubWorkflow``: a response envelope for whatever became of the run.

        Raises:
            EncodeError, EnvelopeVersionError, UnknownStepError: The request cannot be run.
            PermissionDeniedError: The policy does not allow it.
            InvocationConflictError: Its invocation id was used for another request, or its answer is no longer kept.
            OverloadedError: As many runs as may be are in progress, and as many as may be wait.
            TransportError: The server is going away, or is another process than the call is for; nothing ran.
        """
        return await (await self._call(payload, caller, metadata)).wait()

    async def stream(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> AsyncIterator[SubWorkflowEvent]:
        """Do as :meth:`invoke`, and give what the run emits after the caller's cursor, then how it ended."""
        invocation = await self._call(payload, caller, metadata)
        async for event in self._events(invocation, metadata.cursor or 0):
            yield event

    async def attach(self, caller: Caller, invocation_id: str, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        """Give what a call of *caller*'s emits after *cursor*, then how it ended.

        Raises:
            InvocationNotFoundError: There is no such call of this caller's, or nothing of it is kept.
            EncodeError: The cursor is beyond the last event.
        """
        key = key_of(caller, invocation_id)
        match self._found(caller, key):
            case Running(run=invocation):
                pass
            case Answered(answer=answer, events=log):
                invocation = Invocation.answered(self._loop, key, answer, log)
            case _:
                raise _not_found(invocation_id)
        async for event in self._events(invocation, cursor):
            yield event

    async def cancel(self, caller: Caller, invocation_id: str, grace_secs: float) -> CancelReport:
        """Stop a call of *caller*'s, and wait up to *grace_secs* until its steps have let go.

        Raises:
            InvocationNotFoundError: There is no such call of this caller's.
        """
        key = key_of(caller, invocation_id)
        known = self._found(caller, key)
        if known is None:
            raise _not_found(invocation_id)
        if isinstance(known, Running):
            invocation = known.run
            if invocation.run is None:
                self._end_queued(invocation, CANCELLED)
                return CancelReport(CancelOutcome.STOPPED)
            invocation.run.cancel()
        if (stopping := self._stopping.get(key)) is None:
            return CancelReport(CancelOutcome.ALREADY_FINISHED)
        run, since = stopping
        if await run.wait_stopped(min(grace_secs, self._settings.max_timeout_secs)):
            return CancelReport(CancelOutcome.STOPPED)
        return CancelReport(CancelOutcome.STILL_STOPPING, run.running_step_ids, self._loop.time() - since)

    def refuse_new(self) -> None:
        """Refuse every call from now on that is no repeat: the server is going away."""
        self._refusing = True

    async def wait_idle(self, timeout_secs: float) -> bool:
        """Wait until no call is in progress, at most *timeout_secs*; say whether that is so."""
        try:
            async with asyncio.timeout(timeout_secs):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @property
    def untaken(self) -> int:
        """How many answers are kept for callers that come for them."""
        return self._table.untaken

    def cancel_all(self) -> int:
        """Cancel the calls in progress and return how many they were."""
        queued, running = list(self._queue), list(self._running)
        for invocation in queued:
            self._end_queued(invocation, CANCELLED)
        for invocation in running:
            if invocation.run is not None:
                invocation.run.cancel()
        return len(queued) + len(running)

    def begin(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Invocation:
        """Begin what :meth:`invoke` answers, or find it again, for a caller that fetches what is over ``MAX_INLINE_BYTES``.

        Such an answer is kept until its repeat comes for it. *payload* is at most as large. Raises as :meth:`invoke`.
        """
        invocation = self._inline(payload, caller, metadata)
        invocation.fetched = True
        return invocation

    def _inline(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Invocation:
        request, workflow, stamp = self._asked(payload, caller, metadata)
        document, fingerprint = read_input(request, metadata.invocation_id is not None, stamp)
        return self._begun(request, workflow, document, fingerprint, caller, metadata)

    async def _call(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Invocation:
        """Return the call that *payload* asks for: begun now, or before where this is a repeat."""
        if len(payload) <= MAX_INLINE_BYTES:
            return self._inline(payload, caller, metadata)
        request, workflow, stamp = self._asked(payload, caller, metadata)
        document, fingerprint = await asyncio.to_thread(read_input, request, metadata.invocation_id is not None, stamp)
        return self._begun(request, workflow, document, fingerprint, caller, metadata)

    def _asked(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> tuple[SubWorkflowRequest, Workflow, str | None]:
        """Return what *payload* says, the workflow that it means, and the data class that counts for it."""
        if metadata.instance_id is not None and metadata.instance_id != self._instance_id:
            raise OtherProcessError("another process answers here than the one that this call is for", self._instance_id)
        request = SubWorkflowRequest.decode(payload)
        workflow = self._resolution.workflow(request, caller, metadata)
        return request, workflow, None if self._rulings is None else self._rulings.stamp_of(caller)

    def _begun(
        self,
        request: SubWorkflowRequest,
        workflow: Workflow,
        document: object,
        fingerprint: bytes,
        caller: Caller,
        metadata: CallMetadata,
    ) -> Invocation:
        """Begin the call, or find it again. Nothing here waits: two repeats cannot both find nothing."""
        key = None if metadata.invocation_id is None else key_of(caller, metadata.invocation_id)
        data_class = self._resolution.data_class(workflow, document, caller, metadata)
        if key is not None and (known := self._table.find(key)) is not None:
            return self._repeated(key, known, fingerprint)
        if self._refusing:
            raise TransportError("this peer is going away", may_have_run=False)
        invocation = Invocation(self._loop, key, self._log_limits, self._over)
        invocation.data_class = data_class
        timeout_secs = self._timeout_secs(request, metadata)
        begin = self._start if len(self._running) < self._settings.max_runs else self._wait_for_turn
        begin(invocation, workflow, document, caller, metadata, timeout_secs)
        if key is not None:
            self._table.begin(key, fingerprint, invocation, self._label(workflow, invocation))
        return invocation

    def _found(self, caller: Caller, key: Key) -> Running[Invocation] | Answered | Tombstone | None:
        """Return what is known of a call of *caller*'s and may be told through the port that it came by now."""
        known = self._table.find(key)
        if known is None or self._rulings is None or self._rulings.admits(caller, known.label, f"invocation {key[2]}"):
            return known
        return None

    def _label(self, workflow: Workflow, invocation: Invocation) -> RunLabel | None:
        return None if self._rulings is None else label_of(workflow.name, invocation.data_class)

    def _repeated(self, key: Key, known: Running[Invocation] | Answered | Tombstone, fingerprint: bytes) -> Invocation:
        """Return the call of which this is a repeat.

        Raises:
            InvocationConflictError: It is none, or the answer is no longer kept.
        """
        if isinstance(known, Tombstone):
            raise InvocationConflictError(
                f"invocation {key[2]} has ended and its answer is no longer kept: it is not run again"
            )
        if known.fingerprint != fingerprint:
            raise InvocationConflictError(f"invocation id {key[2]} was used for another request: use a new id for each call")
        return known.run if isinstance(known, Running) else Invocation.answered(self._loop, key, known.answer, known.events)

    def _start(
        self,
        invocation: Invocation,
        workflow: Workflow,
        document: object,
        caller: Caller,
        metadata: CallMetadata,
        timeout_secs: float,
        deadline: float | None = None,
    ) -> None:
        run = workflow.start(
            document,
            caller=caller,
            invocation_id=metadata.invocation_id,
            node_id=self._node_id,
            timeout_secs=timeout_secs,
            deadline=deadline,
            on_end=invocation.over,
            emit=invocation.emit,
            refs=RunRefs(
                self._refs.table,
                caller,
                parent_run_id=metadata.parent_run_id,
                listed=True,
                label=self._label(workflow, invocation),
            ),
            data_class=invocation.data_class,
            classes=() if self._rulings is None else self._rulings.classes,
        )
        self._running.add(invocation)
        telemetry.active_runs(1)
        self._idle.clear()
        invocation.begun(run)

    def _over(self, invocation: Invocation, run: Run) -> None:
        """A run has ended: keep its answer, and give the next its turn. Called by the run before it wakes who waits."""
        self._running.discard(invocation)
        telemetry.active_runs(-1)
        self._refs.watch_leases()
        if run.error is not None and invocation.key is not None:
            self._stopping[invocation.key] = run, self._loop.time()
            run.on_stopped(partial(self._stopping.pop, invocation.key, None))
        self._answer(invocation, run)
        while self._queue and len(self._running) < self._settings.max_runs:
            queued = self._queue.pop(next(iter(self._queue)))
            telemetry.queued_runs(-1)
            queued.begin()
        if not self._running and not self._queue:
            self._idle.set()

    def _answer(self, invocation: Invocation, run: Run) -> None:
        try:
            self._finish(invocation, answer_of(run))
        except Exception:
            _LOG.exception("a defect kept the answer of run %s", run.info.run_id)
            self._finish(invocation, SubWorkflowResponse(error="workflow error: the answer could not be written").encode())

    def _finish(self, invocation: Invocation, answer: bytes) -> None:
        invocation.ended(answer)
        if invocation.key is not None:
            untaken = invocation.fetched and len(answer) > MAX_INLINE_BYTES
            self._table.finish(invocation.key, answer, invocation.emitted, untaken=untaken)

    def _wait_for_turn(
        self,
        invocation: Invocation,
        workflow: Workflow,
        document: object,
        caller: Caller,
        metadata: CallMetadata,
        timeout_secs: float,
    ) -> None:
        """Begin the call when another ends. Its waiting counts against its time."""
        if len(self._queue) >= self._settings.max_queued_runs:
            raise OverloadedError(
                f"{len(self._running)} runs are in progress and {len(self._queue)} wait, as many as may", _RETRY_AFTER_SECS
            )
        deadline = self._loop.time() + timeout_secs
        why = f"{TIMED_OUT}{timeout_secs:.10g}s"
        timer = self._loop.call_at(deadline, self._end_queued, invocation, why)
        # Its trace and its other context variables are its caller's, and not those of the run whose end gives it its turn.
        start = partial(self._start, invocation, workflow, document, caller, metadata, timeout_secs, deadline)
        self._queue[invocation] = _Queued(start, timer, contextvars.copy_context())
        telemetry.queued_runs(1)

    def _end_queued(self, invocation: Invocation, why: str) -> None:
        self._queue.pop(invocation).timer.cancel()
        telemetry.queued_runs(-1)
        self._finish(invocation, SubWorkflowResponse(error=why).encode())
        if not self._running and not self._queue:
            self._idle.set()

    async def _events(self, invocation: Invocation, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        if cursor > invocation.log.last:
            raise EncodeError(f"cursor {cursor} is beyond the last event, {invocation.log.last}")
        async for item in invocation.log.read(cursor, self._heartbeat_secs):
            if isinstance(item, LoggedEvent):
                cursor = item.sequence
                telemetry.stream_lag(invocation.log.last - cursor)
                yield SubWorkflowEvent(*item)
            elif isinstance(item, Gap):
                cursor = item.last
                yield gap_of(*item)
            else:
                yield heartbeat_of(cursor)
        yield end_of(cursor, SubWorkflowResponse.decode(await invocation.wait()))

    def _timeout_secs(self, request: SubWorkflowRequest, metadata: CallMetadata) -> float:
        """Return the time of the run in seconds: the exact one where it is told, never more than the server's most."""
        if request.timeout_secs is None:
            return self._settings.default_timeout_secs
        exact_secs = math.inf if metadata.timeout_ms is None else metadata.timeout_ms / 1000
        return min(request.timeout_secs, exact_secs, self._settings.max_timeout_secs)


class _Queued(NamedTuple):
    """A call that waits for its turn: how it begins, when it is too late, and in whose context."""

    start: Callable[[], None]
    timer: asyncio.TimerHandle
    context: contextvars.Context

    def begin(self) -> None:
        self.timer.cancel()
        self.context.run(self.start)


def _not_found(invocation_id: str) -> InvocationNotFoundError:
    return InvocationNotFoundError(f"no invocation {invocation_id} of this caller's is known here")
