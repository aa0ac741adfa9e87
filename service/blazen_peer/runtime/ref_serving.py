"""What a server does for a ref's owner, knowing nothing of gRPC: the value's bytes, whole or in chunks, and its release.

Values are written in threads, because a serializer may take its time; a large one is never in memory whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast
from uuid import UUID

from blazen_peer.errors import EncodeError, PeerError, RefNotFoundError
from blazen_peer.identity import Caller
from blazen_peer.runtime.ref_values import chunks_of
from blazen_peer.runtime.refs import RefEntry, RefTable
from blazen_peer.runtime.threads import StepThreads
from blazen_peer.wire import DerefRequest, DerefResponse, ReleaseRequest, ReleaseResponse

__all__ = ["CHUNK_BYTES", "ChunksEnd", "RefServing"]

CHUNK_BYTES: Final = 256 * 1024
_ENVELOPE_BYTES: Final = 32  # at most, around a payload: version, length, the protobuf field
MIN_TIMER_SECS: Final = 0.05  # leases that end close together are ended together

T = TypeVar("T")

_THREADS: Final = StepThreads(max_threads=16)  # the steps' own must not wait for serializers; a stuck one keeps no process

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChunksEnd:
    """What follows the last chunk: how many bytes there were, and their SHA-256."""

    size_bytes: int
    sha256: bytes


class RefServing:
    """Serves the refs of one table, and ends their leases in time.

    Args:
        table: The refs.
        max_message_bytes: The largest answer; a larger value goes in chunks.
        chunk_bytes: How large those are.
    """

    def __init__(self, table: RefTable, *, max_message_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.table = table
        self._max_payload_bytes = max(0, max_message_bytes - _ENVELOPE_BYTES)
        self._chunk_bytes = min(chunk_bytes, max(1, self._max_payload_bytes))
        self._timer: asyncio.TimerHandle | None = None

    async def deref(self, payload: bytes, caller: Caller) -> bytes:
        """Answer one ``DerefSessionRef``.

        Raises:
            EncodeError: The request does not decode, or the value is over the message limit.
            EnvelopeVersionError: The request is newer than we are.
            RefNotFoundError: There is no such ref for *caller*.
            PeerError: Its serializer failed.
        """
        entry = self._entry(DerefRequest.decode(payload).ref_uuid, caller)
        return DerefResponse(payload=await _written(entry, lambda: self._whole(entry))).encode()

    async def release(self, payload: bytes, caller: Caller) -> bytes:
        """Answer one ``ReleaseSessionRef``: whether there was such a ref for *caller*.

        Raises:
            EncodeError, EnvelopeVersionError: The request does not decode, or is newer than we are.
        """
        return ReleaseResponse(released=self.table.release(ReleaseRequest.decode(payload).ref_uuid, caller)).encode()

    async def chunks(self, uuid: UUID, caller: Caller) -> AsyncIterator[bytes | ChunksEnd]:
        """Yield a value's bytes in chunks, then their checksum. Each chunk renews the lease; a release does not cut it short.

        Raises:
            RefNotFoundError: There is no such ref for *caller*.
            PeerError: Its serializer failed.
        """
        entry = self._entry(uuid, caller)
        pieces = chunks_of(entry.value, entry.serializer, self._chunk_bytes)
        checksum, size_bytes = hashlib.sha256(), 0

        def following() -> bytes | None:
            chunk = next(pieces, None)
            if chunk is not None:
                checksum.update(chunk)
            return chunk

        while (chunk := await _written(entry, following)) is not None:
            size_bytes += len(chunk)
            yield chunk
            self.table.renew(entry)
        yield ChunksEnd(size_bytes, checksum.digest())

    def parent_ended(self, caller: Caller, parent_run_id: str) -> int:
        """Forget what was to last until *caller*'s run *parent_run_id* ended; return how many those were."""
        return self.table.parent_ended(caller, parent_run_id)

    def listed(self, caller: Caller) -> tuple[RefEntry, ...]:
        """Return the refs whose values *caller* may read, oldest first."""
        return tuple(entry for entry in self.table.owned_by(caller) if entry.is_serializable)

    def watch_leases(self) -> None:
        """See to it that the next lease to end is ended in time; call it when leases have begun."""
        if self.table.next_end == math.inf:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(MIN_TIMER_SECS, self.table.next_end - self.table.clock())
        if self._timer is None or due < self._timer.when():
            self._cancel_timer()
            self._timer = loop.call_at(due, self._lease_over)

    def close(self) -> None:
        """Forget everything: the server is gone."""
        self._cancel_timer()
        self.table.clear()

    def _lease_over(self) -> None:
        self._timer = None
        self.table.expire()
        self.watch_leases()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _entry(self, uuid: UUID, caller: Caller) -> RefEntry:
        entry = self.table.use(uuid, caller)
        if not entry.is_serializable:  # of use on this node alone, and never listed
            raise RefNotFoundError(f"session ref {uuid} not found")
        return entry

    def _whole(self, entry: RefEntry) -> bytes:
        limit, chunks, size_bytes = self._max_payload_bytes, [], 0
        for chunk in chunks_of(entry.value, entry.serializer, self._chunk_bytes):
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > limit:
                raise EncodeError(
                    f"the value of session ref {entry.ref.uuid} is over the message limit of {limit} bytes: read it in chunks",
                    limit_bytes=limit,
                )
        return b"".join(chunks)


async def _written(entry: RefEntry, work: Callable[[], T]) -> T:
    """Do *work*, which calls the serializer of *entry*, in a thread."""
    try:
        return cast("T", await _THREADS.run(work))
    except EncodeError:
        raise
    except Exception as error:
        # The message may hold the value; its type, and the tag, are enough to find the serializer.
        ref, raised = entry.ref, type(error).__name__
        _LOG.warning("the serializer of session ref %s (%s) raised %s", ref.uuid, ref.type_tag, raised)
        raise PeerError(f"the value of session ref {ref.uuid} could not be serialized", status="INTERNAL") from None
