"""How a client's calls get to the peer: each on its own, or many on one lane. What is carried is the same either way.

A call goes by a lane where the peer has lanes, and by itself where its trace is sampled (both sidecars' spans are in its trace
then), where it is larger than a frame, or where its caller chose its id and several replicas stand behind the address (the
sidecar finds the replica by the id of a call on its own).
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from blazen_peer import telemetry
from blazen_peer.auth import AUTHORIZATION, TokenMinter
from blazen_peer.credentials import TokenSource
from blazen_peer.errors import EncodeError, PeerError, TransportError, ValidationError
from blazen_peer.port_class import PortClass, stamp_of
from blazen_peer.repeats import Repeats
from blazen_peer.requests import Request, request_of
from blazen_peer.runtime.context import RunInfo
from blazen_peer.transport.channels import Channels, Endpoint
from blazen_peer.transport.lane import Lane, LaneCall
from blazen_peer.transport.lane_errors import AnswerTooLargeError
from blazen_peer.transport.lane_keys import KEY_END, lane_key
from blazen_peer.transport.lane_limits import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES
from blazen_peer.transport.lane_told import REPLICA
from blazen_peer.transport.lanes import Headers, LaneMode, Lanes
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.transport.status import raised_by
from blazen_peer.wire.metadata import INVOCATION_ID, CallMetadata, PeerTraits

__all__ = ["CONNECT_TIMEOUT_SECS", "MARGIN_SECS", "Carriage", "new_id"]

T = TypeVar("T")

CONNECT_TIMEOUT_SECS: Final = 5.0
UNTOLD_TIMEOUT_SECS: Final = 3600.0  # how long to wait where neither the call nor the peer says
_MOMENT_SECS: Final = 0.05  # so much later counts as the same time
MARGIN_SECS: Final = 5.0  # the RPC's own deadline sits this much above the run's


class Carriage:
    """The calls of ``PeerClient`` on their way; what they need of it is set by the client itself."""

    _node_id: str
    _channels: Channels
    _port: PortClass
    _tokens: TokenSource | None
    _minter: TokenMinter
    _traits: PeerTraits
    _max_message_bytes: int
    _lane_mode: LaneMode

    async def _carried(
        self, envelope: bytes, metadata: CallMetadata, deadline_secs: float, retries: int, lane: Lane | None
    ) -> bytes:
        """Return the response envelope to *envelope*, over as many connections as it takes and *retries* allows."""
        if not retries:
            return await self._once(envelope, metadata, deadline_secs, lane)
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_secs
        repeats = Repeats(retries, self._traits.instance_id if lane is None else lane.instance_id)
        while True:
            sent = metadata._replace(instance_id=repeats.instance_id)
            try:
                return await self._once(envelope, sent, max(0.0, ends - loop.time()), lane)
            except TransportError as error:
                delay_secs = repeats.delay_secs(error, random.random())  # noqa: S311 - it spreads, it guards nothing
                if delay_secs is None or self._channels.closed or loop.time() + delay_secs >= ends:
                    raise repeats.final(error) from error.__cause__
            lane = None
            await asyncio.sleep(delay_secs)
            left_ms = math.ceil(max(0.0, ends - MARGIN_SECS - loop.time()) * 1000)  # for a run that begins only now
            metadata = metadata._replace(timeout_ms=left_ms)

    async def _once(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float, lane: Lane | None) -> bytes:
        if lane is None:
            return await self._alone(envelope, metadata, deadline_secs)
        loop = asyncio.get_running_loop()
        ends = loop.time() + deadline_secs
        try:
            return await self._lanes_here().carry(lane, self._sender(envelope, metadata, deadline_secs), deadline_secs)
        except AnswerTooLargeError as error:
            instance_id = error.instance_id or None
        # It is kept under the invocation id by the process that ran it, and no other may run it again.
        replica = lane.told.replica if lane.instance_id == instance_id else None
        kept = metadata._replace(instance_id=instance_id)
        try:
            return await self._alone(envelope, kept, max(0.0, ends - loop.time()), replica)
        except TransportError as error:
            text = f"{error}; the call has run, and its answer, larger than a frame, could not be fetched"
            raise TransportError(text) from error.__cause__

    async def _alone(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float, replica: str | None = None) -> bytes:
        endpoint = await self._ready(metadata.data_class)
        beside = self._beside(metadata)
        if replica is not None:
            beside.add(REPLICA, replica)
        message = peer_pb2.PostcardRequest(postcard_payload=envelope).SerializeToString()
        call = endpoint.invoke(message, timeout=deadline_secs, metadata=beside)
        answer = await self._answer(call)
        try:
            return peer_pb2.PostcardResponse.FromString(answer).postcard_payload
        except DecodeError:
            raise EncodeError("postcard decode failed: the answer is not a PostcardResponse") from None

    def _sender(
        self, envelope: bytes, metadata: CallMetadata, deadline_secs: float
    ) -> Callable[[Lane, str | None, float], Awaitable[bytes]]:
        """Return what sends the call by a lane: the first time as it is, later to one process, with the time that is left."""
        traced = self._traced(metadata)

        def send(lane: Lane, instance_id: str | None, left_secs: float) -> Awaitable[bytes]:
            if metadata.data_class is not None:
                self._port.check_stamp(stamp_of(lane.headers), metadata.data_class)
            sent = traced if instance_id is None else traced._replace(instance_id=instance_id)
            if left_secs < deadline_secs - _MOMENT_SECS:
                sent = sent._replace(timeout_ms=math.ceil(max(0.0, left_secs - MARGIN_SECS) * 1000))
            return lane.invoke(envelope, sent, left_secs)

        return send

    @staticmethod
    def _traced(metadata: CallMetadata) -> CallMetadata:
        """Return *metadata* with the trace context of this moment, for a frame."""
        headers = telemetry.inject()
        return metadata._replace(trace=headers) if headers else metadata

    async def _lane(
        self, size_bytes: int, invocation_id: str | None, data_class: str | None, *, retries: int = 0
    ) -> Lane | None:
        """Return the lane for a call of that size; None: it goes by itself, with *retries* where nobody answers.

        Raises:
            PeerError: The client was made with ``lane="always"``, and there is none.
        """
        found: Lane | telemetry.Carried = "none"
        try:
            found = await self._lane_or_why(size_bytes, invocation_id, data_class)
        except TransportError:
            if not retries:
                raise
        if isinstance(found, str):
            telemetry.carried(found)
            return None
        telemetry.carried("lane")
        return found

    async def _lane_or_why(
        self, size_bytes: int, invocation_id: str | None, data_class: str | None
    ) -> Lane | telemetry.Carried:
        if self._lane_mode == "never":
            return "never"
        if size_bytes > MAX_FRAME_BYTES:
            return "large"
        if telemetry.sampled():
            return "sampled"
        if not self._has_lanes:
            if self._lane_mode == "always":
                raise PeerError("the peer has no lanes, and this client was made with lane='always'", kind="Unsupported")
            return "none"
        lanes = self._lanes_here()
        lane = lanes.least() or await lanes.lane_for_new(CONNECT_TIMEOUT_SECS)
        if lane is None:
            return "none"
        if invocation_id is not None and lanes.replicas > 1:
            key = lane_key(invocation_id)
            lane = None if key is None else lanes.lane_of(key)
            if lane is None or not lane.is_open:
                return "given-id"
        if data_class is not None:
            self._port.check_stamp(stamp_of(lane.headers), data_class)
        return lane

    @property
    def _has_lanes(self) -> bool:
        """Whether the peer said that it has lanes, and both ends take messages as large as theirs."""
        told = self._traits.max_message_bytes
        return self._traits.lane is not None and min(self._max_message_bytes, told or 0) >= MAX_MESSAGE_BYTES

    def _lanes_here(self) -> Lanes:
        """Return the running loop's lanes."""
        endpoint = self._endpoint()
        if endpoint.lanes is None:

            def greeted(headers: Headers) -> None:
                self._port.learn(headers)
                endpoint.met = True

            endpoint.lanes = Lanes(self._begin_lane(endpoint), self._node_id, self._bearer, self._lane_mode, greeted)
        return endpoint.lanes

    def _begin_lane(self, endpoint: Endpoint) -> Callable[[str, str | None], LaneCall]:
        def begin(invocation_id: str, replica: str | None) -> LaneCall:
            endpoint.met = False  # it may make a new connection: what goes alone meanwhile asks first
            leads = ((INVOCATION_ID, invocation_id), *(() if replica is None else ((REPLICA, replica),)))
            return endpoint.lane(metadata=grpc.aio.Metadata(*self._authorization(), *leads))

        return begin

    def _request(self, workflow_name: str, step_ids: Sequence[str], input_json: str, timeout_secs: float | None) -> Request:
        """Return the call's request, with the peer's own time where none is given."""
        told_ms, limit = self._traits.default_timeout_ms, self._traits.max_message_bytes
        return request_of(
            workflow_name,
            step_ids,
            input_json,
            timeout_secs,
            default_secs=UNTOLD_TIMEOUT_SECS if told_ms is None else told_ms / 1000,
            max_message_bytes=min(self._max_message_bytes, limit or self._max_message_bytes),
        )

    def _about(self, request: Request, invocation_id: str, parent: RunInfo | None, data_class: str | None) -> CallMetadata:
        """Return what travels beside the request."""
        return CallMetadata(
            invocation_id,
            self._node_id,
            request.timeout_ms,
            parent_run_id=None if parent is None else parent.run_id,
            data_class=data_class,
            workflow=request.workflow_name,
        )

    def _id_for_stream(self) -> str:
        """Return a new invocation id for a stream that begins later: by one of the lanes that are open now, where there are."""
        lanes = self._channels.lanes
        return self._id_for(None if lanes is None else lanes.any())

    def _id_for(self, lane: Lane | None) -> str:
        """Return a new invocation id, for a call by *lane* or by itself."""
        return new_id() if lane is None else f"{lane.key}{KEY_END}{secrets.token_hex(12)}"

    def _lane_to_run(self, endpoint: Endpoint, invocation_id: str) -> Lane | None:
        """Return the lane of *endpoint* that leads to where the run of that id is, if one does."""
        lanes = endpoint.lanes
        if lanes is None or telemetry.sampled():
            return None
        key = lane_key(invocation_id)
        if key is not None and (lane := lanes.lane_of(key)) is not None:
            return lane
        return lanes.least() if lanes.replicas == 1 else None

    def _bearer(self) -> str | None:
        pairs = self._authorization()
        return pairs[0][1] if pairs else None

    async def _met(self, endpoint: Endpoint, timeout_secs: float) -> PeerTraits:
        """Ask for the peer's health, take what the port stamps, and return the traits.

        Raises:
            PeerError: Nobody answers, or the port stamps a laxer class than this client's.
        """
        call = endpoint.check_health(health_pb2.HealthCheckRequest(), timeout=timeout_secs)
        answered = True
        try:
            await call
        except grpc.aio.AioRpcError as error:
            answered = False
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                failure = raised_by(error, greeting_over_tls=self._channels.over_tls)
                if isinstance(failure, TransportError):  # a health check runs nothing, whatever became of it
                    failure = type(failure)(str(failure), may_have_run=False)
                raise failure from error
        trailing = tuple(await call.trailing_metadata() or ())
        # An answer without a message has all its headers at the end.
        self._port.learn((*(await call.initial_metadata() or ()), *(() if answered else trailing)))
        endpoint.met = True
        return PeerTraits.decode(trailing) if answered else PeerTraits()

    async def _ready(self, data_class: str | None) -> Endpoint:
        """Return the endpoint for a call that carries *data_class*. A new connection is asked first what it stamps.

        Raises:
            PeerError: Nobody answers, or what it stamps is laxer. Nothing was sent.
        """
        endpoint = self._endpoint()
        if data_class is not None and not (endpoint.met and endpoint.is_connected):
            endpoint.met = False  # whoever comes next asks too, until one has the answer
            await self._met(endpoint, CONNECT_TIMEOUT_SECS)
        if data_class is not None:
            self._port.check(data_class)
        return endpoint

    def _beside(self, metadata: CallMetadata) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*self._authorization(), *metadata.encode(), *telemetry.inject().items())

    def _endpoint(self) -> Endpoint:
        if self._channels.closed:
            raise ValidationError("this client is closed: connect a new one")
        return self._channels.here()

    async def _answer(self, call: Awaitable[T]) -> T:
        """Return what *call* is answered with, or raise the error of ours that its end means."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise raised_by(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._channels.closed and task is not None and not task.cancelling():
                raise TransportError("the client was closed while it waited for the answer") from None
            raise

    def _authorization(self) -> tuple[tuple[str, str], ...]:
        if self._tokens is None:
            return ()
        value = self._minter.header_value(self._tokens.keys(), now=time.time(), new_jti=new_id)
        return ((AUTHORIZATION, value),)

    def _is_ours(self) -> bool:
        return self._traits.instance_id is not None


def new_id() -> str:
    """Return an invocation id of 128 random bits."""
    return secrets.token_hex(16)
