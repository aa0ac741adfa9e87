"""The methods a peer serves: bytes in, one function that knows nothing of gRPC, bytes or a status out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from blazen_peer import telemetry
from blazen_peer.errors import BlazenError, EncodeError
from blazen_peer.identity import Caller
from blazen_peer.transport.gate import ADMITTED
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire.metadata import CallMetadata, PeerTraits

__all__ = [
    "CONTROL_SERVICE",
    "PEER_SERVICE",
    "Description",
    "Invoke",
    "TraitsHealthServicer",
    "control_handlers",
    "peer_handlers",
    "served_call",
]

PEER_SERVICE = peer_pb2.DESCRIPTOR.services_by_name["BlazenPeer"].full_name
CONTROL_SERVICE = control_pb2.DESCRIPTOR.services_by_name["PeerControl"].full_name

Invoke: TypeAlias = Callable[[bytes, Caller, CallMetadata], Awaitable[bytes]]
"""A call without gRPC: request envelope, caller, metadata -> response envelope; raises ``BlazenError``. The trace context
of the caller is the current one."""

Description: TypeAlias = Callable[[], control_pb2.DescribeResponse]

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_OK = grpc.StatusCode.OK.value[0]

logger = logging.getLogger(__name__)


def peer_handlers(invoke: Invoke, node_id: str) -> grpc.GenericRpcHandler:
    """Return the handlers of ``blazen.peer.v1.BlazenPeer``: a message over its table of answers (``wire.md``)."""

    async def invoke_sub_workflow(request: bytes, context: _Context) -> bytes:
        try:
            caller, sent = ADMITTED.get()
            metadata = CallMetadata.decode(sent)
            return _response(await served_call(invoke, node_id, _payload(request), caller, metadata))
        except BlazenError as error:
            telemetry.refused("InvokeSubWorkflow", error.kind)
            refusal = refusal_of(error)
            await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)
        except Exception:
            logger.exception("a defect ended a call of InvokeSubWorkflow")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return grpc.method_handlers_generic_handler(
        PEER_SERVICE, {"InvokeSubWorkflow": grpc.unary_unary_rpc_method_handler(invoke_sub_workflow)}
    )


async def served_call(invoke: Invoke, node_id: str, envelope: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
    """Answer a call in the server's span of it, whichever way it came."""
    with telemetry.served_span(PEER_SERVICE, "InvokeSubWorkflow", telemetry.extract(metadata.trace)) as span:
        if not span.is_recording():
            return await invoke(envelope, caller, metadata)
        span.set_attributes(_attributes(node_id, caller, metadata, len(envelope)))
        try:
            response = await invoke(envelope, caller, metadata)
        except BlazenError as error:
            span.set_attribute(telemetry.RPC_STATUS_CODE, refusal_of(error).code.value[0])
            raise
        span.set_attributes({telemetry.RPC_STATUS_CODE: _OK, telemetry.RESPONSE_BYTES: len(response)})
        return response


def control_handlers(describe: Description) -> grpc.GenericRpcHandler:
    """Return the handlers of our own typed service."""

    async def describe_peer(_: control_pb2.DescribeRequest, __: _Context) -> control_pb2.DescribeResponse:
        return describe()

    return grpc.method_handlers_generic_handler(
        CONTROL_SERVICE,
        {
            "Describe": grpc.unary_unary_rpc_method_handler(
                describe_peer,
                request_deserializer=control_pb2.DescribeRequest.FromString,
                response_serializer=control_pb2.DescribeResponse.SerializeToString,
            )
        },
    )


class TraitsHealthServicer(health.aio.HealthServicer):
    """gRPC health whose every answer also carries the peer's traits, as trailing metadata."""

    def __init__(self, traits: Callable[[], PeerTraits]) -> None:
        super().__init__()
        self._traits = traits

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802 (the service's name)
        """Answer one check."""
        context.set_trailing_metadata(self._traits().encode())
        return await super().Check(request, context)


def _payload(request: bytes) -> bytes:
    try:
        return peer_pb2.PostcardRequest.FromString(request).postcard_payload
    except DecodeError:
        raise EncodeError("postcard decode failed: the message is not a PostcardRequest") from None


def _response(payload: bytes) -> bytes:
    return peer_pb2.PostcardResponse(postcard_payload=payload).SerializeToString()


def _attributes(node_id: str, caller: Caller, metadata: CallMetadata, request_bytes: int) -> dict[str, str | int]:
    known: dict[str, str | int | None] = {
        telemetry.NODE_ID: node_id,
        telemetry.CALLER: str(caller),
        telemetry.REQUEST_BYTES: request_bytes,
        telemetry.CLIENT_NODE_ID: metadata.client_node_id,
        telemetry.INVOCATION_ID: metadata.invocation_id,
    }
    return {name: value for name, value in known.items() if value is not None}
