"""One lane at the server: what comes is opened frame by frame, what answers it is gathered and sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from operator import itemgetter
from typing import Any, Final, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer import telemetry
from blazen_peer.auth import AUTHORIZATION
from blazen_peer.auth.refusal import Refused
from blazen_peer.errors import BlazenError, EncodeError, OverloadedError, ValidationError
from blazen_peer.identity import check_node_id
from blazen_peer.transport.call_log import CallLog
from blazen_peer.transport.call_rate import CallRate, over_rate
from blazen_peer.transport.gate import Admitted, answer_to, note_refusal
from blazen_peer.transport.lane_frames import LANE_METHOD, EventCredit, Frame, metadata_of, method_of, said_id
from blazen_peer.transport.lane_limits import (
    HELLO_SECS,
    LANE_VERSION,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_FRAMES,
    SILENCE_SECS,
)
from blazen_peer.transport.lane_service import Admit, Context, LaneError, LaneService
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.run_servicer import cancel_response, run_call_span
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE, served_call
from blazen_peer.transport.status import DETAILS_KEY, refusal_of
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ServedLane"]

_Answer: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]

_FRAME_BYTES: Final = 16  # about what a frame takes around its envelope
_MOMENT_SECS: Final = 0.05
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

logger = logging.getLogger(__name__)


class ServedLane:
    """One lane. Belongs to one event loop.

    Each open frame has one task; what they answer waits in the writer, which is bounded in bytes: while it is full, nothing
    more is read or answered, so that a caller who takes no answers soon gives no more work either.

    Args:
        rate: How many frames each caller may still send.
        log: Takes a line for each frame; None where nobody asked for that.

    Attributes:
        caller: Whose it is.
    """

    def __init__(
        self,
        service: LaneService,
        node_id: str,
        admitted: Admitted,
        admit: Admit,
        rate: CallRate,
        log: CallLog | None,
        context: Context,
    ) -> None:
        self._service, self._node_id, self._admit, self._context = service, node_id, admit, context
        self.caller, metadata = admitted
        self._metadata = list(metadata)
        self._rate, self.log = rate, log
        self._granted = 0  # frames of the message that is being opened, which are within the caller's rate
        self._loop = asyncio.get_running_loop()
        self._frames: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, EventCredit] = {}
        self._last_id = 0
        self._client_node_id: str | None = None
        self._closing = asyncio.Event()
        self._heard = time.monotonic()  # of the machine's time: a test may take the loop's over
        self._silent = asyncio.Event()
        self._writer: LaneWriter[lane_pb2.LaneResponse] = LaneWriter(context.write, lane_pb2.LaneResponse, self._loop)

    @property
    def open_frames(self) -> int:
        """How many of its frames are not answered."""
        return len(self._frames)

    @property
    def frames(self) -> tuple[asyncio.Task[None], ...]:
        """The tasks that answer them."""
        return tuple(self._frames.values())

    async def hello(self) -> None:
        """Take how the caller opens the lane."""
        try:
            async with asyncio.timeout(HELLO_SECS):
                message = await self._read()
        except TimeoutError:
            raise LaneError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {HELLO_SECS:g} s") from None
        if message is None or not message.HasField("hello") or message.hello.version != LANE_VERSION:
            raise _broken(f"a lane begins with a hello of version {LANE_VERSION}")
        if message.calls or message.attaches or message.cancels:
            raise _broken("frames come after the welcome")
        if node_id := message.hello.client_node_id:
            try:
                self._client_node_id = check_node_id(node_id)
            except ValidationError:
                raise _broken("client_node_id is not a node id") from None

    async def follow(self, welcome: lane_pb2.Welcome, leaving: str | None) -> None:
        """Welcome the caller, and answer what it sends until it sends no more, or :meth:`finish` is called."""
        self._writer.message.welcome.CopyFrom(welcome)
        if leaving is not None:
            self._writer.message.going_away.reason = leaving
        self._writer.note(64)
        writing = self._loop.create_task(self._writer.run())
        reading = self._loop.create_task(self._take_all())
        closing = self._loop.create_task(self._closing.wait())
        silent = self._loop.create_task(self._silent.wait())
        tasks = (writing, reading, closing, silent)
        self._check_silence()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if silent.done():
                raise LaneError(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was heard for {SILENCE_SECS:g} s")
            if not writing.done():
                if reading.done():
                    reading.result()
                await self._end_well(writing)
            if writing.done():
                writing.result()
        except (TimeoutError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise LaneError(grpc.StatusCode.UNAVAILABLE, f"the caller takes no answers: {type(error).__name__}") from None
        finally:
            self._watch.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_well(self, writing: asyncio.Task[None]) -> None:
        """Answer what is open; nothing more is read, so that streams get no more credit."""
        for number in list(self._streams):
            self._sever(number)
        flushing = self._loop.create_task(self._flushed())
        try:
            await asyncio.wait((flushing, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            flushing.cancel()

    async def _flushed(self) -> None:
        if self._frames:
            await asyncio.wait(set(self._frames.values()))
        await self._writer.flushed()

    def send_away(self, reason: str) -> None:
        """Ask the caller to go on elsewhere."""
        self._writer.message.going_away.reason = reason
        self._writer.note(len(reason))

    def finish(self) -> None:
        """End the lane once what is open was answered; streams are severed."""
        self._closing.set()

    def close(self) -> None:
        """Sever what waits for runs; the runs go on."""
        for task in self._frames.values():
            task.cancel()

    def _sever(self, number: int) -> None:
        if (task := self._frames.pop(number, None)) is not None:  # the task may not have begun, and never end by itself then
            task.cancel()

    async def _take_all(self) -> None:
        while (message := await self._read()) is not None:
            self._heard = time.monotonic()
            self._take(message)
            await self._writer.room()
            self._heard = time.monotonic()

    def _check_silence(self) -> None:
        left_secs = self._heard + SILENCE_SECS - time.monotonic()
        if left_secs <= 0:
            self._silent.set()
        self._watch = self._loop.call_later(max(left_secs, _MOMENT_SECS), self._check_silence)

    async def _read(self) -> lane_pb2.LaneRequest | None:
        raw = await self._context.read()
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
        calls, attaches, cancels, dropped, credits_ = (
            message.calls,
            message.attaches,
            message.cancels,
            message.dropped,
            message.credits,
        )
        if len(calls) + len(attaches) + len(cancels) + len(dropped) + len(credits_) > MAX_FRAMES:
            raise _broken(f"a message holds more than {MAX_FRAMES} frames")
        asked = len(calls) + len(attaches) + len(cancels)
        self._granted = self._rate.take(self.caller.name, asked) if asked else 0
        refusal = self._admitted_anew(message.authorization)
        if refusal is not None:
            self._shut(refusal, noted=asked > 0)
        for number in dropped:
            self._sever(number)
        for credit in credits_:
            if (held := self._streams.get(credit.id)) is not None:
                try:
                    held.add(credit.events)
                except EncodeError as error:
                    raise _broken(str(error)) from None
        if not (attaches or cancels):
            for call in calls:
                self._open(call.id, refusal, self._call, call)
        else:  # in the order in which their caller made them
            frames: list[tuple[int, _Answer, Frame]] = [(call.id, self._call, call) for call in calls]
            frames += [(attach.id, self._attach, attach) for attach in attaches]
            frames += [(cancel.id, self._cancel, cancel) for cancel in cancels]
            for number, answer, frame in sorted(frames, key=itemgetter(0)):
                self._open(number, refusal, answer, frame)

    def _admitted_anew(self, authorization: str) -> Refused | None:
        """Ask the gate about the caller as of now, with a fresh token where one came; return what it refuses with."""
        if authorization:
            self._metadata = [pair for pair in self._metadata if pair[0] != AUTHORIZATION]
            self._metadata.append((AUTHORIZATION, authorization))
        try:
            admitted = self._admit(self._metadata, self._context)
        except Refused as refused:
            return refused
        if admitted.caller != self.caller or admitted.caller.stamps != self.caller.stamps:
            raise _broken("a lane belongs to one caller")
        return None

    def _shut(self, refusal: Refused, *, noted: bool) -> None:
        """The gate lets the lane in no longer: streams end. Calls that it let in before are answered, as on their own.

        Args:
            noted: Whether frames are about to be refused, each with a line in the log.
        """
        if not noted:
            note_refusal(LANE_METHOD, refusal, self._client_node_id, None)
        for number in list(self._streams):
            self._sever(number)
            self._refuse(number, answer_to(refusal), at_the_gate=True)

    def _open(self, number: int, refusal: Refused | None, answer: _Answer, frame: Frame) -> None:
        if number <= self._last_id:
            raise _broken(f"frame {number} does not come after {self._last_id}")
        self._last_id = number
        self._granted -= 1
        if self._granted < 0:  # before the gate, as at the ingress: what is over the rate costs next to nothing
            self._turn_away(frame, over_rate())
        elif refusal is not None:
            note_refusal(method_of(frame), refusal, self._client_node_id, said_id(frame))
            self._turn_away(frame, answer_to(refusal), at_the_gate=True)
        elif len(self._frames) >= MAX_OPEN_FRAMES:
            self._turn_away(frame, OverloadedError(f"{MAX_OPEN_FRAMES} frames of this lane are open, as many as may be", 1.0))
        else:
            self._frames[number] = self._loop.create_task(answer(frame))

    def _turn_away(self, frame: Frame, error: BlazenError, *, at_the_gate: bool = False) -> None:
        """Refuse a frame of which nothing was looked at."""
        if not at_the_gate:
            telemetry.refused(method_of(frame).rpartition("/")[2], error.kind)
        if self.log is not None:
            self.log.write(frame, self.caller, self._client_node_id, error, began=self.log.now(), sent_bytes=0)
        self._refuse(frame.id, error, at_the_gate=at_the_gate)

    async def _call(self, call: lane_pb2.Call) -> None:
        number = call.id
        with _Answering(self, call) as answering:
            metadata = metadata_of(call, self._client_node_id)
            if len(call.envelope) > MAX_FRAME_BYTES:
                raise EncodeError(
                    f"an envelope of {len(call.envelope)} bytes is over the lane's {MAX_FRAME_BYTES}",
                    len(call.envelope),
                    MAX_FRAME_BYTES,
                )
            if call.stream:
                with run_call_span(PEER_SERVICE, "StreamSubWorkflowEvents", self._node_id, self.caller, metadata):
                    events = self._service.stream(call.envelope, self.caller, metadata)
                    await self._streamed(answering, call.event_credit, events)
                return
            envelope = await served_call(self._service.invoke, self._node_id, call.envelope, self.caller, metadata)
            if self._writer.waiting_bytes > MAX_FRAME_BYTES:
                await self._writer.room()
            answering.sent_bytes = len(envelope)
            if len(envelope) > MAX_FRAME_BYTES:
                self._writer.message.answers.add(id=number, too_large=True)
                self._writer.note(_FRAME_BYTES)
            else:
                self._writer.message.answers.add(id=number, envelope=envelope)
                self._writer.note(len(envelope) + _FRAME_BYTES)

    async def _attach(self, attach: lane_pb2.Attach) -> None:
        with _Answering(self, attach) as answering:
            metadata = CallMetadata(invocation_id=attach.invocation_id, client_node_id=self._client_node_id)
            with run_call_span(CONTROL_SERVICE, "Attach", self._node_id, self.caller, metadata):
                events = self._service.attach(self.caller, attach.invocation_id, attach.cursor)
                await self._streamed(answering, attach.event_credit, events)

    async def _streamed(self, answering: _Answering, credit: int, events: AsyncIterator[SubWorkflowEvent]) -> None:
        number = answering.frame.id
        held = self._streams[number] = EventCredit()
        try:
            held.add(credit)
            async for event in events:
                if event.terminal is None:
                    await held.take()
                raw = event.encode()
                await self._writer.room()
                self._writer.message.events.add(id=number, envelope=raw)
                self._writer.note(len(raw) + _FRAME_BYTES)
                answering.sent_bytes += len(raw)
        finally:
            del self._streams[number]

    async def _cancel(self, cancel: lane_pb2.Cancel) -> None:
        with _Answering(self, cancel) as answering:
            metadata = CallMetadata(invocation_id=cancel.invocation_id, client_node_id=self._client_node_id)
            with run_call_span(CONTROL_SERVICE, "Cancel", self._node_id, self.caller, metadata):
                report = await self._service.cancel(self.caller, cancel.invocation_id, cancel.grace_ms / 1000)
            logger.info("%s cancelled invocation %s: %s", self.caller, cancel.invocation_id, report.outcome)
            raw = cancel_response(report).SerializeToString()
            self._writer.message.cancelled.add(id=cancel.id, response=raw)
            self._writer.note(len(raw) + _FRAME_BYTES)
            answering.sent_bytes = len(raw)

    def _over(self, answering: _Answering, error: BaseException | None) -> bool:
        """Take note of a frame's end; what it raised is its answer, where that is for its caller to know."""
        frame, number = answering.frame, answering.frame.id
        self._frames.pop(number, None)
        if self.log is not None:
            self.log.write(
                frame, self.caller, self._client_node_id, error, began=answering.began, sent_bytes=answering.sent_bytes
            )
        if isinstance(error, BlazenError):
            telemetry.refused(method_of(frame).rpartition("/")[2], error.kind)
            self._refuse(number, error)
        elif isinstance(error, Exception):
            logger.error("a defect ended a frame of a lane", exc_info=error)
            self._refuse(number, None)
        return isinstance(error, Exception)

    def _refuse(self, number: int, error: BlazenError | None, *, at_the_gate: bool = False) -> None:
        frame = self._writer.message.answers.add(id=number)
        if error is None:
            frame.refusal.code, frame.refusal.text = _INTERNAL, "internal error"
        else:
            refusal = refusal_of(error)
            frame.refusal.code, frame.refusal.text = refusal.code.value[0], refusal.text
            frame.refusal.details = next((value for name, value in refusal.trailing_metadata if name == DETAILS_KEY), b"")
            frame.refusal.at_the_gate = at_the_gate
        self._writer.note(frame.ByteSize())


class _Answering:
    """Turns what is raised inside into a frame's answer. A class, since a generator costs each call two microseconds."""

    __slots__ = ("_lane", "began", "frame", "sent_bytes")

    def __init__(self, lane: ServedLane, frame: Frame) -> None:
        self._lane, self.frame, self.sent_bytes = lane, frame, 0
        self.began = 0.0 if lane.log is None else lane.log.now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self._lane._over(self, error)


def _broken(text: str) -> LaneError:
    return LaneError(grpc.StatusCode.INVALID_ARGUMENT, text)
