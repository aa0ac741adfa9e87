"""The client's end of a lane: frames out, answers in, whoever waits for one woken with it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer.errors import BlazenError, EncodeError, PeerError, TransportError
from blazen_peer.transport.lane_limits import HELLO_SECS, LANE_VERSION, SILENCE_SECS
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import control_pb2, lane_pb2
from blazen_peer.transport.status import raised_by, raised_by_refusal
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["AnswerTooLargeError", "Lane", "LaneBrokenError"]

LaneCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"

_LATE: Final = "no answer within the deadline: Deadline Exceeded"
EVENT_CREDIT: Final = 256  # events of a stream that may be on their way


class LaneBrokenError(TransportError):
    """The lane ended while a frame was open. ``may_have_run`` is False for one that was never written."""


class AnswerTooLargeError(PeerError):
    """The answer is kept by the peer, and does not fit a frame: the call is repeated on its own."""


class Lane:
    """One open lane, of one event loop. Make it by :meth:`open`.

    Attributes:
        key: What its calls' ids begin with.
        instance_id: The process on the other end.
        max_frame_bytes: The largest envelope that it takes.
        retired: Whether new frames should go elsewhere.
    """

    def __init__(self, call: LaneCall, key: str, authorization: Callable[[], str | None]) -> None:
        self._call, self._authorization, self.key = call, authorization, key
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, LaneStream] = {}
        self._ids = 0
        self._sent_authorization: str | None = None
        self._writer: LaneWriter[lane_pb2.LaneRequest] = LaneWriter(call.write, lane_pb2.LaneRequest, self._loop)
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = self._loop.time()
        self._silence: asyncio.TimerHandle | None = None
        self.instance_id, self.max_frame_bytes, self.max_open_frames = "", 0, 0
        self.retired = False
        self.ended: TransportError | None = None

    @classmethod
    async def open(cls, call: LaneCall, key: str, client_node_id: str, authorization: Callable[[], str | None]) -> Self:
        """Open a lane on *call*, which has just begun.

        Args:
            key: What its calls' ids begin with.
            authorization: Gives the authorization header's value of this moment.

        Raises:
            PeerError: The other end has no lanes (kind "Unsupported"), is another process, or refuses.
            TransportError: The connection failed, or nothing came back in time.
        """
        lane = cls(call, key, authorization)
        lane._sent_authorization = authorization()
        hello = lane_pb2.Hello(version=LANE_VERSION, client_node_id=client_node_id)
        try:
            async with asyncio.timeout(HELLO_SECS):
                await call.write(lane_pb2.LaneRequest(hello=hello).SerializeToString())
                raw = await call.read()
                if raw is grpc.aio.EOF:
                    raise TransportError(f"the lane was closed: {await call.code()}", may_have_run=False)
        except TimeoutError:
            call.cancel()
            raise TransportError(f"no lane was opened within {HELLO_SECS:g} s", may_have_run=False) from None
        except grpc.aio.AioRpcError as error:
            raise raised_by(error) from error
        except asyncio.InvalidStateError:
            raise TransportError("the lane was closed before it was opened", may_have_run=False) from None
        welcome = _parsed(raw).welcome
        lane.instance_id, lane.max_frame_bytes = welcome.instance_id, welcome.max_frame_bytes
        lane.max_open_frames = welcome.max_open_frames
        lane._tasks = [lane._loop.create_task(lane._writer.run()), lane._loop.create_task(lane._listen())]
        for task in lane._tasks:
            task.add_done_callback(lane._over)
        lane._silence = lane._loop.call_later(SILENCE_SECS, lane._check_silence)
        return lane

    @property
    def is_open(self) -> bool:
        """Whether it takes new frames."""
        return self.ended is None and not self.retired and len(self._waiting) < self.max_open_frames

    @property
    def in_flight(self) -> int:
        """How many frames are open."""
        return len(self._waiting) + len(self._streams)

    async def invoke(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float) -> bytes:
        """Return the response envelope to *envelope*.

        Raises:
            AnswerTooLargeError: It does not fit a frame.
            LaneBrokenError: The lane ended first.
            PeerError: The peer refused it, as for a call on its own.
        """
        number, message = self._begin()
        _fill(message.calls.add(id=number, envelope=envelope), metadata)
        answer: bytes = await self._answered(number, len(envelope) + 64, deadline_secs)
        return answer

    async def cancel(self, invocation_id: str, grace_secs: float, deadline_secs: float) -> control_pb2.CancelResponse:
        """Do what ``PeerControl.Cancel`` does; raises as :meth:`invoke`."""
        number, message = self._begin()
        message.cancels.add(id=number, invocation_id=invocation_id, grace_ms=round(grace_secs * 1000))
        answer: control_pb2.CancelResponse = await self._answered(number, 64, deadline_secs)
        return answer

    def stream(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float) -> LaneStream:
        """Send *envelope* and read what its run emits."""
        number, message = self._begin()
        frame = message.calls.add(id=number, envelope=envelope, stream=True, cursor=metadata.cursor or 0)
        frame.event_credit = EVENT_CREDIT
        _fill(frame, metadata)
        return self._followed(number, len(envelope) + 64, deadline_secs)

    def attach(self, invocation_id: str, cursor: int, deadline_secs: float) -> LaneStream:
        """Read what a run that was begun before emits."""
        number, message = self._begin()
        message.attaches.add(id=number, invocation_id=invocation_id, cursor=cursor, event_credit=EVENT_CREDIT)
        return self._followed(number, 64, deadline_secs)

    def _begin(self) -> tuple[int, lane_pb2.LaneRequest]:
        if self.ended is not None:
            raise LaneBrokenError(str(self.ended), may_have_run=False)
        message = self._writer.message
        value = self._authorization()
        if value is not None and value != self._sent_authorization:
            message.authorization = self._sent_authorization = value
        self._ids += 1
        return self._ids, message

    async def _answered(self, number: int, size_bytes: int, deadline_secs: float) -> Any:
        waiting = self._waiting[number] = self._loop.create_future()
        self._writer.note(size_bytes)
        timer = self._loop.call_later(deadline_secs, self._give_up, number)
        try:
            return await waiting
        except asyncio.CancelledError:
            self._drop(number)
            raise
        finally:
            timer.cancel()
            del self._waiting[number]

    def _followed(self, number: int, size_bytes: int, deadline_secs: float) -> LaneStream:
        stream = self._streams[number] = LaneStream(self, number, self._loop.time() + deadline_secs)
        self._writer.note(size_bytes)
        return stream

    def grant(self, number: int, events: int) -> None:
        """Let a stream send more."""
        if self.ended is None:
            self._writer.message.credits.add(id=number, events=events)
            self._writer.note(16)

    def leave(self, number: int) -> None:
        """Read a stream no longer."""
        if self._streams.pop(number, None) is not None:
            self._drop(number)
            if self.retired:
                self._close_if_done()

    def retire(self) -> None:
        """Take no new frames; once the open ones are answered it closes."""
        self.retired = True
        self._close_if_done()

    def close(self) -> None:
        """End it now."""
        self._fail(LaneBrokenError("the client was closed while it waited for the answer"))

    def _give_up(self, number: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_exception(TransportError(_LATE))
            self._drop(number)

    def _drop(self, number: int) -> None:
        if self.ended is None:
            self._writer.message.dropped.append(number)
            self._writer.note(8)

    async def _listen(self) -> None:
        while True:
            raw = await self._call.read()
            if raw is grpc.aio.EOF:
                return
            self._heard = self._loop.time()
            self._take(_parsed(raw))
            if self.retired:
                self._close_if_done()

    def _take(self, message: lane_pb2.LaneResponse) -> None:
        waiting = self._waiting
        for event in message.events:
            if (stream := self._streams.get(event.id)) is not None:
                stream.put(event.envelope)
        for answer in message.answers:
            future = waiting.get(answer.id)
            if future is None and (stream := self._streams.get(answer.id)) is not None:
                refusal = answer.refusal
                stream.fail(raised_by_refusal(refusal.code, refusal.text, refusal.details))
            if future is None or future.done():
                continue
            match answer.WhichOneof("outcome"):
                case "envelope":
                    future.set_result(answer.envelope)
                case "refusal":
                    refusal = answer.refusal
                    future.set_exception(raised_by_refusal(refusal.code, refusal.text, refusal.details))
                case _:
                    future.set_exception(AnswerTooLargeError("the answer is too large for a frame"))
        for cancelled in message.cancelled:
            future = waiting.get(cancelled.id)
            if future is not None and not future.done():
                future.set_result(control_pb2.CancelResponse.FromString(cancelled.response))
        if message.HasField("going_away"):
            self.retired = True

    def _close_if_done(self) -> None:
        if not self._waiting and not self._streams and self.ended is None:
            self._fail(LaneBrokenError("the lane was given up", may_have_run=False))

    def _check_silence(self) -> None:
        left_secs = self._heard + SILENCE_SECS - self._loop.time()
        if left_secs > 0:
            self._silence = self._loop.call_later(left_secs, self._check_silence)
        else:
            self._fail(LaneBrokenError(f"the peer was silent for {SILENCE_SECS:g} s"))

    def _over(self, task: asyncio.Task[None]) -> None:
        if self.ended is not None:
            if not task.cancelled():
                task.exception()
            return
        error = None if task.cancelled() else task.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            self._fail(LaneBrokenError(str(raised_by(error))))
        else:
            self._fail(LaneBrokenError("the lane was closed" if error is None else f"the lane broke: {type(error).__name__}"))

    def _fail(self, error: LaneBrokenError) -> None:
        if self.ended is not None:
            return
        self.ended = error
        if self._silence is not None:
            self._silence.cancel()
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        unsent: set[int] = set()
        for message in self._writer.unsent():
            for frames in (message.calls, message.attaches, message.cancels):
                unsent.update(frame.id for frame in frames)
        never_sent = LaneBrokenError(str(error), may_have_run=False)
        for number, waiting in self._waiting.items():
            if not waiting.done():
                waiting.set_exception(never_sent if number in unsent else error)
        for number, stream in self._streams.items():
            stream.fail(never_sent if number in unsent else error)


class LaneStream:
    """The events of one run, as they come over a lane; read it as a call's messages are read, or :meth:`cancel` it.

    At most ``EVENT_CREDIT`` wait here: the peer sends no more before some were read.
    """

    def __init__(self, lane: Lane, number: int, ends: float) -> None:
        self._lane, self._number, self._ends = lane, number, ends
        self._loop = asyncio.get_running_loop()
        self._events: deque[bytes] = deque()
        self._error: BlazenError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._read = 0
        self._over = False

    def put(self, envelope: bytes) -> None:
        """An event came."""
        self._events.append(envelope)
        self._tell()

    def fail(self, error: BlazenError) -> None:
        """No more will come."""
        self._error = self._error or error
        self._tell()

    def cancel(self) -> None:
        """Read no more."""
        self._lane.leave(self._number)
        self.fail(LaneBrokenError("the stream was left"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SubWorkflowEvent:
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wake = self._loop.create_future()
            timer = self._loop.call_at(self._ends, self.fail, TransportError(_LATE))
            try:
                await self._wake
            finally:
                timer.cancel()
                self._wake = None
        event = SubWorkflowEvent.decode(self._events.popleft())
        self._read += 1
        if self._read >= EVENT_CREDIT // 2:
            self._lane.grant(self._number, self._read)
            self._read = 0
        return event

    def _tell(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _fill(frame: lane_pb2.Call, metadata: CallMetadata) -> None:
    if metadata.invocation_id is not None:
        frame.invocation_id = metadata.invocation_id
    if metadata.timeout_ms is not None:
        frame.timeout_ms = metadata.timeout_ms
    if metadata.parent_run_id is not None:
        frame.parent_run_id = metadata.parent_run_id
    if metadata.instance_id is not None:
        frame.instance_id = metadata.instance_id
    if metadata.data_class is not None:
        frame.data_class = metadata.data_class
    if metadata.trace:
        frame.traceparent = metadata.trace.get("traceparent", "")
        frame.tracestate = metadata.trace.get("tracestate", "")


def _parsed(raw: Any) -> lane_pb2.LaneResponse:
    try:
        return lane_pb2.LaneResponse.FromString(raw)
    except DecodeError:
        raise EncodeError("the message is not a LaneResponse") from None
