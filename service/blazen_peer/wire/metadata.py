"""What travels beside an envelope, as gRPC metadata: other implementations ignore it, and send none of it.

A call carries :class:`CallMetadata`. Every answer to a health check carries :class:`PeerTraits`, so that a client learns
at connect what it must know about the process on the other end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from blazen_peer.errors import EncodeError, ValidationError
from blazen_peer.identity import check_node_id

__all__ = ["MAX_TIMEOUT_SECS", "CallMetadata", "PeerTraits"]

INVOCATION_ID = "blazen-invocation-id"
CLIENT_NODE_ID = "blazen-client-node-id"
TIMEOUT_MS = "blazen-timeout-ms"
PARENT_RUN_ID = "blazen-parent-run-id"
CURSOR = "blazen-cursor"
DATA_CLASS = "blazen-data-class"
WORKFLOW = "blazen-workflow"
PARENT_RUN_SPAN = "blazen-parent-run-span"  # the span of the run in whose step the call is made: 16 hex digits
TRACE_HEADERS = ("traceparent", "tracestate", PARENT_RUN_SPAN)

DEFAULT_TIMEOUT_MS = "blazen-default-timeout-ms"
MAX_TIMEOUT_MS = "blazen-max-timeout-ms"
MAX_MESSAGE_BYTES = "blazen-max-message-bytes"
INSTANCE_ID = "blazen-instance-id"
LANE = "blazen-lane"
POLICY = "blazen-policy"

MAX_TIMEOUT_SECS = 10 * 365 * 86_400  # beyond this a timeout is clamped: grpcio fails at once on absurd deadlines
_ID = re.compile(r"[!-~]{1,128}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_LINE = re.compile(r"[!-~]([ -~]{0,510}[!-~])?", re.ASCII)  # what a header carries unchanged
_OURS = frozenset(
    {INVOCATION_ID, CLIENT_NODE_ID, TIMEOUT_MS, PARENT_RUN_ID, INSTANCE_ID, CURSOR, DATA_CLASS, WORKFLOW, *TRACE_HEADERS}
)


class CallMetadata(NamedTuple):
    """What a call says beside its envelope.

    Attributes:
        invocation_id: 1 to 128 visible ASCII characters; None from clients that send none.
        client_node_id: What the client calls itself, for logs and spans alone: it proves nothing.
        timeout_ms: The exact time that the run may take, where it is no whole number of seconds: the envelope rounds up.
        trace: W3C ``traceparent`` and ``tracestate``, and the span of the caller's run, as they came.
        parent_run_id: The caller's run in whose step the call is made, where there is one: session refs may last until it ends.
        instance_id: The process that the call is for, where no other may take it up.
        cursor: Of a stream: the sequence number of the last event that the caller has seen.
        data_class: The class of the data that the call carries, as the client says it.
        workflow: The workflow's name, for logs on the way; left away where a header cannot carry it. The envelope has it too.
    """

    invocation_id: str | None = None
    client_node_id: str | None = None
    timeout_ms: int | None = None
    trace: Mapping[str, str] = MappingProxyType({})
    parent_run_id: str | None = None
    instance_id: str | None = None
    cursor: int | None = None
    data_class: str | None = None
    workflow: str | None = None

    def encode(self) -> list[tuple[str, str]]:
        """Return the metadata pairs, in a fixed order."""
        pairs = []
        if self.invocation_id is not None:
            pairs.append((INVOCATION_ID, self.invocation_id))
        if self.client_node_id is not None:
            pairs.append((CLIENT_NODE_ID, self.client_node_id))
        if self.timeout_ms is not None:
            pairs.append((TIMEOUT_MS, str(self.timeout_ms)))
        if self.parent_run_id is not None and _ID.fullmatch(self.parent_run_id):
            pairs.append((PARENT_RUN_ID, self.parent_run_id))
        if self.instance_id is not None:
            pairs.append((INSTANCE_ID, self.instance_id))
        if self.cursor is not None:
            pairs.append((CURSOR, str(self.cursor)))
        if self.data_class is not None:
            pairs.append((DATA_CLASS, self.data_class))
        if self.workflow is not None and _LINE.fullmatch(self.workflow):
            pairs.append((WORKFLOW, self.workflow))
        pairs.extend(self.trace.items())
        return pairs

    def checked(self) -> CallMetadata:
        """Return it, where each field holds what metadata may.

        Raises:
            EncodeError: One does not.
        """
        for name, value in (
            (INVOCATION_ID, self.invocation_id),
            (PARENT_RUN_ID, self.parent_run_id),
            (DATA_CLASS, self.data_class),
        ):
            if value is not None and not _ID.fullmatch(value):
                raise EncodeError(f"metadata {name} is not 1 to 128 visible ASCII characters")
        return self

    @classmethod
    def decode(cls, metadata: Iterable[tuple[str, str | bytes]]) -> CallMetadata:
        """Read the pairs of one call; those that are not ours are passed over.

        Raises:
            EncodeError: One of ours is there twice, or does not hold what it must.
        """
        found: dict[str, str] = {}
        for name, value in metadata:
            if name not in _OURS:
                continue
            if name in found:
                if name in TRACE_HEADERS:  # a broken trace is no reason to refuse a call
                    continue
                raise EncodeError(f"metadata {name} was sent twice")
            found[name] = value if isinstance(value, str) else value.decode("latin-1")
        if (invocation_id := found.get(INVOCATION_ID)) is not None and not _ID.fullmatch(invocation_id):
            raise EncodeError(f"metadata {INVOCATION_ID} is not 1 to 128 visible ASCII characters")
        if (client_node_id := found.get(CLIENT_NODE_ID)) is not None:
            try:
                check_node_id(client_node_id)
            except ValidationError:
                raise EncodeError(f"metadata {CLIENT_NODE_ID} is not a node id") from None
        timeout_ms = None
        if (milliseconds := found.get(TIMEOUT_MS)) is not None:
            if not _NUMBER.fullmatch(milliseconds):
                raise EncodeError(f"metadata {TIMEOUT_MS} is not a whole number of milliseconds")
            timeout_ms = int(milliseconds)
        if (parent_run_id := found.get(PARENT_RUN_ID)) is not None and not _ID.fullmatch(parent_run_id):
            raise EncodeError(f"metadata {PARENT_RUN_ID} is not 1 to 128 visible ASCII characters")
        cursor = None
        if (number := found.get(CURSOR)) is not None:
            if not _NUMBER.fullmatch(number):
                raise EncodeError(f"metadata {CURSOR} is not a sequence number")
            cursor = int(number)
        data_class = found.get(DATA_CLASS)
        if data_class is not None and not _ID.fullmatch(data_class):
            raise EncodeError(f"metadata {DATA_CLASS} is not 1 to 128 visible ASCII characters")
        trace = {name: found[name] for name in TRACE_HEADERS if name in found}
        instance_id, workflow = found.get(INSTANCE_ID), found.get(WORKFLOW)
        return cls(invocation_id, client_node_id, timeout_ms, trace, parent_run_id, instance_id, cursor, data_class, workflow)


@dataclass(frozen=True, slots=True)
class PeerTraits:
    """What a peer tells every caller who asks for its health; each is None from a peer that does not tell.

    Attributes:
        default_timeout_ms: What a run may take when the call gives no timeout.
        max_timeout_ms: What it may take at most, whatever the call gives.
        instance_id: Made anew at each start of the process.
        max_message_bytes: The largest message that it takes.
        policy: The digest of the policy that it enforces, and ``stale`` behind it where its file no longer reads.
        lane: The version of the lanes that it has.
    """

    default_timeout_ms: int | None = None
    max_timeout_ms: int | None = None
    instance_id: str | None = None
    max_message_bytes: int | None = None
    policy: str | None = None
    lane: int | None = None

    def encode(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata pairs of what is known."""
        pairs = (
            (DEFAULT_TIMEOUT_MS, self.default_timeout_ms),
            (MAX_TIMEOUT_MS, self.max_timeout_ms),
            (INSTANCE_ID, self.instance_id),
            (MAX_MESSAGE_BYTES, self.max_message_bytes),
            (POLICY, self.policy),
            (LANE, self.lane),
        )
        return tuple((name, str(value)) for name, value in pairs if value is not None)

    @classmethod
    def decode(cls, metadata: Iterable[tuple[str, str | bytes]]) -> PeerTraits:
        """Read what a peer told; what is not well formed counts as not told."""
        told = {name: value for name, value in metadata if isinstance(value, str)}

        def number(name: str) -> int | None:
            value = told.get(name, "")
            return int(value) if _NUMBER.fullmatch(value) else None

        instance_id = told.get(INSTANCE_ID)
        if instance_id is not None and not _ID.fullmatch(instance_id):
            instance_id = None
        policy = told.get(POLICY)
        if policy is not None and not _LINE.fullmatch(policy):
            policy = None
        return cls(
            number(DEFAULT_TIMEOUT_MS), number(MAX_TIMEOUT_MS), instance_id, number(MAX_MESSAGE_BYTES), policy, number(LANE)
        )
