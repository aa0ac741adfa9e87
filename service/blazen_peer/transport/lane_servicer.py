"""The server's end of a lane: many calls of one caller on one stream, each answered by what answers it on its own.

A lane is a way of carrying, not a second peer: a frame's envelope goes to the very function that a unary call's goes to, and
what that raises becomes the same status, with the same details, in the frame's answer. The gate looks at the caller anew for
each message, so that a token's end, or its being withdrawn, ends what a lane may begin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer import telemetry
from blazen_peer.auth import AUTHORIZATION
from blazen_peer.errors import BlazenError, EncodeError, OverloadedError
from blazen_peer.identity import Caller
from blazen_peer.transport.gate import ADMITTED, Admitted
from blazen_peer.transport.lane_limits import (
    HEARTBEAT_SECS,
    HELLO_SECS,
    LANE_VERSION,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_FRAMES,
    SILENCE_SECS,
    WRITE_SECS,
)
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.run_servicer import cancel_response
from blazen_peer.transport.servicer import CONTROL_SERVICE
from blazen_peer.transport.status import DETAILS_KEY, refusal_of
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.cancellation import CancelReport
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["LANE_METHOD", "LaneService", "LaneServicer", "lane_handlers"]

LANE_METHOD: Final = f"/{CONTROL_SERVICE}/Lane"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

Admit: TypeAlias = Callable[[Metadata, Context], Admitted]

logger = logging.getLogger(__name__)


class LaneService(Protocol):
    """What answers the frames; ``runtime.invocations`` does."""

    async def invoke(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
        """Answer a call: request envelope, caller, metadata -> response envelope."""

    def stream(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> AsyncIterator[SubWorkflowEvent]:
        """Answer a call, and give what its run emits meanwhile."""

    def attach(self, caller: Caller, invocation_id: str, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        """Give what a run of *caller*'s emits."""

    async def cancel(self, caller: Caller, invocation_id: str, grace_secs: float) -> CancelReport:
        """Stop a run of *caller*'s."""


class LaneServicer:
    """The lanes of one server.

    Args:
        service: What answers the frames.
        instance_id: This process's own.
        admit: Asks the gate about metadata as of now; raises what the caller hears.
    """

    def __init__(self, service: LaneService, instance_id: str, admit: Admit) -> None:
        self._service, self._instance_id, self._admit = service, instance_id, admit
        self._lanes: set[_Lane] = set()
        self._leaving: str | None = None

    def send_away(self, reason: str) -> None:
        """Ask every caller to go on elsewhere; what is in flight is still answered."""
        self._leaving = reason
        for lane in self._lanes:
            lane.send_away(reason)

    async def serve(self, _: object, context: Context) -> None:
        """Answer one lane until its caller, its sidecar or its silence ends it: the handler of ``PeerControl.Lane``."""
        lane = _Lane(self._service, ADMITTED.get(), self._admit, context)
        try:
            await lane.hello()
            self._lanes.add(lane)
            await lane.follow(self._welcome(), self._leaving)
        except _LaneError as error:
            logger.info("a lane of %s ends: %s", lane.caller, error)
            await context.abort(error.code, str(error))
        finally:
            self._lanes.discard(lane)
            lane.close()

    def _welcome(self) -> lane_pb2.Welcome:
        return lane_pb2.Welcome(
            instance_id=self._instance_id,
            max_open_frames=MAX_OPEN_FRAMES,
            max_frame_bytes=MAX_FRAME_BYTES,
            max_message_bytes=MAX_MESSAGE_BYTES,
            heartbeat_ms=round(HEARTBEAT_SECS * 1000),
        )


def lane_handlers(lanes: LaneServicer) -> grpc.GenericRpcHandler:
    """Return the handler of ``PeerControl.Lane``."""
    return grpc.method_handlers_generic_handler(CONTROL_SERVICE, {"Lane": grpc.stream_stream_rpc_method_handler(lanes.serve)})


class _LaneError(Exception):
    """The caller broke the lane's rules, or is gone: the lane ends with this status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Lane:
    """One lane. Belongs to one event loop.

    Each open frame has one task; what they answer waits in the writer, which is bounded in bytes: while it is full, nothing
    more is read, so that a caller who takes no answers soon gives no more work either.
    """

    def __init__(self, service: LaneService, admitted: Admitted, admit: Admit, context: Context) -> None:
        self._service, self._admit, self._context = service, admit, context
        self.caller, self._metadata = admitted
        self._authorization = next((value for name, value in self._metadata if name == AUTHORIZATION), None)
        self._loop = asyncio.get_running_loop()
        self._frames: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, _Credit] = {}
        self._last_id = 0
        self._client_node_id: str | None = None
        self._writer: LaneWriter[lane_pb2.LaneResponse] = LaneWriter(context.write, lane_pb2.LaneResponse, self._loop)

    async def hello(self) -> None:
        """Take how the caller opens the lane."""
        message = await self._read(HELLO_SECS)
        if message is None or not message.HasField("hello") or message.hello.version != LANE_VERSION:
            raise _broken(f"a lane begins with a hello of version {LANE_VERSION}")
        self._client_node_id = message.hello.client_node_id or None

    async def follow(self, welcome: lane_pb2.Welcome, leaving: str | None) -> None:
        """Welcome the caller, and answer what it sends until it sends no more."""
        self._writer.message.welcome.CopyFrom(welcome)
        self._writer.note(64)
        if leaving is not None:
            self.send_away(leaving)
        writing = self._loop.create_task(self._writer.run())
        reading = self._loop.create_task(self._take_all())
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                if self._frames:
                    await asyncio.wait(set(self._frames.values()))
                await self._writer.flushed()
            else:
                writing.result()
        except (TimeoutError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise _LaneError(grpc.StatusCode.UNAVAILABLE, f"the caller takes no answers: {type(error).__name__}") from None
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    def send_away(self, reason: str) -> None:
        """Ask the caller to go on elsewhere."""
        self._writer.message.going_away.reason = reason
        self._writer.note(len(reason))

    def close(self) -> None:
        """Sever what waits for runs; the runs go on."""
        for task in self._frames.values():
            task.cancel()

    async def _take_all(self) -> None:
        while (message := await self._read(SILENCE_SECS)) is not None:
            self._take(message)
            await self._writer.room(WRITE_SECS)

    async def _read(self, within_secs: float) -> lane_pb2.LaneRequest | None:
        try:
            async with asyncio.timeout(within_secs):
                raw = await self._context.read()
        except TimeoutError:
            raise _LaneError(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was heard for {within_secs:g} s") from None
        if raw is grpc.aio.EOF:
            return None
        if len(raw) > MAX_MESSAGE_BYTES:
            raise _broken(f"a message of {len(raw)} bytes is over the lane's {MAX_MESSAGE_BYTES}")
        try:
            return lane_pb2.LaneRequest.FromString(raw)
        except DecodeError:
            raise _broken("the message is not a LaneRequest") from None

    def _take(self, message: lane_pb2.LaneRequest) -> None:
        if message.HasField("hello"):
            raise _broken("a lane begins once")
        calls, attaches, cancels = message.calls, message.attaches, message.cancels
        for number in message.dropped:
            if (task := self._frames.get(number)) is not None:
                task.cancel()
        for credit in message.credits:
            if (held := self._streams.get(credit.id)) is not None:
                held.add(credit.events)
        if not (calls or attaches or cancels):
            return
        if len(calls) + len(attaches) + len(cancels) > MAX_FRAMES:
            raise _broken(f"a message holds more than {MAX_FRAMES} frames")
        refusal = self._admitted_anew(message.authorization)
        for call in calls:
            self._open(call.id, refusal, self._call, call)
        for attach in attaches:
            self._open(attach.id, refusal, self._attach, attach)
        for cancel in cancels:
            self._open(cancel.id, refusal, self._cancel, cancel)

    def _admitted_anew(self, authorization: str) -> BlazenError | None:
        """Ask the gate about the caller as of now, with a fresh token where one came; return what it refuses with."""
        if authorization:
            self._metadata = [pair for pair in self._metadata if pair[0] != AUTHORIZATION]
            self._metadata.append((AUTHORIZATION, authorization))
        try:
            admitted = self._admit(self._metadata, self._context)
        except BlazenError as error:
            return error
        if admitted.caller != self.caller or admitted.caller.stamps != self.caller.stamps:
            raise _broken("a lane belongs to one caller")
        return None

    def _open(self, number: int, refusal: BlazenError | None, answer: Any, frame: Any) -> None:
        if number <= self._last_id:
            raise _broken(f"frame {number} does not come after {self._last_id}")
        self._last_id = number
        if refusal is None and len(self._frames) >= MAX_OPEN_FRAMES:
            refusal = OverloadedError(f"{MAX_OPEN_FRAMES} frames of this lane are open, as many as may", 1.0)
        if refusal is not None:
            self._refuse(number, refusal)
            return
        task = self._loop.create_task(answer(frame))
        self._frames[number] = task

    async def _call(self, call: lane_pb2.Call) -> None:
        number = call.id
        try:
            metadata = _metadata_of(call, self._client_node_id)
            if len(call.envelope) > MAX_FRAME_BYTES:
                raise EncodeError(
                    f"an envelope of {len(call.envelope)} bytes is over the lane's {MAX_FRAME_BYTES}",
                    len(call.envelope),
                    MAX_FRAME_BYTES,
                )
            if call.stream:
                await self._streamed(number, call.event_credit, self._service.stream(call.envelope, self.caller, metadata))
                return
            envelope = await self._service.invoke(call.envelope, self.caller, metadata)
            if len(envelope) > MAX_FRAME_BYTES:
                self._writer.message.answers.add(id=number, too_large=True)
                self._writer.note(16)
            else:
                self._writer.message.answers.add(id=number, envelope=envelope)
                self._writer.note(len(envelope) + 16)
        except BlazenError as error:
            self._refuse(number, error)
        except Exception:
            logger.exception("a defect ended a frame of a lane")
            self._refuse(number, None)
        finally:
            del self._frames[number]

    async def _attach(self, attach: lane_pb2.Attach) -> None:
        number = attach.id
        try:
            events = self._service.attach(self.caller, attach.invocation_id, attach.cursor)
            await self._streamed(number, attach.event_credit, events)
        except BlazenError as error:
            self._refuse(number, error)
        except Exception:
            logger.exception("a defect ended a frame of a lane")
            self._refuse(number, None)
        finally:
            del self._frames[number]

    async def _streamed(self, number: int, credit: int, events: AsyncIterator[SubWorkflowEvent]) -> None:
        held = self._streams[number] = _Credit(credit)
        try:
            async for event in events:
                if event.terminal is None:
                    await held.take()
                raw = event.encode()
                self._writer.message.events.add(id=number, envelope=raw)
                self._writer.note(len(raw) + 16)
        finally:
            del self._streams[number]

    async def _cancel(self, cancel: lane_pb2.Cancel) -> None:
        number = cancel.id
        try:
            report = await self._service.cancel(self.caller, cancel.invocation_id, cancel.grace_ms / 1000)
            raw = cancel_response(report).SerializeToString()
            self._writer.message.cancelled.add(id=number, response=raw)
            self._writer.note(len(raw) + 16)
        except BlazenError as error:
            self._refuse(number, error)
        except Exception:
            logger.exception("a defect ended a frame of a lane")
            self._refuse(number, None)
        finally:
            del self._frames[number]

    def _refuse(self, number: int, error: BlazenError | None) -> None:
        frame = self._writer.message.answers.add(id=number)
        if error is None:
            frame.refusal.code, frame.refusal.text = grpc.StatusCode.INTERNAL.value[0], "internal error"
        else:
            telemetry.refused("Lane", error.kind)
            refusal = refusal_of(error)
            frame.refusal.code, frame.refusal.text = refusal.code.value[0], refusal.text
            frame.refusal.details = next((value for name, value in refusal.trailing_metadata if name == DETAILS_KEY), b"")
        self._writer.note(frame.ByteSize())


class _Credit:
    """How many events a stream may still send."""

    def __init__(self, events: int) -> None:
        self._left = events
        self._more = asyncio.Event()

    def add(self, events: int) -> None:
        self._left += events
        self._more.set()

    async def take(self) -> None:
        while self._left <= 0:
            self._more.clear()
            await self._more.wait()
        self._left -= 1


def _metadata_of(call: lane_pb2.Call, client_node_id: str | None) -> CallMetadata:
    """Return what the frame says beside its envelope.

    Raises:
        EncodeError: It says what metadata could not.
    """
    trace = {}
    if call.traceparent:
        trace["traceparent"] = call.traceparent
        if call.tracestate:
            trace["tracestate"] = call.tracestate
    return CallMetadata(
        invocation_id=call.invocation_id or None,
        client_node_id=client_node_id,
        timeout_ms=call.timeout_ms if call.HasField("timeout_ms") else None,
        trace=trace,
        parent_run_id=call.parent_run_id or None,
        instance_id=call.instance_id or None,
        cursor=call.cursor or None,
        data_class=call.data_class or None,
    ).checked()


def _broken(text: str) -> _LaneError:
    return _LaneError(grpc.StatusCode.INVALID_ARGUMENT, text)
