"""What a client does with session refs: reads their values, releases them, says when a parent run is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO, Final, TypeVar, overload

import grpc

from blazen_peer import telemetry
from blazen_peer.carriage import Carriage
from blazen_peer.config import check_timeout_secs
from blazen_peer.errors import EncodeError, PeerError, RefNotFoundError, UnknownStepError, ValidationError
from blazen_peer.ref_listing import HeldRef, held_refs
from blazen_peer.runtime.context import current_run, until_run_ends
from blazen_peer.runtime.refs import RemoteRef
from blazen_peer.transport.channels import run_in_background
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.ref_chunks import checked_chunks
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE
from blazen_peer.wire import DerefRequest, DerefResponse, ReleaseRequest, ReleaseResponse
from blazen_peer.wire.metadata import MAX_TIMEOUT_SECS, CallMetadata
from blazen_peer.wire.type_tag import without_type_tag

__all__ = ["RefCalls"]

T = TypeVar("T")

Deserializer = Callable[[bytes], T]

DEREF_TIMEOUT_SECS: Final = 300.0
RELEASE_TIMEOUT_SECS: Final = 10.0
MAX_DEREF_BYTES: Final = 1024 * 1024 * 1024

_LOG = logging.getLogger(__name__)


class RefCalls(Carriage):
    """What ``PeerClient`` can do with session refs."""

    def __init__(self) -> None:
        self._deserializers: dict[str, Deserializer[Any]] = {}
        self._notices: set[asyncio.Task[None]] = set()
        self._tells = False
        self._children: dict[tuple[asyncio.AbstractEventLoop, str], set[str]] = {}  # invocations that left refs, by parent run

    def register_deserializer(self, type_tag: str, deserializer: Deserializer[Any]) -> None:
        """Have :meth:`deref` read every value of *type_tag* by *deserializer*.

        Raises:
            ValidationError: Another one is registered for this tag.
        """
        if self._deserializers.setdefault(type_tag, deserializer) is not deserializer:
            raise ValidationError(f"another deserializer is registered for the type tag {type_tag!r}")

    @overload
    async def deref(
        self, ref: RemoteRef, deserializer: Deserializer[T], *, timeout_secs: float = ..., max_bytes: int = ...
    ) -> T: ...

    @overload
    async def deref(
        self, ref: RemoteRef, deserializer: None = None, *, timeout_secs: float = ..., max_bytes: int = ...
    ) -> Any: ...

    async def deref(
        self,
        ref: RemoteRef,
        deserializer: Deserializer[Any] | None = None,
        *,
        timeout_secs: float = DEREF_TIMEOUT_SECS,
        max_bytes: int = MAX_DEREF_BYTES,
    ) -> Any:
        """Return the value of *ref* as it is now, which renews its lease.

        Args:
            ref: From a result's ``remote_refs``.
            deserializer: Makes the value of its bytes; by default the one registered for its type tag, and where there is none
                the bytes themselves are returned.
            timeout_secs: How long it may take, in seconds.
            max_bytes: The largest value; read a larger one by :meth:`deref_chunks` or :meth:`deref_to`.

        Raises:
            RefNotFoundError: There is no such ref for this caller: never was, over, released, or somebody else's.
            EncodeError: The value is not whole, over *max_bytes*, or not what the deserializer reads.
            PeerError: The call failed; its subclass and ``kind`` say how.
        """
        if self._is_ours():
            received = bytearray()
            with telemetry.call_span(CONTROL_SERVICE, "DerefChunks"):
                async for chunk in self._chunks(ref, timeout_secs):
                    if len(received) + len(chunk) > max_bytes:
                        raise _too_large(ref, max_bytes)
                    received += chunk
            payload = bytes(received)
        else:
            request = DerefRequest(ref_uuid=ref.uuid).encode()
            answer = await self._unary("DerefSessionRef", ref, request, timeout_secs)
            payload = without_type_tag(DerefResponse.decode(answer).payload, ref.type_tag)
            if len(payload) > max_bytes:
                raise _too_large(ref, max_bytes)
        deserializer = deserializer or self._deserializers.get(ref.type_tag)
        if deserializer is None:
            return payload
        try:
            return deserializer(payload)
        except Exception as error:
            raise EncodeError(f"the value of session ref {ref.uuid} does not read as {ref.type_tag}: {error}") from error

    def deref_blocking(
        self,
        ref: RemoteRef,
        deserializer: Deserializer[T] | None = None,
        *,
        timeout_secs: float = DEREF_TIMEOUT_SECS,
        max_bytes: int = MAX_DEREF_BYTES,
    ) -> T | Any:
        """Do what :meth:`deref` does while this thread waits."""
        return run_in_background(
            self.deref(ref, deserializer, timeout_secs=timeout_secs, max_bytes=max_bytes), until_run_ends(current_run())
        )

    async def deref_chunks(self, ref: RemoteRef, *, timeout_secs: float = DEREF_TIMEOUT_SECS) -> AsyncIterator[bytes]:
        """Yield the bytes of a value in chunks, in constant memory. Only the normal end says that they were the value.

        Raises:
            RefNotFoundError, PeerError: As for :meth:`deref`.
            EncodeError: At the end: the chunks were not the value.
        """
        if self._is_ours():
            async for chunk in self._chunks(ref, timeout_secs):
                yield chunk
        else:
            yield await self.deref(ref, bytes, timeout_secs=timeout_secs)

    async def deref_to(self, ref: RemoteRef, file: BinaryIO, *, timeout_secs: float = DEREF_TIMEOUT_SECS) -> int:
        """Write the bytes of a value to *file*, in constant memory, and return how many they were.

        Raises:
            RefNotFoundError, PeerError: As for :meth:`deref`.
            EncodeError: What was written is not the value: throw it away.
        """
        size_bytes = 0
        with telemetry.call_span(CONTROL_SERVICE, "DerefChunks"):
            async for chunk in self.deref_chunks(ref, timeout_secs=timeout_secs):
                await asyncio.to_thread(file.write, chunk)
                size_bytes += len(chunk)
        return size_bytes

    def deref_to_blocking(self, ref: RemoteRef, file: BinaryIO, *, timeout_secs: float = DEREF_TIMEOUT_SECS) -> int:
        """Do what :meth:`deref_to` does while this thread waits."""
        return run_in_background(self.deref_to(ref, file, timeout_secs=timeout_secs), until_run_ends(current_run()))

    async def release(self, ref: RemoteRef, *, timeout_secs: float = RELEASE_TIMEOUT_SECS) -> bool:
        """Let the peer forget *ref*; return whether there was such a ref for this caller.

        Raises:
            PeerError: The call failed; its subclass and ``kind`` say how.
        """
        request = ReleaseRequest(ref_uuid=ref.uuid).encode()
        try:
            answer = await self._unary("ReleaseSessionRef", ref, request, timeout_secs)
        except RefNotFoundError:
            return False
        return ReleaseResponse.decode(answer).released

    def release_blocking(self, ref: RemoteRef, *, timeout_secs: float = RELEASE_TIMEOUT_SECS) -> bool:
        """Do what :meth:`release` does while this thread waits."""
        return run_in_background(self.release(ref, timeout_secs=timeout_secs))

    async def list_refs(self, *, timeout_secs: float = RELEASE_TIMEOUT_SECS) -> tuple[HeldRef, ...]:
        """Return the refs that the peer holds for this caller, oldest first.

        Raises:
            PeerError: The call failed; kind "Unsupported" from a peer that is not one of ours.
        """
        with telemetry.call_span(CONTROL_SERVICE, "ListRefs"):
            call = self._endpoint().list_refs(
                control_pb2.ListRefsRequest(), timeout=_seconds(timeout_secs), metadata=self._pairs(None)
            )
            return held_refs(await self._answer(call))

    def list_refs_blocking(self, *, timeout_secs: float = RELEASE_TIMEOUT_SECS) -> tuple[HeldRef, ...]:
        """Do what :meth:`list_refs` does while this thread waits."""
        return run_in_background(self.list_refs(timeout_secs=timeout_secs))

    def _tell_parents_end(self, invocation_id: str) -> None:
        """Say so to the peer when the run ends in whose step this is called: the call's refs may be to last until then."""
        run = current_run()
        if run is None or run.refs is None or not self._is_ours():
            return
        loop, run_id = asyncio.get_running_loop(), run.run_id

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._start_notice, run_id)

        self._tells = True
        self._children.setdefault((loop, run_id), set()).add(invocation_id)
        run.refs.at_end((self, loop), tell)

    async def _told(self) -> None:
        """Wait until what is to be told of this loop's parent runs is told; each telling bounds its own time."""
        await asyncio.sleep(0)  # for a run that ended just now
        here = asyncio.get_running_loop()
        notices = [notice for notice in self._notices if notice.get_loop() is here]
        await asyncio.gather(*notices, return_exceptions=True)

    def _told_blocking(self) -> None:
        """Do what :meth:`_told` does for the loop of threads that have none, unless this thread has one."""
        if not self._tells:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run_in_background(self._told())

    def _start_notice(self, run_id: str) -> None:
        loop = asyncio.get_running_loop()
        notice = loop.create_task(self._notice(run_id, self._children.pop((loop, run_id), set())))
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notice(self, run_id: str, invocation_ids: set[str]) -> None:
        """Tell it with the id of each invocation, by which sidecars find the replica that holds its refs."""
        request = control_pb2.ParentEndedRequest(parent_run_id=run_id)
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_SECS):
                for invocation_id in invocation_ids:
                    call = self._endpoint().parent_ended(request, metadata=self._pairs(invocation_id))
                    await self._answer(call)
        except (PeerError, ValidationError, TimeoutError) as error:  # the refs' leases do it then
            _LOG.info("could not tell the peer that run %s is over: %s", run_id, type(error).__name__)

    async def _unary(self, method: str, ref: RemoteRef, request: bytes, timeout_secs: float) -> bytes:
        """Make a call of ``blazen.peer.v1`` about *ref*; NOT_FOUND there can only mean the ref."""
        endpoint = self._endpoint()
        send = endpoint.deref if method == "DerefSessionRef" else endpoint.release
        with telemetry.call_span(PEER_SERVICE, method):
            message = peer_pb2.PostcardRequest(postcard_payload=request)
            call = send(message, timeout=_seconds(timeout_secs), metadata=self._pairs(ref.invocation_id))
            try:
                response: peer_pb2.PostcardResponse = await self._answer(call)
            except UnknownStepError as error:  # from a server that says no more than the status
                raise RefNotFoundError(str(error)) from None
            return response.postcard_payload

    async def _chunks(self, ref: RemoteRef, timeout_secs: float) -> AsyncIterator[bytes]:
        call = self._endpoint().deref_chunks(
            control_pb2.DerefChunksRequest(ref_uuid=ref.uuid.bytes),
            timeout=_seconds(timeout_secs),
            metadata=self._pairs(ref.invocation_id),
        )
        messages = self._messages(call)
        try:
            async for chunk in checked_chunks(messages):
                yield chunk
        finally:
            call.cancel()  # does nothing once it is over

    async def _messages(
        self, call: grpc.aio.UnaryStreamCall[control_pb2.DerefChunksRequest, control_pb2.DerefChunksResponse]
    ) -> AsyncIterator[control_pb2.DerefChunksResponse]:
        while True:
            message = await self._answer(call.read())
            if not isinstance(message, control_pb2.DerefChunksResponse):  # grpc.aio.EOF
                return
            yield message

    def _pairs(self, invocation_id: str | None) -> list[tuple[str, str]]:
        """Return the metadata of a call about what *invocation_id* left, by which sidecars find the replica that holds it."""
        return [*self._authorization(), *CallMetadata(invocation_id=invocation_id).encode(), *telemetry.inject().items()]


def _seconds(timeout_secs: float) -> float:
    return min(check_timeout_secs(timeout_secs), MAX_TIMEOUT_SECS)


def _too_large(ref: RemoteRef, max_bytes: int) -> EncodeError:
    return EncodeError(
        f"the value of session ref {ref.uuid} is over max_bytes, {max_bytes}: read it by deref_chunks or deref_to",
        limit_bytes=max_bytes,
    )
