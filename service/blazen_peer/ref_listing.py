"""A caller's own session refs, as the control service lists them and as a client shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from blazen_peer.errors import EncodeError
from blazen_peer.runtime.refs import RefEntry, RefTable, RemoteRef
from blazen_peer.transport.proto import control_pb2

__all__ = ["HeldRef", "held_refs", "listing_of"]


@dataclass(frozen=True, slots=True)
class HeldRef:
    """A ref that the peer holds for this caller.

    Attributes:
        lifetime: What ends it: ``context``, ``explicit_drop``, ``snapshot`` or ``parent_finish``.
        size_bytes: What it counts for against the peer's limits.
        lease_left_secs: How long it lives unused; None while its run lives.
    """

    ref: RemoteRef
    lifetime: str
    size_bytes: int
    lease_left_secs: float | None


def listing_of(table: RefTable, entries: Iterable[RefEntry]) -> control_pb2.ListRefsResponse:
    """Return the message that lists *entries*."""

    def message(entry: RefEntry) -> control_pb2.SessionRef:
        left = table.seconds_left(entry)
        return control_pb2.SessionRef(
            ref_uuid=entry.ref.uuid.bytes,
            origin_node_id=entry.ref.origin_node_id,
            type_tag=entry.ref.type_tag,
            created_at_epoch_ms=entry.ref.created_at_epoch_ms,
            lifetime=entry.lifetime,
            size_bytes=entry.size_bytes,
            lease_left_ms=None if left is None else round(left * 1000),
        )

    return control_pb2.ListRefsResponse(refs=[message(entry) for entry in entries])


def held_refs(response: control_pb2.ListRefsResponse) -> tuple[HeldRef, ...]:
    """Return what a peer listed, in its order.

    Raises:
        EncodeError: A uuid is no uuid.
    """

    def held(message: control_pb2.SessionRef) -> HeldRef:
        try:
            uuid = UUID(bytes=message.ref_uuid)
        except ValueError:
            raise EncodeError("the peer's list holds a session ref whose uuid is not 16 bytes") from None
        return HeldRef(
            RemoteRef(uuid, message.origin_node_id, message.type_tag, message.created_at_epoch_ms),
            message.lifetime,
            message.size_bytes,
            message.lease_left_ms / 1000 if message.HasField("lease_left_ms") else None,
        )

    return tuple(held(message) for message in response.refs)
