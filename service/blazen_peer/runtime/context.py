"""What a step may know about its run, and do to it: who called it, how long it has, the run's state, events to send."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Hashable, MutableMapping
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from blazen_peer import telemetry
from blazen_peer.engine import StepDefinition
from blazen_peer.errors import ValidationError
from blazen_peer.events import Event
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.local_refs import local_table
from blazen_peer.runtime.memory import RunMemory
from blazen_peer.runtime.ref_values import Serializer
from blazen_peer.runtime.refs import RefLifetime, RemoteRef
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.wire.stream import RESERVED_PREFIX

__all__ = ["Context", "RunInfo", "RunPort", "current_run", "until_run_ends"]

E = TypeVar("E", bound=Event)

_STEP_LOG = logging.getLogger("blazen_peer.step")


def _no_clock() -> float:
    return 0.0


class RunInfo(NamedTuple):
    """The facts of one run.

    Attributes:
        workflow_name: The workflow's name.
        run_id: Unique to this run.
        caller: Who asked for it, as the gate saw them; ``ANONYMOUS`` for a local run.
        invocation_id: The caller's id of this call, if it gave one.
        node_id: The node that it runs on, where a server runs it.
        deadline: When it must be over, on ``clock``, in seconds; None: no deadline.
        clock: Seconds now, on the same clock; callable from any thread.
        refs: Its session refs; None where there is no run.
        emit: Takes the type and the JSON of an event for the run's stream, in any thread; None: nobody can read one.
        data_class: The class of its data; None: it has none.
        classes: The data classes of the mesh, strictest first, where they are known here.
    """

    workflow_name: str = ""
    run_id: str = ""
    caller: Caller = ANONYMOUS
    invocation_id: str | None = None
    node_id: str | None = None
    deadline: float | None = None
    clock: Callable[[], float] = _no_clock
    refs: RunRefs | None = None
    emit: Callable[[str, bytes], None] | None = None
    data_class: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def time_left_secs(self) -> float | None:
        """Seconds until the deadline, not below 0; None: no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - self.clock())


class RunPort(Protocol):
    """What is done to a run from inside its steps. The memory and ``send`` may be used from any thread."""

    @property
    def memory(self) -> RunMemory:
        """What the run's steps keep between them."""

    def send(self, step_id: str, event: Event) -> None:
        """Route *event*, which the step *step_id* sends."""

    async def call_in_thread(self, step: StepDefinition, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return what ``call(*args)`` gives in a thread, for *step*."""

    def abandon(self, task: asyncio.Task[Any], step: StepDefinition) -> None:
        """Cancel *task*, which executes *step*, and keep it until it is over."""


class _NoRun:
    """A run that is none, for unit tests of steps: it remembers, and keeps what is sent."""

    def __init__(self) -> None:
        self.memory = RunMemory()
        self.sent: list[Event] = []

    def send(self, step_id: str, event: Event) -> None:
        self.sent.append(event)

    async def call_in_thread(self, step: StepDefinition, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return await asyncio.to_thread(call, *args)

    def abandon(self, task: asyncio.Task[Any], step: StepDefinition) -> None:
        task.cancel()


class _StepLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's names to each record, beside what the call itself adds."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


class Context:
    """Given to a step that asks for it by a second parameter: ``async def analyze(event: StartEvent, ctx: Context)``.

    ``Context()`` alone makes one for a unit test of a step: an anonymous run without a deadline, with a state of its own, and
    what the step sends in ``sent_events``. All of it may be used from a plain step's thread as well.
    """

    __slots__ = ("_attempt", "_collected", "_port", "_run", "_step_id")

    def __init__(
        self,
        run: RunInfo | None = None,
        step_id: str = "",
        port: RunPort | None = None,
        attempt: int = 1,
        collected: dict[Hashable, Any] | None = None,
    ) -> None:
        self._run = run if run is not None else RunInfo(refs=RunRefs(local_table()))
        self._step_id = step_id
        self._port: RunPort = port if port is not None else _NoRun()
        self._attempt = attempt
        self._collected = collected

    def get(self, key: str, default: Any = None) -> Any:
        """Return what a step of this run set as *key*, or *default*."""
        return self._port.memory.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Keep *value*, any object, as *key* for the steps of this run; it goes with the run."""
        self._port.memory.values[key] = value

    def export(self, key: str, value: Any) -> None:
        """Set *value* as *key*, and send it back with the run's result, as it is now: ``WorkflowResult.state``.

        Args:
            key: Printable text.
            value: Any JSON value.

        Raises:
            ValidationError: It is not strict JSON. Let it pass, and the run fails, naming this step and the key.
        """
        self._port.memory.export(key, value)

    def send_event(self, event: Event) -> None:
        """Route *event* now, while this step goes on, as if the step had returned it; a ``StopEvent`` ends the run.

        Declare it by the step's ``emits=``, so that the workflow's check knows of it. After the run's end nothing happens.
        """
        if not isinstance(event, Event):
            raise ValidationError(f"send_event takes an event, not {type(event).__name__}")
        self._port.send(self._step_id, event)

    def collect(self, event: E, count: int, *, key: Hashable = None) -> list[E] | None:
        """Keep *event* until *count* of its type have come to this step, then return these, in the order they came.

        Until then it returns None, which the step returns as well. What was returned is forgotten, so the next *count* make
        the next list, and no more than *count* events are ever held. Where a ``retry`` executes the step again with the same
        event, it gets what it got before.

        Args:
            event: What the step was given.
            count: How many make a list.
            key: Collects apart what belongs apart: a batch's number, say.

        Raises:
            ValidationError: *count* is below 1.
        """
        place = (self._step_id, event.event_type, key)
        if self._collected is None:
            return self._port.memory.gather(place, event, count)
        if self._attempt == 1 or place not in self._collected:
            self._collected[place] = self._port.memory.gather(place, event, count)
        found: list[E] | None = self._collected[place]
        return found

    @property
    def sent_events(self) -> list[Event]:
        """What was sent through a ``Context()`` of a unit test; empty in a run."""
        return list(self._port.sent) if isinstance(self._port, _NoRun) else []

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger ``blazen_peer.step``, whose records have ``run_id``, ``trace_id`` (32 hex digits, or None), ``step_id``,
        ``workflow_name`` and ``invocation_id``."""
        run = self._run
        extra = {
            "run_id": run.run_id,
            "trace_id": telemetry.current_trace_id(),
            "step_id": self._step_id,
            "workflow_name": run.workflow_name,
            "invocation_id": run.invocation_id,
        }
        return _StepLogger(_STEP_LOG, extra)

    @property
    def attempt(self) -> int:
        """Which execution this is of the same event, from 1; more where the step has a ``retry``."""
        return self._attempt

    @property
    def step_id(self) -> str:
        """The id of the step that runs."""
        return self._step_id

    @property
    def workflow_name(self) -> str:
        """The workflow's name."""
        return self._run.workflow_name

    @property
    def run_id(self) -> str:
        """Unique to this run."""
        return self._run.run_id

    @property
    def caller(self) -> Caller:
        """Who asked for this run, as the gate saw them; ``ANONYMOUS`` for a local run."""
        return self._run.caller

    @property
    def invocation_id(self) -> str | None:
        """The caller's id of this call, if it gave one."""
        return self._run.invocation_id

    @property
    def data_class(self) -> str | None:
        """The class of the run's data; its remote calls go through ports that stamp it, or a stricter one. None: no class."""
        return self._run.data_class

    @property
    def node_id(self) -> str | None:
        """The node that this runs on; None outside a server."""
        return self._run.node_id

    @property
    def deadline(self) -> float | None:
        """When the run must be over, on the event loop's clock, in seconds; None: no deadline."""
        return self._run.deadline

    @property
    def time_left_secs(self) -> float | None:
        """Seconds until the deadline, not below 0; None: no deadline."""
        return self._run.time_left_secs

    def emit(self, event: Event) -> None:
        """Show *event* to whoever reads the run's stream: now or later, one or many, at their own pace. No step gets it.

        It never waits. The run keeps a bounded number of its newest events; a reader that falls behind is told what it missed.
        A run that no server runs has no stream, and its events go nowhere.

        Raises:
            ValidationError: It is no event, has a reserved name (``blazen::...``), is not strict JSON, or is too large to keep.
        """
        if not isinstance(event, Event):
            raise ValidationError(f"only events can be emitted, not {type(event).__name__}")
        if event.event_type.startswith(RESERVED_PREFIX):
            raise ValidationError(f"{event.event_type} cannot be emitted: names that begin with {RESERVED_PREFIX} are reserved")
        data_json = event.data_json.encode()
        if self._run.emit is not None:
            self._run.emit(event.event_type, data_json)

    def put_ref(
        self,
        value: Any,
        *,
        type_tag: str,
        serializer: Serializer | None = None,
        lifetime: RefLifetime | str = RefLifetime.CONTEXT,
        lease_secs: float | None = None,
        size_bytes: int | None = None,
    ) -> RemoteRef:
        """Leave a live value on this node and return its ref, by which the run's caller may fetch it. Callable in any thread.

        Args:
            value: Any object.
            type_tag: Says what it is, to whoever reads it: 1 to 512 bytes of text, such as ``my_app::Model``.
            serializer: Makes its bytes, all at once or piece by piece. It is called in a thread for each reading, so that the
                value is read as it is then. None: the value is bytes, or else it is for the steps of this node alone.
            lifetime: ``context`` (the default), ``explicit_drop``, ``snapshot`` or ``parent_finish``: see ``RefLifetime``.
            lease_secs: How long it lives unused once the run is over, in seconds; None: as the server's settings say.
            size_bytes: What it counts for against the limits; None: the serializer is called now, to find out.

        Raises:
            OverloadedError: A limit of this run or of the server is reached. Not caught, it fails the run.
            ValidationError: An argument is not usable, or the run is over.
        """
        return self._refs.put(
            value,
            type_tag=type_tag,
            serializer=serializer,
            lifetime=lifetime,
            lease_secs=lease_secs,
            size_bytes=size_bytes,
        )

    def get_ref(self, ref: RemoteRef | UUID | str) -> Any:
        """Return the live value of a ref of the same caller on this node, put in this run or another.

        Raises:
            RefNotFoundError: There is none.
            ValidationError: *ref* is no uuid.
        """
        return self._refs.value(_uuid_of(ref))

    def drop_ref(self, ref: RemoteRef | UUID | str) -> bool:
        """Forget a ref of the same caller on this node; return whether there was one.

        Raises:
            ValidationError: *ref* is no uuid.
        """
        return self._refs.drop(_uuid_of(ref))

    def before_snapshot(self) -> int:
        """Forget this run's refs of lifetime ``snapshot``; return how many they were.

        For whoever saves a run's state or sets the run aside: what is saved must not speak of values that do not last.
        """
        return self._refs.before_snapshot()

    @property
    def _refs(self) -> RunRefs:
        refs = self._run.refs
        if refs is None:
            raise ValidationError("session refs belong to a run, and this is none")
        return refs

    def __repr__(self) -> str:
        return f"Context(step_id={self._step_id!r}, run_id={self.run_id!r}, caller={str(self.caller)!r})"


def _uuid_of(ref: RemoteRef | UUID | str) -> UUID:
    if isinstance(ref, RemoteRef):
        return ref.uuid
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except (ValueError, TypeError, AttributeError):
        raise ValidationError(f"{str(ref)[:64]!r} is not the uuid of a session ref") from None


_CURRENT: ContextVar[RunInfo | None] = ContextVar("blazen_peer_run", default=None)


def current_run() -> RunInfo | None:
    """Return the run whose step this code is called in, in a step's thread as well; None outside any.

    A remote call uses it to get at most its parent's time.
    """
    return _CURRENT.get()


def enter_run(info: RunInfo) -> None:
    """Make *info* the current run of this task and of the tasks and threads that it starts."""
    _CURRENT.set(info)


def until_run_ends(run: RunInfo | None) -> Callable[[Future[Any]], None] | None:
    """Return what has a wait of this thread cancelled at the end of *run*, which no cancellation of a task reaches.

    A thread waits for one call at a time, so that the last one told is the one.
    """
    refs = None if run is None else run.refs
    if refs is None:
        return None

    def begun(wait: Future[Any]) -> None:
        def cancel() -> None:
            wait.cancel()

        refs.at_end((until_run_ends, threading.get_ident()), cancel)

    return begun
