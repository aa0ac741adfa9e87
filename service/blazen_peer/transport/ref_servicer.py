"""The methods of session refs: two of ``blazen.peer.v1``, and in our own service the chunks, the list, the parent's end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar
from uuid import UUID

import grpc
from google.protobuf.message import DecodeError

from blazen_peer import telemetry
from blazen_peer.errors import BlazenError, EncodeError, TransportError
from blazen_peer.identity import Caller
from blazen_peer.transport.gate import ADMITTED
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ChunksEnd", "RefService", "ref_handlers"]

UUID_BYTES: Final = 16

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

logger = logging.getLogger(__name__)


class ChunksEnd(Protocol):
    """What follows the last chunk."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there were."""

    @property
    def sha256(self) -> bytes:
        """Of all chunks together."""


class RefService(Protocol):
    """The refs of a server without gRPC: envelopes, or messages, in and out; each raises ``BlazenError``."""

    async def deref(self, payload: bytes, caller: Caller) -> bytes:
        """Answer one ``DerefSessionRef``."""

    async def release(self, payload: bytes, caller: Caller) -> bytes:
        """Answer one ``ReleaseSessionRef``."""

    def chunks(self, uuid: UUID, caller: Caller) -> AsyncIterator[bytes | ChunksEnd]:
        """Yield a value's bytes, then their checksum."""

    def parent_ended(self, caller: Caller, parent_run_id: str) -> int:
        """Forget what was to last until a run of *caller*'s ended."""


T = TypeVar("T")

List: TypeAlias = Callable[[Caller], control_pb2.ListRefsResponse]


def ref_handlers(refs: RefService, listed: List, *, max_stream_secs: float) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of all methods of session refs.

    Args:
        refs: What they answer from.
        listed: Gives a caller's own refs.
        max_stream_secs: How long a stream of chunks may take, however slowly it is read.
    """

    async def served(service: str, method: str, context: _Context, answer: Callable[[Caller], Awaitable[T]]) -> T:
        """Answer one call inside its span; its error becomes a status."""
        try:
            caller, sent = ADMITTED.get()
            with telemetry.served_span(service, method, telemetry.extract(CallMetadata.decode(sent).trace)) as span:
                if span.is_recording():
                    span.set_attribute(telemetry.CALLER, str(caller))
                return await answer(caller)
        except Exception as error:
            await _end(context, method, error)

    def unary(method: str, answer: Callable[[bytes, Caller], Awaitable[bytes]]) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(request: bytes, context: _Context) -> bytes:
            async def answered(caller: Caller) -> bytes:
                payload = await answer(_parsed(peer_pb2.PostcardRequest, request).postcard_payload, caller)
                return peer_pb2.PostcardResponse(postcard_payload=payload).SerializeToString()

            return await served(PEER_SERVICE, method, context, answered)

        return grpc.unary_unary_rpc_method_handler(serve)

    async def deref_chunks(request: bytes, context: _Context) -> None:
        async def written(caller: Caller) -> None:
            uuid = _uuid(_parsed(control_pb2.DerefChunksRequest, request).ref_uuid)
            try:
                async with asyncio.timeout(max_stream_secs):
                    async for part in refs.chunks(uuid, caller):
                        await context.write(_part(part).SerializeToString())  # waits while the reader is slow
            except TimeoutError:
                raise TransportError(f"the value was not read within {max_stream_secs:g} s", may_have_run=False) from None

        await served(CONTROL_SERVICE, "DerefChunks", context, written)

    async def list_refs(request: bytes, context: _Context) -> bytes:
        async def answered(caller: Caller) -> bytes:
            _parsed(control_pb2.ListRefsRequest, request)
            return listed(caller).SerializeToString()

        return await served(CONTROL_SERVICE, "ListRefs", context, answered)

    async def parent_ended(request: bytes, context: _Context) -> bytes:
        async def answered(caller: Caller) -> bytes:
            run_id = _parsed(control_pb2.ParentEndedRequest, request).parent_run_id
            return control_pb2.ParentEndedResponse(released=refs.parent_ended(caller, run_id)).SerializeToString()

        return await served(CONTROL_SERVICE, "ParentEnded", context, answered)

    return (
        grpc.method_handlers_generic_handler(
            PEER_SERVICE,
            {
                "DerefSessionRef": unary("DerefSessionRef", refs.deref),
                "ReleaseSessionRef": unary("ReleaseSessionRef", refs.release),
            },
        ),
        grpc.method_handlers_generic_handler(
            CONTROL_SERVICE,
            {
                "DerefChunks": grpc.unary_stream_rpc_method_handler(deref_chunks),
                "ListRefs": grpc.unary_unary_rpc_method_handler(list_refs),
                "ParentEnded": grpc.unary_unary_rpc_method_handler(parent_ended),
            },
        ),
    )


def _part(part: bytes | ChunksEnd) -> control_pb2.DerefChunksResponse:
    if isinstance(part, bytes):
        return control_pb2.DerefChunksResponse(data=part)
    return control_pb2.DerefChunksResponse(end=control_pb2.DerefEnd(size_bytes=part.size_bytes, sha256=part.sha256))


async def _end(context: _Context, method: str, error: Exception) -> NoReturn:
    """End a call with the status of *error*; a defect is INTERNAL, and in the log."""
    if not isinstance(error, BlazenError):
        logger.error("a defect ended a call of %s", method, exc_info=error)
    if not isinstance(error, BlazenError):
        await context.abort(grpc.StatusCode.INTERNAL, "internal error")
    else:
        refusal = refusal_of(error)
        telemetry.refused(method, error.kind)
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)
    raise AssertionError  # abort raises


def _parsed(message: Any, raw: bytes) -> Any:
    try:
        return message.FromString(raw)
    except DecodeError:
        raise EncodeError(f"the message is not a {message.DESCRIPTOR.name}") from None


def _uuid(raw: bytes) -> UUID:
    if len(raw) != UUID_BYTES:
        raise EncodeError(f"a session ref's uuid is {UUID_BYTES} bytes, not {len(raw)}")
    return UUID(bytes=raw)
