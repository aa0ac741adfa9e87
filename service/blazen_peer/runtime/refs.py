"""Session refs: live values that stay on the node that made them, known elsewhere by a uuid and a type tag.

Pure arithmetic over a clock that is given; plain functions run in threads, so a lock guards it. A ref belongs to one caller
and is to everybody else as one that never was. See ``docs/session-refs.md`` for what users are told.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from blazen_peer.config import ServerSettings
from blazen_peer.errors import OverloadedError, RefNotFoundError
from blazen_peer.identity import Caller
from blazen_peer.runtime.ref_values import Serializer, is_serializable
from blazen_peer.runtime.rulings import RunLabel
from blazen_peer.wire import RemoteRefDescriptor

__all__ = ["RefEntry", "RefLifetime", "RefTable", "RemoteRef"]


class RefLifetime(StrEnum):
    """What ends a ref, beside its release by the caller, the end of its lease, and a failed run."""

    CONTEXT = "context"
    """The run's end; a served run's ref that the response lists lives on."""
    EXPLICIT_DROP = "explicit_drop"
    """Nothing else: it survives a local run too."""
    SNAPSHOT = "snapshot"
    """As ``CONTEXT``, and gone before a snapshot or a pause of the run."""
    PARENT_FINISH = "parent_finish"
    """The end of the run in whose step this run was started or called for."""


@dataclass(frozen=True, slots=True)
class RemoteRef:
    """What is known of a ref elsewhere.

    Attributes:
        uuid: Its name.
        origin_node_id: The node that holds the value; empty where no server does.
        type_tag: Says what the value is, so that its bytes can be read: ``my_app::Model``.
        created_at_epoch_ms: When it was put, in milliseconds since 1970, UTC.
        invocation_id: Of the call whose response listed it: goes along when it is used, so that sidecars find the replica.
    """

    uuid: UUID
    origin_node_id: str
    type_tag: str
    created_at_epoch_ms: int
    invocation_id: str | None = field(default=None, compare=False, repr=False)

    @property
    def descriptor(self) -> RemoteRefDescriptor:
        """What stands on the wire beside the uuid."""
        return RemoteRefDescriptor(self.origin_node_id, self.type_tag, self.created_at_epoch_ms)

    @classmethod
    def of(cls, uuid: UUID, descriptor: RemoteRefDescriptor, invocation_id: str | None = None) -> Self:
        """Return the ref that the response of a call lists."""
        return cls(uuid, descriptor.origin_node_id, descriptor.type_tag, descriptor.created_at_epoch_ms, invocation_id)


@dataclass(slots=True, eq=False)
class RefEntry:
    """One ref and its value.

    Attributes:
        serializer: None: the value is bytes, or is of use on this node alone.
        owner: Who may use it.
        size_bytes: What it counts for against the limits.
        ends_at: When its lease is over, on the table's clock; None while its run lives, and for one of this process alone.
        parent_run_id: The owner's run at whose end it goes, where that is elsewhere.
        label: What the run was that put it, where a policy says who may have it.
    """

    ref: RemoteRef
    value: Any = field(repr=False)
    serializer: Serializer | None = field(repr=False)
    owner: Caller
    lifetime: RefLifetime
    size_bytes: int
    lease_secs: float
    ends_at: float | None = None
    parent_run_id: str | None = None
    label: RunLabel | None = None

    @property
    def is_serializable(self) -> bool:
        """Whether its bytes can be had: only then is it listed."""
        return is_serializable(self.value, self.serializer)


def _everybody(owner: Caller, label: RunLabel | None, what: str | None) -> bool:
    return True


class RefTable:
    """The refs of one server, or of the local runs of a process.

    Args:
        settings: How much it holds, over which a put raises :class:`OverloadedError`, and how long a lease is.
        clock: Seconds, never going back.
        epoch_ms: Milliseconds since 1970.
        new_uuid: Makes a random uuid (version 4), which cannot be guessed.
        node_id: The origin that refs say.
        leases: Whether a ref that outlives its run has a lease; not where no caller is elsewhere.
        admits: Says whether an owner, by the stamp of this call, may have what a run with that label put; names it in the log
            where it may not, if it is given a name. None: every owner may.

    Attributes:
        next_end: No lease is over before this, on the clock; infinity where there is none.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        clock: Callable[[], float],
        epoch_ms: Callable[[], int],
        new_uuid: Callable[[], UUID],
        node_id: str = "",
        leases: bool = True,
        admits: Callable[[Caller, RunLabel | None, str | None], bool] | None = None,
    ) -> None:
        self.settings, self.node_id, self.leases = settings, node_id, leases
        self._admits = admits or _everybody
        self.clock, self._epoch_ms, self._new_uuid = clock, epoch_ms, new_uuid
        self._entries: dict[UUID, RefEntry] = {}
        self._size_bytes = 0
        self.next_end: float = math.inf
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What all refs count for together."""
        return self._size_bytes

    def use(self, uuid: UUID, owner: Caller) -> RefEntry:
        """Return the entry, its lease renewed.

        Raises:
            RefNotFoundError: There is none for *owner*: never was, over, released, somebody else's, or not for this stamp.
        """
        with self.lock:
            entry = self._entries.get(uuid)
            if entry is not None and entry.ends_at is not None and entry.ends_at <= self.clock():
                self.remove(entry)
                entry = None
            if entry is None or entry.owner != owner or not self._admits(owner, entry.label, f"session ref {uuid}"):
                raise RefNotFoundError(f"session ref {uuid} not found")
            self.renew(entry)
            return entry

    def renew(self, entry: RefEntry) -> None:
        """Begin the lease of *entry* anew, where it has one."""
        if entry.ends_at is not None:
            self.begin_lease(entry)

    def release(self, uuid: UUID, owner: Caller) -> bool:
        """Forget a ref of *owner*; say whether there was one."""
        with self.lock:
            try:
                entry = self.use(uuid, owner)
            except RefNotFoundError:
                return False
            self.remove(entry)
            return True

    def owned_by(self, owner: Caller) -> tuple[RefEntry, ...]:
        """Return what *owner* may use, oldest first."""
        with self.lock:
            self.expire()
            return tuple(entry for entry in self._entries.values() if self._is_for(entry, owner))

    def parent_ended(self, owner: Caller, parent_run_id: str) -> int:
        """Forget what was to last until *owner*'s run *parent_run_id* ended; return how many those were."""
        with self.lock:
            ended = [
                entry for entry in self._entries.values() if entry.parent_run_id == parent_run_id and self._is_for(entry, owner)
            ]
            for entry in ended:
                self.remove(entry)
            return len(ended)

    def seconds_left(self, entry: RefEntry) -> float | None:
        """Return how long *entry* lives unused; None while its run lives."""
        return None if entry.ends_at is None else max(0.0, entry.ends_at - self.clock())

    def expire(self) -> None:
        """Forget every ref whose lease is over."""
        with self.lock:
            now, self.next_end = self.clock(), math.inf
            for entry in [entry for entry in self._entries.values() if entry.ends_at is not None]:
                if entry.ends_at is not None and entry.ends_at <= now:
                    self.remove(entry)
                else:
                    self.next_end = min(self.next_end, entry.ends_at or math.inf)

    def _is_for(self, entry: RefEntry, owner: Caller) -> bool:
        return entry.owner == owner and self._admits(owner, entry.label, None)

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._entries.clear()
            self._size_bytes = 0

    # What follows is for RunRefs, which holds the lock.

    def begin_lease(self, entry: RefEntry) -> None:
        """Let *entry* live unused for its lease from now on."""
        entry.ends_at = self.clock() + entry.lease_secs
        self.next_end = min(self.next_end, entry.ends_at)

    def add(self, entry_of: Callable[[RemoteRef], RefEntry], type_tag: str, size_bytes: int) -> RefEntry:
        """Make a ref and hold its entry, within the limits."""
        limits = self.settings
        if len(self._entries) >= limits.max_refs or self._size_bytes + size_bytes > limits.max_ref_bytes:
            self.expire()
        if len(self._entries) >= limits.max_refs:
            raise OverloadedError(f"this peer holds {len(self._entries)} session refs, as many as may be")
        if self._size_bytes + size_bytes > limits.max_ref_bytes:
            raise OverloadedError(f"this peer's session refs would be over {limits.max_ref_bytes} bytes together")
        entry = entry_of(RemoteRef(self._new_uuid(), self.node_id, type_tag, self._epoch_ms()))
        self._entries[entry.ref.uuid] = entry
        self._size_bytes += size_bytes
        return entry

    def entries_of(self, uuids: Iterable[UUID]) -> list[RefEntry]:
        """Return those of *uuids* that are still held."""
        return [entry for uuid in uuids if (entry := self._entries.get(uuid)) is not None]

    def forget(self, uuids: Iterable[UUID]) -> int:
        """Forget those of *uuids* that are still held; return how many those were."""
        found = self.entries_of(uuids)
        for entry in found:
            self.remove(entry)
        return len(found)

    def remove(self, entry: RefEntry) -> None:
        """Forget *entry*."""
        del self._entries[entry.ref.uuid]
        self._size_bytes -= entry.size_bytes
