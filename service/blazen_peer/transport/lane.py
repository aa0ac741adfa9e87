"""The client's end of a lane: frames out, answers in, whoever waits for one woken with it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer.errors import BlazenError, EncodeError, PeerError, TransportError
from blazen_peer.transport.lane_errors import AnswerTooLargeError, LaneBrokenError, LaneShutError
from blazen_peer.transport.lane_frames import fill
from blazen_peer.transport.lane_limits import HELLO_SECS, LANE_VERSION, MAX_OPEN_FRAMES, SILENCE_SECS, WRITE_SECS
from blazen_peer.transport.lane_stream import EVENT_CREDIT, LATE, LaneStream
from blazen_peer.transport.lane_told import not_opened, told_by
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import control_pb2, lane_pb2
from blazen_peer.transport.status import raised_by, raised_by_refusal
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Lane", "LaneCall"]

LaneCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"

MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024  # then new calls go elsewhere: those that were given up wait here too
LEAVE_SECS: Final = 2.0  # how long a lane that is given up may take to end in good order


class Lane:
    """One open lane, of one event loop. Make it by :meth:`open`.

    Attributes:
        key: What its calls' ids begin with.
        headers: What came before the peer's first message, some of it by the sidecars.
        told: What they mean.
        instance_id: The process on the other end.
        max_frame_bytes: The largest envelope that it takes.
        retired: Whether new frames should go elsewhere.
        ended: Why it takes no frames at all; None while it does.
    """

    def __init__(self, call: LaneCall, key: str, authorization: Callable[[], str | None]) -> None:
        self._call, self._authorization, self.key = call, authorization, key
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[Any], float]] = {}  # and when, by the loop's time, it is too late
        self._late: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        self._streams: dict[int, LaneStream] = {}
        self._ids = 0
        self._sent_authorization: str | None = None
        self._writer: LaneWriter[lane_pb2.LaneRequest] = LaneWriter(call.write, lane_pb2.LaneRequest, self._loop, self._freshen)
        self._writing: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._farewell: asyncio.Task[None] | None = None
        self._heard = time.monotonic()  # of the machine's time: a test may take the loop's over
        self._silence: asyncio.TimerHandle | None = None
        self.headers: tuple[tuple[str, str | bytes], ...] = ()
        self.instance_id, self.max_frame_bytes, self.max_open_frames = "", 0, 0
        self.told = told_by(())
        self.retired = False
        self.ended: TransportError | None = None
        self._shut = False
        self._ids_seen = 0

    @classmethod
    async def open(
        cls,
        call: LaneCall,
        key: str,
        client_node_id: str,
        authorization: Callable[[], str | None],
        *,
        refusal_secs: float = 0.0,
    ) -> Self:
        """Open a lane on *call*, which has just begun.

        Args:
            key: What its calls' ids begin with.
            authorization: Gives the authorization header's value of this moment.
            refusal_secs: How long to wait for a refusal before anything is written.

        Raises:
            UnclearEndError: It was refused while the hello was written, and gRPC does not know with what.
            PeerError: The other end has no lanes, or something on the way lets none through (kind "Unsupported").
            UnauthenticatedError, PermissionDeniedError, OverloadedError: The peer refuses this caller's.
            TransportError: The connection failed, or nothing came back in time.
        """
        lane = cls(call, key, authorization)
        lane._sent_authorization = authorization()
        hello = lane_pb2.Hello(version=LANE_VERSION, client_node_id=client_node_id)
        try:
            async with asyncio.timeout(HELLO_SECS):
                if refusal_secs:
                    await asyncio.wait({lane._loop.create_task(call.initial_metadata())}, timeout=refusal_secs)
                with contextlib.suppress(asyncio.InvalidStateError):  # it is over already: reading says how
                    await call.write(lane_pb2.LaneRequest(hello=hello).SerializeToString())
                raw = await call.read()
                if raw is grpc.aio.EOF:
                    raise TransportError("the peer closed the lane as it was opened", may_have_run=False)
                lane.headers = tuple(await call.initial_metadata() or ())
                lane.told = told_by(lane.headers)
            message = _parsed(raw)
            if not message.welcome.max_open_frames:
                raise PeerError("the peer welcomed a lane, and lets no frame open on it", kind="Unsupported")
        except BaseException as error:
            call.cancel()
            if isinstance(error, TimeoutError):
                raise TransportError(f"no lane was opened within {HELLO_SECS:g} s", may_have_run=False) from None
            if isinstance(error, grpc.aio.AioRpcError):
                raise not_opened(error) from error
            raise
        welcome, lane.retired = message.welcome, message.HasField("going_away")
        lane.instance_id, lane.max_frame_bytes = welcome.instance_id, welcome.max_frame_bytes
        lane.max_open_frames = min(welcome.max_open_frames, MAX_OPEN_FRAMES)
        lane._writing = lane._loop.create_task(lane._writer.run())
        lane._listening = lane._loop.create_task(lane._listen())
        for task in (lane._writing, lane._listening):
            task.add_done_callback(lane._over)
        lane._silence = lane._loop.call_later(SILENCE_SECS, lane._check_silence)
        if lane.retired:  # it is there for what broke elsewhere; nothing may need it
            lane._loop.call_later(LEAVE_SECS, lane._close_if_done)
        return lane

    @property
    def is_open(self) -> bool:
        """Whether it takes new frames."""
        return (
            self.ended is None
            and not self.retired
            and self.in_flight < self.max_open_frames
            and self._writer.waiting_bytes <= MAX_UNSENT_BYTES
        )

    @property
    def takes_up(self) -> bool:
        """Whether it takes frames that were open on another lane to the same process, though it may take no new ones."""
        return self.ended is None and not self._shut and self.in_flight < self.max_open_frames

    @property
    def is_leaving(self) -> bool:
        """Whether it was given up, and its call has not ended."""
        return self._farewell is not None and not self._farewell.done()

    @property
    def in_flight(self) -> int:
        """How many frames are open."""
        return len(self._waiting) + len(self._streams)

    def unused(self) -> bool:
        """Return whether no frame is open, and none was begun since this was asked last."""
        seen, self._ids_seen = self._ids_seen, self._ids
        return seen == self._ids and not self.in_flight

    async def invoke(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float) -> bytes:
        """Return the response envelope to *envelope*.

        Raises:
            AnswerTooLargeError: It does not fit a frame.
            LaneBrokenError: The lane ended first.
            PeerError: The peer refused it, as for a call on its own.
        """
        number, message = self._begin()
        fill(message.calls.add(id=number, envelope=envelope), metadata)
        answer = await self._answered(number, len(envelope) + 64, deadline_secs)
        if not isinstance(answer, bytes):
            raise EncodeError("the peer answers a call as it would a Cancel")
        return answer

    async def cancel(self, invocation_id: str, grace_secs: float, deadline_secs: float) -> control_pb2.CancelResponse:
        """Do what ``PeerControl.Cancel`` does; raises as :meth:`invoke`."""
        number, message = self._begin()
        message.cancels.add(id=number, invocation_id=invocation_id, grace_ms=round(grace_secs * 1000))
        answer = await self._answered(number, 64, deadline_secs)
        if not isinstance(answer, control_pb2.CancelResponse):
            raise EncodeError("the peer answers a Cancel as it would a call")
        return answer

    def stream(self, envelope: bytes, metadata: CallMetadata, deadline_secs: float) -> LaneStream:
        """Send *envelope* and read what its run emits."""
        number, message = self._begin()
        frame = message.calls.add(id=number, envelope=envelope, stream=True, cursor=metadata.cursor or 0)
        frame.event_credit = EVENT_CREDIT
        fill(frame, metadata)
        return self._followed(number, len(envelope) + 64, deadline_secs)

    def attach(self, invocation_id: str, cursor: int, deadline_secs: float) -> LaneStream:
        """Read what a run that was begun before emits."""
        number, message = self._begin()
        message.attaches.add(id=number, invocation_id=invocation_id, cursor=cursor, event_credit=EVENT_CREDIT)
        return self._followed(number, 64, deadline_secs)

    def _begin(self) -> tuple[int, lane_pb2.LaneRequest]:
        if self.ended is not None:
            raise LaneBrokenError(str(self.ended), may_have_run=False)
        self._ids += 1
        return self._ids, self._writer.message

    def _freshen(self, message: lane_pb2.LaneRequest) -> None:
        """Send the token of this moment along, where it is another than before."""
        value = self._authorization()
        if value is not None and value != self._sent_authorization:
            message.authorization = self._sent_authorization = value

    async def _answered(self, number: int, size_bytes: int, deadline_secs: float) -> Any:
        waiting = self._loop.create_future()
        ends = self._loop.time() + deadline_secs
        self._waiting[number] = waiting, ends
        self._writer.note(size_bytes)
        if ends < self._looks_at:
            self._look_at(ends)
        try:
            return await waiting
        except asyncio.CancelledError:
            self._drop(number)
            raise
        finally:
            del self._waiting[number]

    def _look_at(self, when: float) -> None:
        if self._late is not None:
            self._late.cancel()
        self._looks_at, self._late = when, self._loop.call_at(when, self._give_up_late)

    def _give_up_late(self) -> None:
        """End the calls whose time is over. One timer for all of them: nearly every call is answered long before."""
        now, self._late, self._looks_at = self._loop.time(), None, math.inf
        for number, (waiting, ends) in self._waiting.items():
            if waiting.done():
                continue
            if ends <= now:
                waiting.set_exception(TransportError(LATE))
                self._drop(number)
            elif ends < self._looks_at:
                self._looks_at = ends
        if self._looks_at < math.inf:
            self._look_at(self._looks_at)

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
            self._close_if_done()

    def retire(self) -> None:
        """Take no new frames; once the open ones are answered it closes."""
        self.retired = True
        self._close_if_done()

    def close(self) -> None:
        """End it now."""
        if self._farewell is not None:
            self._farewell.cancel()
        self._fail("the client was closed while it waited for the answer")

    def _drop(self, number: int) -> None:
        if self.ended is None:
            self._writer.message.dropped.append(number)
            self._writer.note(8)

    async def _listen(self) -> None:
        while True:
            raw = await self._call.read()
            if raw is grpc.aio.EOF:
                return
            self._heard = time.monotonic()
            self._take(_parsed(raw))
            self._close_if_done()

    def _take(self, message: lane_pb2.LaneResponse) -> None:
        waiting, streams = self._waiting, self._streams
        for event in message.events:
            if (stream := streams.get(event.id)) is not None:
                stream.put(event.envelope)
        for answer in message.answers:
            number = answer.id
            if (open_frame := waiting.get(number)) is None:
                if (stream := streams.get(number)) is not None:
                    stream.fail(self._refused(answer.refusal))
                continue
            future = open_frame[0]
            if future.done():
                continue
            if envelope := answer.envelope:  # no response envelope is empty
                future.set_result(envelope)
            elif answer.HasField("refusal"):
                future.set_exception(self._refused(answer.refusal))
            else:
                future.set_exception(AnswerTooLargeError("the answer is too large for a frame", self.instance_id))
        for cancelled in message.cancelled:
            if (open_frame := waiting.get(cancelled.id)) is not None and not open_frame[0].done():
                open_frame[0].set_result(control_pb2.CancelResponse.FromString(cancelled.response))
        if message.HasField("going_away"):
            self.retired = True

    def _refused(self, refusal: lane_pb2.Refusal) -> BlazenError:
        error = raised_by_refusal(refusal.code, refusal.text, refusal.details)
        if not refusal.at_the_gate:
            return error
        self.retired = self._shut = True
        return LaneShutError(error)

    def _close_if_done(self) -> None:
        if self.retired and not self._waiting and not self._streams and self.ended is None:
            self.ended = LaneBrokenError("the lane was given up", may_have_run=False)
            self._stop_timers()
            self._farewell = self._loop.create_task(self._leave())

    async def _leave(self) -> None:
        """End the call in good order: nothing is open any more."""
        if self._writing is None or self._listening is None:
            return
        try:
            async with asyncio.timeout(LEAVE_SECS):
                await self._writer.flushed()
                self._writing.cancel()
                await self._call.done_writing()
                await asyncio.wait((self._listening,))
        except (TimeoutError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass
        finally:
            self._writing.cancel()
            self._call.cancel()  # does nothing to a call that is over

    def _stop_timers(self) -> None:
        for timer in (self._silence, self._late):
            if timer is not None:
                timer.cancel()

    def _check_silence(self) -> None:
        left_secs = self._heard + SILENCE_SECS - time.monotonic()
        if left_secs > 0:
            self._silence = self._loop.call_later(left_secs, self._check_silence)
        else:
            self._fail(f"the peer was silent for {SILENCE_SECS:g} s")

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self.ended is not None:
            return
        if isinstance(error, grpc.aio.AioRpcError):
            self._fail(str(raised_by(error)))
        elif task is self._listening:
            self._fail("the peer closed the lane" if error is None else f"the lane broke: {error}")
        elif isinstance(error, TimeoutError):
            self._fail(f"the peer took no message for {WRITE_SECS:g} s")
        elif error is not None and not isinstance(error, grpc.aio.BaseError | asyncio.InvalidStateError):
            self._fail(f"nothing more can be sent: {error}")  # such as: no token could be made
        # Else the call is over, and listening says how.

    def _fail(self, why: str) -> None:
        if self.ended is not None:
            return
        self.ended = LaneBrokenError(why)
        self._stop_timers()
        self._call.cancel()
        for task in (self._writing, self._listening):
            if task is not None:
                task.cancel()
        unsent: set[int] = set()
        for message in self._writer.unsent():
            for frames in (message.calls, message.attaches, message.cancels):
                unsent.update(frame.id for frame in frames)
        for number, (waiting, _) in self._waiting.items():
            if not waiting.done():
                waiting.set_exception(LaneBrokenError(why, may_have_run=number not in unsent))
        for number, stream in self._streams.items():
            stream.fail(LaneBrokenError(why, may_have_run=number not in unsent))


def _parsed(raw: Any) -> lane_pb2.LaneResponse:
    try:
        return lane_pb2.LaneResponse.FromString(raw)
    except DecodeError:
        raise EncodeError("the message is not a LaneResponse") from None
