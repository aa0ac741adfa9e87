"""The open frames of one lane at the server: what comes in each, and what answers it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, Final, Self

import grpc

from blazen_peer import telemetry
from blazen_peer.errors import BlazenError, EncodeError, OverloadedError
from blazen_peer.identity import Caller
from blazen_peer.transport.call_log import CallLog
from blazen_peer.transport.lane_frames import EventCredit, Frame, metadata_of, method_of
from blazen_peer.transport.lane_limits import MAX_FRAME_BYTES, MAX_OPEN_FRAMES
from blazen_peer.transport.lane_service import Begun, LaneService
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.run_servicer import cancel_response, run_call_span
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE, served_call
from blazen_peer.transport.status import DETAILS_KEY, refusal_of
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ServedFrames"]

_FRAME_BYTES: Final = 16  # about what a frame takes around its envelope
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

logger = logging.getLogger(__name__)


class ServedFrames:
    """The frames of one lane that are not answered. Belongs to one event loop.

    Args:
        service: What answers them.
        node_id: Names this peer in spans.
        caller: Whose they are.
        writer: Takes the answers.
        log: Takes a line for each frame; None where nobody asked for that.
        said: What came beside the lane itself.

    Attributes:
        client_node_id: What the caller calls itself.
    """

    def __init__(
        self,
        service: LaneService,
        node_id: str,
        caller: Caller,
        writer: LaneWriter[lane_pb2.LaneResponse],
        log: CallLog | None,
        said: CallMetadata,
    ) -> None:
        # Our clients say no such thing of a lane. What sidecars were told of it must be so of each call on it.
        self._said = said if said.workflow is not None or said.data_class is not None else None
        self._service, self._node_id, self._caller, self._writer, self._log = service, node_id, caller, writer, log
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, asyncio.Task[None] | Begun] = {}  # a plain call has no task but its run's
        self._streams: dict[int, EventCredit] = {}
        self._none_open: asyncio.Future[None] | None = None
        self.client_node_id: str | None = None
        self._tasks: dict[type[Frame], Callable[[Any], Coroutine[Any, Any, None]]] = {
            lane_pb2.Call: self._call,
            lane_pb2.Attach: self._attach,
            lane_pb2.Cancel: self._cancel,
        }

    def __len__(self) -> int:
        return len(self._open)

    async def answered(self) -> None:
        """Wait until none is open."""
        while self._open:
            if self._none_open is None or self._none_open.done():
                self._none_open = self._loop.create_future()
            await asyncio.shield(self._none_open)  # several wait for it: one that is cancelled must not take it along

    def open(self, frame: Frame, *, in_turn: bool) -> None:
        """Begin what *frame* asks for. *in_turn*: not before what was opened before it, which may be of another kind."""
        number = frame.id
        if len(self._open) >= MAX_OPEN_FRAMES:
            text = f"{MAX_OPEN_FRAMES} frames of this lane are open, as many as may be"
            self.turn_away(frame, OverloadedError(text, 1.0))
        elif (
            in_turn
            or not isinstance(frame, lane_pb2.Call)
            or frame.stream
            or frame.traceparent
            or self._log is not None
            or telemetry.enabled()
        ):
            self._open[number] = self._loop.create_task(self._tasks[type(frame)](frame))
        else:
            self._begin(number, frame)

    def turn_away(self, frame: Frame, error: BlazenError, *, at_the_gate: bool = False) -> None:
        """Refuse a frame unseen. *at_the_gate*: who refused has counted it, and may let another lane in."""
        if not at_the_gate:
            telemetry.refused(method_of(frame).rpartition("/")[2], error.kind)
        if self._log is not None:
            self._log.opened(frame, self._caller, self.client_node_id).over(error, 0)
        self._refuse(frame.id, error, at_the_gate=at_the_gate)

    def credit(self, number: int, events: int) -> None:
        """Let a stream send more; raises ``EncodeError`` for more than it may have."""
        if (held := self._streams.get(number)) is not None:
            held.add(events)

    def sever(self, number: int) -> None:
        """Wait for the run of a frame no longer: it goes on."""
        waiting = self._open.get(number)
        self._gone(number)
        if isinstance(waiting, asyncio.Task):
            waiting.cancel()
        elif waiting is not None:
            waiting.forget()  # or a run that takes long would hold the lane, and the answers that wait in it, as long

    def sever_all(self) -> None:
        """Wait for no run any longer."""
        for number in list(self._open):
            self.sever(number)

    def sever_streams(self, refusal: BlazenError | None = None) -> None:
        """End the streams: with what the gate answers by now, or with the lane."""
        for number in list(self._streams):
            self.sever(number)
            if refusal is not None:
                self._refuse(number, refusal, at_the_gate=True)

    def _begin(self, number: int, call: lane_pb2.Call) -> None:
        """Begin a plain call, of which nobody wants a trace or a line: it needs no task beside its run's."""
        try:
            envelope, metadata = self._read(call)
            begun = self._open[number] = self._service.begin(envelope, self._caller, metadata)
            if not begun.on_answer(partial(self._answer, number)):
                self._open[number] = self._loop.create_task(self._repeated(number, begun))
        except Exception as error:
            self.over(number, "InvokeSubWorkflow", error)

    async def _repeated(self, number: int, begun: Begun) -> None:
        try:
            await self._answer_in_turn(number, await begun.wait())
        except Exception as error:
            self.over(number, "InvokeSubWorkflow", error)

    def _read(self, call: lane_pb2.Call) -> tuple[bytes, CallMetadata]:
        metadata, envelope = metadata_of(call, self.client_node_id), call.envelope
        if len(envelope) > MAX_FRAME_BYTES:
            text = f"an envelope of {len(envelope)} bytes is over the lane's {MAX_FRAME_BYTES}"
            raise EncodeError(text, len(envelope), MAX_FRAME_BYTES)
        if self._said is not None:
            metadata = metadata._replace(workflow=self._said.workflow, data_class=metadata.data_class or self._said.data_class)
        return envelope, metadata

    def _answer(self, number: int, envelope: bytes) -> None:
        if number not in self._open:  # nobody waits for it any more
            return
        if self._writer.waiting_bytes > MAX_FRAME_BYTES:
            self._open[number] = self._loop.create_task(self._answer_in_turn(number, envelope))
        else:
            self._put(number, envelope)
            self._gone(number)

    async def _answer_in_turn(self, number: int, envelope: bytes) -> None:
        await self._writer.room()
        self._put(number, envelope)
        self._gone(number)

    def _put(self, number: int, envelope: bytes) -> None:
        if len(envelope) > MAX_FRAME_BYTES:
            self._writer.message.answers.add(id=number, too_large=True)
            self._writer.note(_FRAME_BYTES)
        else:
            self._writer.message.answers.add(id=number, envelope=envelope)
            self._writer.note(len(envelope) + _FRAME_BYTES)

    async def _call(self, call: lane_pb2.Call) -> None:
        with _Answering(self, call, self._log) as answering:
            envelope, metadata = self._read(call)
            stream, credit = call.stream, call.event_credit
            del call  # it keeps the whole message that it came in, which may be 1 MiB, for as long as the run takes
            if stream:
                with run_call_span(PEER_SERVICE, "StreamSubWorkflowEvents", self._node_id, self._caller, metadata):
                    await self._streamed(answering, credit, self._service.stream(envelope, self._caller, metadata))
                return
            answer = await served_call(self._invoke, self._node_id, envelope, self._caller, metadata)
            await self._writer.room()
            answering.sent_bytes = len(answer)
            self._put(answering.number, answer)

    async def _invoke(self, envelope: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
        return await self._service.begin(envelope, caller, metadata).wait()

    async def _attach(self, attach: lane_pb2.Attach) -> None:
        with _Answering(self, attach, self._log) as answering:
            invocation_id, cursor, credit = attach.invocation_id, attach.cursor, attach.event_credit
            del attach  # as in _call
            metadata = CallMetadata(invocation_id=invocation_id, client_node_id=self.client_node_id).checked()
            with run_call_span(CONTROL_SERVICE, "Attach", self._node_id, self._caller, metadata):
                await self._streamed(answering, credit, self._service.attach(self._caller, invocation_id, cursor))

    async def _streamed(self, answering: _Answering, credit: int, events: AsyncIterator[SubWorkflowEvent]) -> None:
        number = answering.number
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
        with _Answering(self, cancel, self._log) as answering:
            invocation_id, grace_secs = cancel.invocation_id, cancel.grace_ms / 1000
            del cancel  # as in _call
            metadata = CallMetadata(invocation_id=invocation_id, client_node_id=self.client_node_id).checked()
            with run_call_span(CONTROL_SERVICE, "Cancel", self._node_id, self._caller, metadata):
                report = await self._service.cancel(self._caller, invocation_id, grace_secs)
            logger.info("%s cancelled invocation %s: %s", self._caller, invocation_id, report.outcome)
            raw = cancel_response(report).SerializeToString()
            self._writer.message.cancelled.add(id=answering.number, response=raw)
            self._writer.note(len(raw) + _FRAME_BYTES)
            answering.sent_bytes = len(raw)

    def over(self, number: int, method: str, error: BaseException | None) -> bool:
        """Take note of a frame's end; what it raised is its answer, where that is for its caller to know."""
        self._gone(number)
        if isinstance(error, BlazenError):
            telemetry.refused(method, error.kind)
            self._refuse(number, error)
        elif isinstance(error, Exception):
            logger.error("a defect ended a frame of a lane", exc_info=error)
            self._refuse(number, None)
        return isinstance(error, Exception)

    def _gone(self, number: int) -> None:
        self._open.pop(number, None)
        if self._none_open is not None and not self._open and not self._none_open.done():
            self._none_open.set_result(None)

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

    __slots__ = ("_frames", "_line", "_method", "number", "sent_bytes")

    def __init__(self, frames: ServedFrames, frame: Frame, log: CallLog | None) -> None:
        self._frames, self.number, self.sent_bytes = frames, frame.id, 0
        self._method = method_of(frame).rpartition("/")[2]
        self._line = None if log is None else log.opened(frame, frames._caller, frames.client_node_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if self._line is not None:
            self._line.over(error, self.sent_bytes)
        return self._frames.over(self.number, self._method, error)
