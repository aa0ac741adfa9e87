"""The methods of runs beside the unary call: the stream of ``blazen.peer.v1``, and in our own service Cancel and Attach."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import Span

from blazen_peer import telemetry
from blazen_peer.errors import BlazenError, EncodeError
from blazen_peer.identity import Caller
from blazen_peer.transport.gate import ADMITTED
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.cancellation import CancelOutcome, CancelReport
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["OUTCOMES", "RunService", "cancel_response", "run_call_span", "run_handlers"]

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Encode: TypeAlias = Callable[[SubWorkflowEvent], bytes]

OUTCOMES = {
    CancelOutcome.STOPPED: control_pb2.CancelResponse.OUTCOME_STOPPED,
    CancelOutcome.ALREADY_FINISHED: control_pb2.CancelResponse.OUTCOME_ALREADY_FINISHED,
    CancelOutcome.STILL_STOPPING: control_pb2.CancelResponse.OUTCOME_STILL_STOPPING,
}

logger = logging.getLogger(__name__)


def cancel_response(report: CancelReport) -> control_pb2.CancelResponse:
    """Return *report* as it goes out."""
    return control_pb2.CancelResponse(
        outcome=OUTCOMES[report.outcome], step_ids=report.step_ids, stopping_ms=round(report.stopping_secs * 1000)
    )


class RunService(Protocol):
    """The runs of a server without gRPC; each raises ``BlazenError``."""

    def stream(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> AsyncIterator[SubWorkflowEvent]:
        """Begin a run, or find it again, and give its events, then its end."""

    def attach(self, caller: Caller, invocation_id: str, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        """Give the events of a run that was begun before, then its end."""

    def cancel(self, caller: Caller, invocation_id: str, grace_secs: float) -> Awaitable[CancelReport]:
        """Stop a run."""


def run_handlers(runs: RunService, node_id: str) -> tuple[grpc.GenericRpcHandler, grpc.GenericRpcHandler]:
    """Return the handlers of *runs*, one for each of the two services."""

    async def stream(request: bytes, context: _Context) -> None:
        async with _served(PEER_SERVICE, "StreamSubWorkflowEvents", node_id, context) as (caller, metadata, _):
            try:
                payload = peer_pb2.PostcardRequest.FromString(request).postcard_payload
            except DecodeError:
                raise EncodeError("postcard decode failed: the message is not a PostcardRequest") from None
            await _write(runs.stream(payload, caller, metadata), _envelope, context)

    async def attach(request: control_pb2.AttachRequest, context: _Context) -> None:
        async with _served(CONTROL_SERVICE, "Attach", node_id, context) as (caller, _, span):
            CallMetadata(request.invocation_id).checked()
            span.set_attribute(telemetry.INVOCATION_ID, request.invocation_id)
            await _write(runs.attach(caller, request.invocation_id, request.cursor), _message, context)

    async def cancel(request: control_pb2.CancelRequest, context: _Context) -> control_pb2.CancelResponse:
        async with _served(CONTROL_SERVICE, "Cancel", node_id, context) as (caller, _, span):
            CallMetadata(request.invocation_id).checked()
            span.set_attribute(telemetry.INVOCATION_ID, request.invocation_id)
            report = await runs.cancel(caller, request.invocation_id, request.grace_ms / 1000)
            logger.info("%s cancelled invocation %s: %s", caller, request.invocation_id, report.outcome)
            return cancel_response(report)
        raise AssertionError  # an abort has ended the call

    return (
        grpc.method_handlers_generic_handler(
            PEER_SERVICE, {"StreamSubWorkflowEvents": grpc.unary_stream_rpc_method_handler(stream)}
        ),
        grpc.method_handlers_generic_handler(
            CONTROL_SERVICE,
            {
                "Attach": grpc.unary_stream_rpc_method_handler(
                    attach, request_deserializer=control_pb2.AttachRequest.FromString
                ),
                "Cancel": grpc.unary_unary_rpc_method_handler(
                    cancel,
                    request_deserializer=control_pb2.CancelRequest.FromString,
                    response_serializer=control_pb2.CancelResponse.SerializeToString,
                ),
            },
        ),
    )


@contextmanager
def run_call_span(service: str, method: str, node_id: str, caller: Caller, metadata: CallMetadata) -> Iterator[Span]:
    """Give the server's span of a call about a run, whichever way it came."""
    with telemetry.served_span(service, method, telemetry.extract(metadata.trace)) as span:
        if span.is_recording():
            known: dict[str, str | None] = {
                telemetry.NODE_ID: node_id,
                telemetry.CALLER: str(caller),
                telemetry.CLIENT_NODE_ID: metadata.client_node_id,
                telemetry.INVOCATION_ID: metadata.invocation_id,
            }
            span.set_attributes({name: value for name, value in known.items() if value is not None})
        try:
            yield span
        except BlazenError as error:
            span.set_attribute(telemetry.RPC_STATUS_CODE, refusal_of(error).code.value[0])
            raise
        span.set_attribute(telemetry.RPC_STATUS_CODE, grpc.StatusCode.OK.value[0])


@asynccontextmanager
async def _served(
    service: str, method: str, node_id: str, context: _Context
) -> AsyncIterator[tuple[Caller, CallMetadata, Span]]:
    """Give who calls and with what, in the server's span of the call; what is raised inside ends the call with its status."""
    try:
        caller, sent = ADMITTED.get()
        metadata = CallMetadata.decode(sent)
        with run_call_span(service, method, node_id, caller, metadata) as span:
            yield caller, metadata, span
    except BlazenError as error:
        telemetry.refused(method, error.kind)
        refusal = refusal_of(error)
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:
        logger.exception("a defect ended a call of %s", method)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")


async def _write(events: AsyncIterator[SubWorkflowEvent], encode: _Encode, context: _Context) -> None:
    """Write *events* as fast as the reader takes them: the log behind them waits for nobody."""
    async for event in events:
        await context.write(encode(event))


def _envelope(event: SubWorkflowEvent) -> bytes:
    return peer_pb2.PostcardResponse(postcard_payload=event.encode()).SerializeToString()


def _message(event: SubWorkflowEvent) -> bytes:
    return control_pb2.AttachResponse(
        sequence=event.sequence,
        event_type=event.event_type,
        data_json=event.data_json,
        response=None if event.terminal is None else event.terminal.encode(),
    ).SerializeToString()
