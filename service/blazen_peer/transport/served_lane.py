"""One lane at the server: what comes is opened frame by frame, what answers it is gathered and sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer import telemetry
from blazen_peer.auth import AUTHORIZATION
from blazen_peer.auth.tokens import MAX_BEARER_CHARS
from blazen_peer.errors import BlazenError, EncodeError, OverloadedError, ValidationError
from blazen_peer.identity import Caller, check_node_id
from blazen_peer.transport.gate import Admitted
from blazen_peer.transport.lane_frames import EventCredit, metadata_of
from blazen_peer.transport.lane_limits import (
    HELLO_SECS,
    LANE_VERSION,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_FRAMES,
    SILENCE_SECS,
)
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.run_servicer import cancel_response, run_call_span
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE, served_call
from blazen_peer.transport.status import DETAILS_KEY, refusal_of
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.cancellation import CancelReport
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Admit", "Context", "LaneError", "LaneService", "Metadata", "ServedLane"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
_Answer: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]
Admit: TypeAlias = Callable[[Metadata, Context], Admitted]

_FRAME_BYTES: Final = 16  # about what a frame takes around its envelope
_MOMENT_SECS: Final = 0.05
SLICE_FRAMES: Final = 32  # calls of one message that are begun before what they answer gets its turn
_MAX_AUTHORIZATION_CHARS: Final = len("Bearer ") + MAX_BEARER_CHARS
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

logger = logging.getLogger(__name__)


class Answering(Protocol):
    """A call that was begun."""

    def on_answer(self, tell: Callable[[bytes], None]) -> None:
        """Call *tell* with the response envelope, at once or later."""


class LaneService(Protocol):
    """What answers the frames; ``runtime.invocations`` does."""

    def begin(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Answering:
        """Begin a call that :meth:`invoke` would answer."""

    async def invoke(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
        """Answer a call: request envelope, caller, metadata -> response envelope."""

    def stream(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> AsyncIterator[SubWorkflowEvent]:
        """Answer a call, and give what its run emits meanwhile."""

    def attach(self, caller: Caller, invocation_id: str, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        """Give what a run of *caller*'s emits."""

    async def cancel(self, caller: Caller, invocation_id: str, grace_secs: float) -> CancelReport:
        """Stop a run of *caller*'s."""


class LaneError(Exception):
    """The caller broke the lane's rules, or is gone: the lane ends with this status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class ServedLane:
    """One lane. Belongs to one event loop.

    What answers the frames waits in the writer, which is bounded in bytes: while it is full, nothing more is read or answered,
    so that a caller who takes no answers soon gives no more work either.

    Attributes:
        caller: Whose it is.
    """

    def __init__(self, service: LaneService, node_id: str, admitted: Admitted, admit: Admit, context: Context) -> None:
        self._service, self._node_id, self._admit, self._context = service, node_id, admit, context
        self.caller, metadata = admitted
        self._metadata = list(metadata)
        self._loop = asyncio.get_running_loop()
        self._frames: dict[int, asyncio.Task[None] | None] = {}  # a plain call has no task but its run's
        self._none_open: asyncio.Future[None] | None = None
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

    async def answered(self) -> None:
        """Wait until no frame is open."""
        while self._frames:
            if self._none_open is None or self._none_open.done():
                self._none_open = self._loop.create_future()
            await asyncio.shield(self._none_open)  # several wait for it: one that is cancelled must not take it along

    async def hello(self) -> None:
        """Take how the caller opens the lane."""
        try:
            async with asyncio.timeout(HELLO_SECS):
                message = await self._read()
        except TimeoutError:
            raise LaneError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {HELLO_SECS:g} s") from None
        if message is None or not message.HasField("hello") or message.hello.version != LANE_VERSION:
            raise _broken(f"a lane begins with a hello of version {LANE_VERSION}")
        if _frames_in(message):
            raise _broken("a lane begins with a hello alone")
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
        await self.answered()
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
        for number in list(self._frames):
            self._sever(number)

    def _sever(self, number: int) -> None:
        task = self._frames.get(number)
        self._gone(number)
        if task is not None:
            task.cancel()

    def _gone(self, number: int) -> None:
        self._frames.pop(number, None)
        if self._none_open is not None and not self._frames and not self._none_open.done():
            self._none_open.set_result(None)

    async def _take_all(self) -> None:
        while (message := await self._read()) is not None:
            self._heard = time.monotonic()
            await self._take(message)
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

    async def _take(self, message: lane_pb2.LaneRequest) -> None:
        if message.HasField("hello"):
            raise _broken("a lane begins once")
        calls, attaches, cancels, dropped, credits_ = (
            message.calls,
            message.attaches,
            message.cancels,
            message.dropped,
            message.credits,
        )
        if _frames_in(message) > MAX_FRAMES:
            raise _broken(f"a message holds more than {MAX_FRAMES} frames")
        refusal = self._admitted_anew(message.authorization)
        if refusal is not None:
            self._shut(refusal)
        for number in dropped:
            self._sever(number)
        for credit in credits_:
            if (held := self._streams.get(credit.id)) is not None:
                try:
                    held.add(credit.events)
                except EncodeError as error:
                    raise _broken(str(error)) from None
        if not (attaches or cancels):
            plain = not telemetry.enabled()
            for count, call in enumerate(calls, 1):
                if plain and not (call.stream or call.traceparent):
                    self._open(call.id, refusal, None, call)
                else:
                    self._open(call.id, refusal, self._call, call)
                if not count % SLICE_FRAMES:
                    await asyncio.sleep(0)  # what is answered goes out, and its caller works, while the rest is worked on here
        else:  # in the order in which their caller made them
            frames: list[tuple[int, _Answer, Any]] = [(call.id, self._call, call) for call in calls]
            frames += [(attach.id, self._attach, attach) for attach in attaches]
            frames += [(cancel.id, self._cancel, cancel) for cancel in cancels]
            for number, answer, frame in sorted(frames, key=itemgetter(0)):
                self._open(number, refusal, answer, frame)

    def _admitted_anew(self, authorization: str) -> BlazenError | None:
        """Ask the gate about the caller as of now, with a fresh token where one came; return what it refuses with."""
        if authorization:
            if len(authorization) > _MAX_AUTHORIZATION_CHARS:  # it is kept
                raise _broken("the authorization is longer than any token")
            self._metadata = [pair for pair in self._metadata if pair[0] != AUTHORIZATION]
            self._metadata.append((AUTHORIZATION, authorization))
        try:
            admitted = self._admit(self._metadata, self._context)
        except BlazenError as error:
            return error.with_traceback(None)  # whose frames would hold the message, in a cycle
        if admitted.caller != self.caller or admitted.caller.stamps != self.caller.stamps:
            raise _broken("a lane belongs to one caller")
        return None

    def _shut(self, refusal: BlazenError) -> None:
        """The gate lets the lane in no longer: streams end. Calls that it let in before are answered, as on their own."""
        for number in list(self._streams):
            self._sever(number)
            self._refuse(number, refusal, at_the_gate=True)

    def _open(self, number: int, refusal: BlazenError | None, answer: _Answer | None, frame: Any) -> None:
        if number <= self._last_id:
            raise _broken(f"frame {number} does not come after {self._last_id}")
        self._last_id = number
        if refusal is not None:
            self._refuse(number, refusal, at_the_gate=True)
        elif len(self._frames) >= MAX_OPEN_FRAMES:
            self._refuse(number, OverloadedError(f"{MAX_OPEN_FRAMES} frames of this lane are open, as many as may be", 1.0))
        elif answer is not None:
            self._frames[number] = self._loop.create_task(answer(frame))
        else:
            self._frames[number] = None
            self._begin(number, frame)

    def _begin(self, number: int, call: lane_pb2.Call) -> None:
        """Begin a plain call, of which nothing is traced: it needs no task beside its run's."""
        try:
            envelope, metadata = self._read_call(call)
            self._service.begin(envelope, self.caller, metadata).on_answer(partial(self._answer, number))
        except Exception as error:
            self._over(number, "InvokeSubWorkflow", error)

    def _read_call(self, call: lane_pb2.Call) -> tuple[bytes, CallMetadata]:
        metadata, envelope = metadata_of(call, self._client_node_id), call.envelope
        if len(envelope) > MAX_FRAME_BYTES:
            text = f"an envelope of {len(envelope)} bytes is over the lane's {MAX_FRAME_BYTES}"
            raise EncodeError(text, len(envelope), MAX_FRAME_BYTES)
        return envelope, metadata

    def _answer(self, number: int, envelope: bytes) -> None:
        if number not in self._frames:  # nobody waits for it any more
            return
        if self._writer.waiting_bytes > MAX_FRAME_BYTES:
            self._frames[number] = self._loop.create_task(self._answer_in_turn(number, envelope))
        else:
            self._put_answer(number, envelope)
            self._gone(number)

    async def _answer_in_turn(self, number: int, envelope: bytes) -> None:
        with _Answering(self, number, "InvokeSubWorkflow"):
            await self._writer.room()
            self._put_answer(number, envelope)

    def _put_answer(self, number: int, envelope: bytes) -> None:
        if len(envelope) > MAX_FRAME_BYTES:
            self._writer.message.answers.add(id=number, too_large=True)
            self._writer.note(_FRAME_BYTES)
        else:
            self._writer.message.answers.add(id=number, envelope=envelope)
            self._writer.note(len(envelope) + _FRAME_BYTES)

    async def _call(self, call: lane_pb2.Call) -> None:
        number = call.id
        with _Answering(self, number, "InvokeSubWorkflow"):
            envelope, metadata = self._read_call(call)
            stream, credit = call.stream, call.event_credit
            del call  # it keeps the whole message that it came in, which may be 1 MiB, for as long as the run takes
            if stream:
                with run_call_span(PEER_SERVICE, "StreamSubWorkflowEvents", self._node_id, self.caller, metadata):
                    events = self._service.stream(envelope, self.caller, metadata)
                    await self._streamed(number, credit, events)
                return
            answer = await served_call(self._service.invoke, self._node_id, envelope, self.caller, metadata)
            await self._writer.room()
            self._put_answer(number, answer)

    async def _attach(self, attach: lane_pb2.Attach) -> None:
        number = attach.id
        with _Answering(self, number, "Attach"):
            invocation_id, cursor, credit = attach.invocation_id, attach.cursor, attach.event_credit
            del attach  # as in _call
            metadata = CallMetadata(invocation_id=invocation_id, client_node_id=self._client_node_id).checked()
            with run_call_span(CONTROL_SERVICE, "Attach", self._node_id, self.caller, metadata):
                events = self._service.attach(self.caller, invocation_id, cursor)
                await self._streamed(number, credit, events)

    async def _streamed(self, number: int, credit: int, events: AsyncIterator[SubWorkflowEvent]) -> None:
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
        finally:
            del self._streams[number]

    async def _cancel(self, cancel: lane_pb2.Cancel) -> None:
        number = cancel.id
        with _Answering(self, number, "Cancel"):
            invocation_id, grace_secs = cancel.invocation_id, cancel.grace_ms / 1000
            del cancel  # as in _call
            metadata = CallMetadata(invocation_id=invocation_id, client_node_id=self._client_node_id).checked()
            with run_call_span(CONTROL_SERVICE, "Cancel", self._node_id, self.caller, metadata):
                report = await self._service.cancel(self.caller, invocation_id, grace_secs)
            logger.info("%s cancelled invocation %s: %s", self.caller, invocation_id, report.outcome)
            raw = cancel_response(report).SerializeToString()
            self._writer.message.cancelled.add(id=number, response=raw)
            self._writer.note(len(raw) + _FRAME_BYTES)

    def _over(self, number: int, method: str, error: BaseException | None) -> bool:
        """Take note of a frame's end; what it raised is its answer, where that is for its caller to know."""
        self._gone(number)
        if isinstance(error, BlazenError):
            telemetry.refused(method, error.kind)
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

    __slots__ = ("_lane", "_method", "_number")

    def __init__(self, lane: ServedLane, number: int, method: str) -> None:
        self._lane, self._number, self._method = lane, number, method

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self._lane._over(self._number, self._method, error)


def _frames_in(message: lane_pb2.LaneRequest) -> int:
    frames = len(message.calls) + len(message.attaches) + len(message.cancels)
    return frames + len(message.dropped) + len(message.credits)


def _broken(text: str) -> LaneError:
    return LaneError(grpc.StatusCode.INVALID_ARGUMENT, text)
