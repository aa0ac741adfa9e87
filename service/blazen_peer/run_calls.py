"""What a client does with runs beside the plain call: streams, attaching again, cancelling, and the ends of child runs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from blazen_peer import telemetry
from blazen_peer.carriage import MARGIN_SECS, Carriage
from blazen_peer.config import check_timeout_secs
from blazen_peer.errors import BlazenError, EncodeError, InvocationNotFoundError, PeerError, ValidationError
from blazen_peer.port_class import stamp_of
from blazen_peer.remote_stream import Open, Read, RemoteStream, StreamCall
from blazen_peer.repeats import Repeats
from blazen_peer.runtime.context import RunInfo, current_run, until_run_ends
from blazen_peer.transport.channels import Endpoint, run_in_background
from blazen_peer.transport.lane import Lane
from blazen_peer.transport.lane_stream import LaneStream
from blazen_peer.transport.lane_way import CarriedStream
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.servicer import CONTROL_SERVICE
from blazen_peer.wire import SubWorkflowEvent, SubWorkflowResponse
from blazen_peer.wire.cancellation import CancelOutcome, CancelReport
from blazen_peer.wire.metadata import MAX_TIMEOUT_SECS, CallMetadata

__all__ = ["RunCalls", "check_invocation_id", "check_retries", "time_of_child", "until_run_ends"]

T = TypeVar("T")

CANCEL_MARGIN_SECS: Final = 5.0  # for a Cancel's own way there and back
ABANDON_SECS: Final = 5.0  # how long a client tries to end a child run whose parent is over
AGAIN_SECS: Final = 0.2  # a child's call may arrive after its Cancel: once more then
_ID = re.compile(r"[!-~]{1,128}", re.ASCII)
_OUTCOMES = {
    control_pb2.CancelResponse.OUTCOME_STOPPED: CancelOutcome.STOPPED,
    control_pb2.CancelResponse.OUTCOME_ALREADY_FINISHED: CancelOutcome.ALREADY_FINISHED,
    control_pb2.CancelResponse.OUTCOME_STILL_STOPPING: CancelOutcome.STILL_STOPPING,
}

_LOG = logging.getLogger(__name__)


class RunCalls(Carriage):
    """What ``PeerClient`` can do with runs beside the plain call."""

    def _tell_parents_end(self, invocation_id: str) -> None:
        raise NotImplementedError

    def stream_remote_workflow(
        self,
        workflow_name: str,
        step_ids: Sequence[str],
        input_json: str,
        timeout_secs: float | None = None,
        *,
        invocation_id: str | None = None,
        retries: int = 0,
    ) -> RemoteStream:
        """Run *step_ids* as :meth:`run_remote_workflow` does, and give what the run emits meanwhile, then its ``StopEvent``.

        ``async for event in client.stream_remote_workflow(...)``. Nothing is sent before the first event is asked for.

        Args:
            workflow_name, step_ids, input_json, timeout_secs, invocation_id: As for :meth:`run_remote_workflow`.
            retries: How often to connect again in a row when the connection breaks; the stream then goes on where it was.

        Raises:
            ValidationError: An argument is not usable.
            PermissionDeniedError: Data of the class of the run in whose step this is called may not go there.
        """
        parent = current_run()
        timeout_secs = time_of_child(parent, timeout_secs)
        check_retries(retries)
        request = self._request(workflow_name, step_ids, input_json, timeout_secs)
        invocation_id = self._id_for_stream() if invocation_id is None else check_invocation_id(invocation_id)
        metadata = self._about(request, invocation_id, parent, self._port.of_call(parent))

        async def begin(cursor: int, repeats: Repeats, left_secs: float) -> StreamCall:
            sent = metadata._replace(cursor=cursor or None, instance_id=repeats.instance_id if retries else None)
            lane = await self._lane(len(request.envelope), invocation_id, metadata.data_class)
            if lane is not None and sent.instance_id in (None, lane.instance_id):
                return self._carried_stream(lane, request.envelope, sent, left_secs)
            endpoint = await self._ready(metadata.data_class)
            message = peer_pb2.PostcardRequest(postcard_payload=request.envelope).SerializeToString()
            return endpoint.stream(message, timeout=left_secs, metadata=self._beside(sent))

        return self._streamed(metadata, begin, _read_envelope, retries, 0, request.waits_secs + MARGIN_SECS, parent)

    def attach(
        self, invocation_id: str, *, cursor: int = 0, timeout_secs: float | None = None, retries: int = 0
    ) -> RemoteStream:
        """Read the events of a run of this caller's that was begun before, by whichever client: those after *cursor*, then its
        ``StopEvent``. A run that is over can be read while the peer keeps its answer.

        Args:
            invocation_id: What the run was begun with.
            cursor: The sequence number of the last event seen; 0 for all that are kept.
            timeout_secs: How long to read at most, in seconds; None: as long as the run may take.
            retries: As for :meth:`stream_remote_workflow`.

        Raises:
            ValidationError: An argument is not usable.
        """
        metadata = CallMetadata(check_invocation_id(invocation_id), self._node_id)
        check_retries(retries)
        secs = MAX_TIMEOUT_SECS if timeout_secs is None else min(check_timeout_secs(timeout_secs), MAX_TIMEOUT_SECS)

        async def begin(cursor: int, _: Repeats, left_secs: float) -> StreamCall:
            if (lane := self._lane_to_run(self._endpoint(), invocation_id)) is not None:
                return self._carried_stream(lane, None, metadata._replace(cursor=cursor), left_secs)
            request = control_pb2.AttachRequest(invocation_id=invocation_id, cursor=cursor)
            return self._endpoint().attach(request, timeout=left_secs, metadata=self._beside(metadata))

        return self._streamed(metadata, begin, _read_message, retries, cursor, secs, None)

    async def cancel(self, invocation_id: str, *, grace_secs: float = 5.0) -> CancelReport:
        """Stop a run of this caller's, and its remote children, and say what became of it.

        Args:
            invocation_id: What the run was begun with.
            grace_secs: How long to wait for its steps to let go, in seconds.

        Raises:
            InvocationNotFoundError: The peer knows no such run of this caller's.
            PeerError: The call failed otherwise.
        """
        check_invocation_id(invocation_id)
        grace_secs = min(check_timeout_secs(grace_secs), MAX_TIMEOUT_SECS)
        with telemetry.call_span(CONTROL_SERVICE, "Cancel") as span:
            if span.is_recording():
                span.set_attributes({telemetry.NODE_ID: self._node_id, telemetry.INVOCATION_ID: invocation_id})
            return await self._cancelled(self._endpoint(), invocation_id, grace_secs)

    def cancel_blocking(self, invocation_id: str, *, grace_secs: float = 5.0) -> CancelReport:
        """Do what :meth:`cancel` does while this thread waits."""
        return run_in_background(self.cancel(invocation_id, grace_secs=grace_secs))

    def _streamed(
        self, metadata: CallMetadata, begin: Open, read: Read, retries: int, cursor: int, secs: float, parent: RunInfo | None
    ) -> RemoteStream:
        invocation_id = metadata.invocation_id or ""
        return RemoteStream(
            invocation_id,
            begin,
            read,
            Repeats(retries, self._traits.instance_id),
            cursor=cursor,
            deadline_secs=secs,
            on_refs=lambda: self._tell_parents_end(invocation_id),
            abandon=None if parent is None else lambda: self._abandon(invocation_id),
        )

    def _carried_stream(
        self, lane: Lane, envelope: bytes | None, metadata: CallMetadata, deadline_secs: float
    ) -> CarriedStream:
        """Return the events of a run that *envelope* begins, or that was begun before, by *lane* and those after it."""
        traced, invocation_id = self._traced(metadata), metadata.invocation_id or ""

        def begin(lane: Lane, instance_id: str | None, cursor: int, left_secs: float) -> LaneStream:
            if metadata.data_class is not None:
                self._port.check_stamp(stamp_of(lane.headers), metadata.data_class)
            if envelope is None:
                return lane.attach(invocation_id, cursor, left_secs)
            sent = traced._replace(cursor=cursor, instance_id=instance_id or traced.instance_id)
            return lane.stream(envelope, sent, left_secs)

        return self._lanes_here().stream(lane, begin, metadata.cursor or 0, deadline_secs)

    async def _cancelled(self, endpoint: Endpoint, invocation_id: str, grace_secs: float) -> CancelReport:
        timeout_secs = grace_secs + CANCEL_MARGIN_SECS
        lane = self._lane_to_run(endpoint, invocation_id)
        if lane is not None and endpoint.lanes is not None:
            answer = await endpoint.lanes.carry(
                lane, lambda lane, _, left_secs: lane.cancel(invocation_id, grace_secs, left_secs), timeout_secs
            )
        else:
            request = control_pb2.CancelRequest(invocation_id=invocation_id, grace_ms=round(grace_secs * 1000))
            metadata = self._beside(CallMetadata(invocation_id, self._node_id))
            answer = await self._answer(endpoint.cancel(request, timeout=timeout_secs, metadata=metadata))
        outcome = _OUTCOMES.get(answer.outcome)
        if outcome is None:
            raise PeerError(f"the peer answers to Cancel what this client does not know: {answer.outcome}")
        return CancelReport(outcome, tuple(answer.step_ids), answer.stopping_ms / 1000)

    def _abandon(self, invocation_id: str) -> None:
        """Stop a child run in the background: nobody waits for it any more. Its own deadline ends it where that fails."""
        try:
            endpoint = self._endpoint()
        except ValidationError:  # closed
            return
        task = asyncio.get_running_loop().create_task(self._ended(endpoint, invocation_id))
        endpoint.farewells.add(task)
        task.add_done_callback(endpoint.farewells.discard)

    async def _ended(self, endpoint: Endpoint, invocation_id: str) -> None:
        try:
            async with asyncio.timeout(ABANDON_SECS):
                try:
                    await self._cancelled(endpoint, invocation_id, 0)
                except InvocationNotFoundError:
                    await asyncio.sleep(AGAIN_SECS)
                    await self._cancelled(endpoint, invocation_id, 0)
        except (BlazenError, TimeoutError) as error:
            _LOG.info("could not cancel the child run %s: %s", invocation_id, error)


def check_invocation_id(invocation_id: str) -> str:
    """Return *invocation_id* when it can be one.

    Raises:
        ValidationError: It is not 1 to 128 visible ASCII characters.
    """
    if not isinstance(invocation_id, str) or not _ID.fullmatch(invocation_id):
        raise ValidationError(f"invocation id {str(invocation_id)[:140]!r} is not valid: use 1 to 128 visible ASCII characters")
    return invocation_id


def check_retries(retries: int) -> int:
    """Return *retries* when it is a whole number from 0 on.

    Raises:
        ValidationError: It is not.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValidationError(f"retries must be a whole number from 0 on, not {retries!r}")
    return retries


def time_of_child(parent: RunInfo | None, timeout_secs: float | None) -> float | None:
    """Return the time of a call that is awaited inside a step: no more than its run has left."""
    left_secs = None if parent is None else parent.time_left_secs
    if left_secs is None:
        return timeout_secs
    return left_secs if timeout_secs is None else min(check_timeout_secs(timeout_secs), left_secs)


def _read_envelope(message: bytes) -> SubWorkflowEvent:
    try:
        return SubWorkflowEvent.decode(peer_pb2.PostcardResponse.FromString(message).postcard_payload)
    except DecodeError:
        raise EncodeError("postcard decode failed: the message is not a PostcardResponse") from None


def _read_message(message: bytes) -> SubWorkflowEvent:
    try:
        said = control_pb2.AttachResponse.FromString(message)
    except DecodeError:
        raise EncodeError("the message is not an AttachResponse") from None
    terminal = SubWorkflowResponse.decode(said.response) if said.HasField("response") else None
    return SubWorkflowEvent(said.sequence, said.event_type, said.data_json, terminal)
