"""Every span, attribute and metric name, and the helpers that emit them. Only the OpenTelemetry API is used here.

What a span or a metric may carry: names, ids, sizes, durations, and the type and place of an error. Never a payload, an error's
message or a traceback: exceptions are not recorded and statuses have no description. While no SDK is installed nothing is
created. Metrics name no run and no caller: a series lives as long as the process, so what names one comes from a bounded set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeAlias, get_args

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

__all__ = [
    "Carried",
    "TraceContext",
    "active_runs",
    "call_span",
    "carried",
    "command_span",
    "current_trace_id",
    "enabled",
    "extract",
    "inject",
    "mark_failed",
    "metered",
    "note_attempt",
    "open_lanes",
    "queued_runs",
    "refused",
    "run_ended",
    "run_span",
    "sampled",
    "served_span",
    "step_ended",
    "step_span",
    "stream_lag",
]

TRACER = "blazen_peer"
RUN_SPAN = "blazen.run"  # followed by the workflow's name
STEP_SPAN = "blazen.step"  # followed by the step's id
COMMAND_SPAN = "blazen-peer"  # followed by the command

WORKFLOW_NAME = "blazen.workflow.name"
RUN_ID = "blazen.run.id"
STEP_ID = "blazen.step.id"
STEP_ATTEMPTS = "blazen.step.attempts"  # executions; said where there were more than one
EVENT_TYPE = "blazen.event.type"
NODE_ID = "blazen.node.id"
CLIENT_NODE_ID = "blazen.client.node.id"
CALLER = "blazen.caller"
INVOCATION_ID = "blazen.invocation.id"
DATA_CLASS = "blazen.data.class"
REQUEST_BYTES = "blazen.request.size_bytes"
RESPONSE_BYTES = "blazen.response.size_bytes"
ERROR_TYPE = "error.type"  # OpenTelemetry semantic conventions
RPC_SYSTEM = "rpc.system"
RPC_SERVICE = "rpc.service"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.grpc.status_code"

OUTCOME = "blazen.outcome"  # ok, failed, cancelled or timeout
REFUSAL = "blazen.refusal"  # an error's kind, or the status that the gate answers with
WAY = "blazen.way"  # how a call is carried: by a lane, or why alone
OTHER = "other"  # what a series is called whose own name would be one too many

MAX_NAMES = 256  # workflows, steps, methods with series of their own: a call may name what it likes
MAX_NAME_CHARS = 256  # a caller without a policy chooses the names of its workflows

PARENT_RUN_SPAN = "blazen-parent-run-span"  # the header; wire.metadata lets it through
_RUN = otel_context.create_key("blazen-run")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")

_OFF: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer(TRACER)
_METER = metrics.get_meter(TRACER)
_SECS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

_RUNS = _METER.create_counter("blazen.runs", unit="{run}", description="Runs that have ended, by workflow and outcome.")
_RUN_SECS = _METER.create_histogram(
    "blazen.run.duration", unit="s", description="From a run's beginning to its end.", explicit_bucket_boundaries_advisory=_SECS
)
_STEPS = _METER.create_counter("blazen.steps", unit="{step}", description="Steps that have ended, by step and outcome.")
_STEP_SECS = _METER.create_histogram(
    "blazen.step.duration",
    unit="s",
    description="From a step's beginning to its end, its repeats included.",
    explicit_bucket_boundaries_advisory=_SECS,
)
_ACTIVE = _METER.create_up_down_counter(
    "blazen.runs.active", unit="{run}", description="Remote calls whose run is in progress."
)
_QUEUED = _METER.create_up_down_counter(
    "blazen.runs.queued", unit="{run}", description="Remote calls that wait for their turn."
)
_REFUSALS = _METER.create_counter(
    "blazen.refusals", unit="{call}", description="Calls that were refused, by method and reason."
)
_LANES = _METER.create_up_down_counter("blazen.lanes.open", unit="{lane}", description="Lanes of callers that are open.")
_CARRIED = _METER.create_counter(
    "blazen.calls.carried", unit="{call}", description="Calls that this process makes, by a lane, or why alone."
)
Carried: TypeAlias = Literal["lane", "never", "sampled", "large", "given-id", "none"]
_WAYS: dict[Carried, dict[str, str]] = {way: {WAY: way} for way in get_args(Carried)}
_LAG = _METER.create_histogram(
    "blazen.stream.lag",
    unit="{event}",
    description="Events that a stream's reader was behind when it was given one.",
    explicit_bucket_boundaries_advisory=(0, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
)
# Each call asks several times whether there is a provider, and while there is none OpenTelemetry's public way reads the
# environment each time, for 3 us of 50. So we look where it looks, as long as that is there. What the environment names
# was loaded when the tracer and the meter above were made.
_TRACERS_TELL = hasattr(trace, "_TRACER_PROVIDER")
_METERS_TELL = hasattr(getattr(metrics, "_internal", None), "_METER_PROVIDER")
_names: dict[str, set[str]] = {WORKFLOW_NAME: set(), STEP_ID: set(), RPC_METHOD: set()}


def enabled() -> bool:
    """Say whether a tracer provider that could record anything is installed in this process."""
    if _TRACERS_TELL and trace._TRACER_PROVIDER is None:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def extract(headers: Mapping[str, str]) -> TraceContext | None:
    """Return the remote trace context of *headers* (lower-case names), with the caller's run's; None where there is none."""
    if "traceparent" not in headers:
        return None
    context = _PROPAGATOR.extract(headers, context=TraceContext())
    if _SPAN_ID.fullmatch(span_id := headers.get(PARENT_RUN_SPAN, "")):
        caller = trace.get_current_span(context).get_span_context()
        run = SpanContext(caller.trace_id, int(span_id, 16), is_remote=True, trace_flags=caller.trace_flags)
        context = otel_context.set_value(_RUN, run, context)
    return context


def inject() -> dict[str, str]:
    """Return the W3C headers of the current span, and the span of the run around it; empty where there is no valid one."""
    headers: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        _PROPAGATOR.inject(headers)
        if isinstance(run := otel_context.get_value(_RUN), SpanContext):
            headers[PARENT_RUN_SPAN] = trace.format_span_id(run.span_id)
    return headers


def current_trace_id() -> str | None:
    """Return the current trace's id, 32 hex digits, or None outside any trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def sampled() -> bool:
    """Say whether the current span is one that its trace keeps, here or at who began it."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


def mark_failed(span: Span, error: BaseException | str) -> None:
    """Mark *span* as failed by the type of *error* alone (or by that name)."""
    if span.is_recording():
        span.set_attribute(ERROR_TYPE, error if isinstance(error, str) else type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR))


def run_span(
    workflow: str,
    run_id: str,
    *,
    node_id: str | None = None,
    caller: object = None,
    invocation_id: str | None = None,
    data_class: str | None = None,
    parent: TraceContext | None = None,
) -> AbstractContextManager[Span]:
    """Return the span of one run, current while entered; a child of *parent*, or of what is current.

    Where it was asked for by a step of another run, here or at another peer, it is linked to that run's span as well.
    """
    if not enabled():
        return _passing(parent)
    attributes: dict[str, AttributeValue] = {WORKFLOW_NAME: workflow, RUN_ID: run_id}
    known = ((NODE_ID, node_id), (CALLER, caller), (INVOCATION_ID, invocation_id), (DATA_CLASS, data_class))
    attributes.update({name: str(value) for name, value in known if value is not None})
    return _run(f"{RUN_SPAN} {workflow}", attributes, parent)


def step_span(step_id: str, event_type: str) -> AbstractContextManager[Span]:
    """Return the span of one step's execution; nothing where the run itself is not recorded."""
    if not trace.get_current_span().is_recording():
        return _OFF
    return _span(f"{STEP_SPAN} {step_id}", SpanKind.INTERNAL, {STEP_ID: step_id, EVENT_TYPE: event_type}, None)


def note_attempt(attempt: int) -> None:
    """Say on the step's span that its execution number *attempt* begins."""
    trace.get_current_span().set_attribute(STEP_ATTEMPTS, attempt)


def call_span(service: str, method: str) -> AbstractContextManager[Span]:
    """Return the client's span of one RPC, current while entered (so that :func:`inject` carries it)."""
    if not enabled():
        return _OFF
    return _span(f"{service}/{method}", SpanKind.CLIENT, _rpc(service, method), None)


def command_span(command: str, workflow: str) -> AbstractContextManager[Span]:
    """Return the root span of one command of ``blazen-peer``."""
    if not enabled():
        return _OFF
    return _span(f"{COMMAND_SPAN} {command}", SpanKind.INTERNAL, {WORKFLOW_NAME: workflow}, None)


def served_span(service: str, method: str, parent: TraceContext | None) -> AbstractContextManager[Span]:
    """Return the server's span of one RPC, a child of the caller's context *parent*, or a root where there is none."""
    if not enabled():
        return _passing(parent)
    return _served(f"{service}/{method}", _rpc(service, method), parent or TraceContext())


def metered() -> bool:
    """Say whether a meter provider that could record anything is installed in this process."""
    if _METERS_TELL and metrics._internal._METER_PROVIDER is None:
        return False
    # The API's own providers record nothing; they have no public common class.
    return not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")


def run_ended(workflow: str, outcome: str, duration_secs: float) -> None:
    """Count a run of *workflow*; *outcome* is ``ok``, ``failed``, ``cancelled`` or ``timeout``."""
    attributes = {WORKFLOW_NAME: _bounded(WORKFLOW_NAME, workflow), OUTCOME: outcome}
    _RUNS.add(1, attributes)
    _RUN_SECS.record(duration_secs, attributes)


def step_ended(step_id: str, outcome: str, duration_secs: float) -> None:
    """Count an execution of a step, its repeats included; *outcome* is ``ok``, ``failed`` or ``cancelled``."""
    attributes = {STEP_ID: _bounded(STEP_ID, step_id), OUTCOME: outcome}
    _STEPS.add(1, attributes)
    _STEP_SECS.record(duration_secs, attributes)


def active_runs(change: int) -> None:
    """Say that *change* more remote calls have a run in progress."""
    _ACTIVE.add(change)


def queued_runs(change: int) -> None:
    """Say that *change* more remote calls wait for their turn."""
    _QUEUED.add(change)


def refused(method: str, reason: str) -> None:
    """Count a call of *method*, as the wire names it, that was refused; *reason* is an error's kind or the gate's status."""
    _REFUSALS.add(1, {RPC_METHOD: _bounded(RPC_METHOD, method), REFUSAL: reason})


def open_lanes(change: int) -> None:
    """Say that *change* more lanes of callers are open."""
    _LANES.add(change)


def carried(way: Carried) -> None:
    """Count a call that this process makes: by a lane, or alone, and then why.

    ``never``: the client is told so. ``sampled``: its trace is. ``large``: its envelope is. ``given-id``: its caller chose its
    id, and there are replicas. ``none``: the peer has no lane, or none could be opened.
    """
    _CARRIED.add(1, _WAYS[way])


def stream_lag(events: int) -> None:
    """Say how many *events* a stream's reader has still before it."""
    _LAG.record(events)


def _bounded(kind: str, name: str) -> str:
    known = _names[kind]
    if name in known:
        return name
    if len(known) >= MAX_NAMES or len(name) > MAX_NAME_CHARS:
        return OTHER
    known.add(name)
    return name


def _rpc(service: str, method: str) -> dict[str, AttributeValue]:
    return {RPC_SYSTEM: "grpc", RPC_SERVICE: service, RPC_METHOD: method}


@contextmanager
def _served(name: str, attributes: Mapping[str, AttributeValue], parent: TraceContext) -> Iterator[Span]:
    token = otel_context.attach(parent)  # whatever it holds: the caller's run, for one
    try:
        with _span(name, SpanKind.SERVER, attributes, None) as span:
            yield span
    finally:
        otel_context.detach(token)


@contextmanager
def _passed(parent: TraceContext) -> Iterator[Span]:
    token = otel_context.attach(parent)
    try:
        yield trace.INVALID_SPAN
    finally:
        otel_context.detach(token)


def _passing(parent: TraceContext | None) -> AbstractContextManager[Span]:
    """With tracing off, hand a caller's trace context on to the calls made inside; nothing where there is none."""
    return _OFF if parent is None else _passed(parent)


@contextmanager
def _run(name: str, attributes: Mapping[str, AttributeValue], parent: TraceContext | None) -> Iterator[Span]:
    with _span(name, SpanKind.INTERNAL, attributes, parent, otel_context.get_value(_RUN, parent)) as span:
        token = otel_context.attach(otel_context.set_value(_RUN, span.get_span_context()))
        try:
            yield span
        finally:
            otel_context.detach(token)


@contextmanager
def _span(
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, AttributeValue],
    parent: TraceContext | None,
    caller_run: object = None,
) -> Iterator[Span]:
    links = [Link(caller_run)] if isinstance(caller_run, SpanContext) else None
    with _TRACER.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            mark_failed(span, error)
            raise
