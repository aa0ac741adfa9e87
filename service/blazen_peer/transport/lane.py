"""The client's end of a lane: frames out, answers in, whoever waits for one woken with it."""

from __future__ import annotations

import asyncio
import contextlib
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

EVENT_CREDIT: Final = 256  # events of a stream that may be on their way


class LaneBrokenError(TransportError):
    """The lane ended while a frame was open. ``may_have_run`` is False for one that was never written."""


class AnswerTooLargeError(PeerError):
    """The answer is kept by the peer, and does not fit a frame: the call is repeated on its own."""


class Lane:
    """One open lane, of one event loop. Make it by :meth:`open`.

    Attributes:
        instance_id: The process on the other end.
        max_frame_bytes: The largest envelope that it takes.
        retired: Whether new frames should go elsewhere.
    """

    def __init__(self, call: LaneCall, authorization: Callable[[], str | None]) -> None:
        self._call, self._authorization = call, authorization
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, asyncio.Queue[lane_pb2.Event | BlazenError]] = {}
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
    async def open(
        cls, call: LaneCall, client_node_id: str, instance_id: str | None, authorization: Callable[[], str | None]
    ) -> Self:
        """Open a lane on *call*, which has just begun.

        Args:
            instance_id: The process that it is for; None for any.
            authorization: Gives the authorization header's value of this moment.

        Raises:
            PeerError: The other end has no lanes (kind "Unsupported"), is another process, or refuses.
            TransportError: The connection failed, or nothing came back in time.
        """
        lane = cls(call, authorization)
        lane._sent_authorization = authorization()
        hello = lane_pb2.Hello(version=LANE_VERSION, client_node_id=client_node_id, instance_id=instance_id or "")
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
            raise raised_by(await _error_of(call)) from None
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
        self._ids = number = self._ids + 1
        message = self._writer.message
        frame = message.calls.add(id=number, envelope=envelope, invocation_id=metadata.invocation_id or "")
        if metadata[2:] != _PLAIN:
            _fill(frame, metadata)
        waiting = self._waiting[number] = self._loop.create_future()
        self._authorize(message)
        self._writer.note(len(envelope) + 64)
        timer = self._loop.call_later(deadline_secs, self._give_up, number)
        try:
            answer: bytes = await waiting
            return answer
        except asyncio.CancelledError:
            self._drop(number)
            raise
        finally:
            timer.cancel()
            self._waiting.pop(number, None)

    async def cancel(self, invocation_id: str, grace_secs: float, deadline_secs: float) -> control_pb2.CancelResponse:
        """Do what ``PeerControl.Cancel`` does."""
        self._ids = number = self._ids + 1
        message = self._writer.message
        message.cancels.add(id=number, invocation_id=invocation_id, grace_ms=round(grace_secs * 1000))
        waiting = self._waiting[number] = self._loop.create_future()
        self._authorize(message)
        self._writer.note(64)
        timer = self._loop.call_later(deadline_secs, self._give_up, number)
        try:
            answer: control_pb2.CancelResponse = await waiting
            return answer
        finally:
            timer.cancel()
            self._waiting.pop(number, None)

    def retire(self) -> None:
        """Take no new frames; once the open ones are answered it closes."""
        self.retired = True
        self._close_if_done()

    def close(self) -> None:
        """End it now."""
        self._fail(LaneBrokenError("the client was closed while it waited for the answer"))

    def _authorize(self, message: lane_pb2.LaneRequest) -> None:
        value = self._authorization()
        if value is not None and value != self._sent_authorization:
            message.authorization = self._sent_authorization = value

    def _give_up(self, number: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_exception(TransportError("no answer within the deadline: Deadline Exceeded"))
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
        for answer in message.answers:
            future = waiting.get(answer.id)
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
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)


_PLAIN = CallMetadata()[2:]


def _fill(frame: lane_pb2.Call, metadata: CallMetadata) -> None:
    if metadata.timeout_ms is not None:
        frame.timeout_ms = metadata.timeout_ms
    if metadata.parent_run_id is not None:
        frame.parent_run_id = metadata.parent_run_id
    if metadata.instance_id is not None:
        frame.instance_id = metadata.instance_id
    if metadata.data_class is not None:
        frame.data_class = metadata.data_class
    frame.traceparent = metadata.trace.get("traceparent", "")
    frame.tracestate = metadata.trace.get("tracestate", "")


def _parsed(raw: bytes) -> lane_pb2.LaneResponse:
    try:
        return lane_pb2.LaneResponse.FromString(raw)
    except DecodeError:
        raise EncodeError("the message is not a LaneResponse") from None
