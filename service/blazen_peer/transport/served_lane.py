"""One lane at the server: what comes is opened frame by frame, what answers it is gathered and sent."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from operator import attrgetter
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from blazen_peer.auth import AUTHORIZATION
from blazen_peer.auth.refusal import Refused
from blazen_peer.auth.tokens import MAX_BEARER_CHARS
from blazen_peer.errors import EncodeError, ValidationError
from blazen_peer.identity import check_node_id
from blazen_peer.transport.call_log import CallLog
from blazen_peer.transport.call_rate import CallRate, over_rate
from blazen_peer.transport.gate import Admitted, answer_to, note_refusal
from blazen_peer.transport.lane_frames import LANE_METHOD, Frame, method_of, said_id
from blazen_peer.transport.lane_limits import (
    HELLO_SECS,
    LANE_VERSION,
    MAX_FRAMES,
    MAX_MESSAGE_BYTES,
    SILENCE_SECS,
)
from blazen_peer.transport.lane_service import Admit, Context, LaneError, LaneService
from blazen_peer.transport.lane_writer import LaneWriter
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.served_frames import ServedFrames
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ServedLane"]

_Answer: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]

_FRAME_BYTES: Final = 16  # about what a frame takes around its envelope
_MOMENT_SECS: Final = 0.05
_MAX_AUTHORIZATION_CHARS: Final = len("Bearer ") + MAX_BEARER_CHARS
SLICE_FRAMES: Final = 32  # frames of one message that are begun before what they answer gets its turn
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

logger = logging.getLogger(__name__)


class ServedLane:
    """One lane. Belongs to one event loop.

    What answers the frames waits in the writer, which is bounded in bytes: while it is full, nothing more is read or answered,
    so that a caller who takes no answers soon gives no more work either.

    Args:
        rate: How many frames each caller may still send.
        log: Takes a line for each frame; None where nobody asked for that.

    Attributes:
        caller: Whose it is.

    Raises:
        EncodeError: What came beside it is not what metadata may be.
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
        self._admit, self._context = admit, context
        self.caller, metadata = admitted
        self._metadata = list(metadata)
        self._rate = rate
        self._granted = 0  # frames of the message that is being opened, which are within the caller's rate
        self._loop = asyncio.get_running_loop()
        self._last_id = 0
        self._closing = asyncio.Event()
        self._heard = time.monotonic()  # of the machine's time: a test may take the loop's over
        self._silent = asyncio.Event()
        self._writer: LaneWriter[lane_pb2.LaneResponse] = LaneWriter(context.write, lane_pb2.LaneResponse, self._loop)
        self._frames = ServedFrames(service, node_id, self.caller, self._writer, log, CallMetadata.decode(metadata))

    @property
    def open_frames(self) -> int:
        """How many of its frames are not answered."""
        return len(self._frames)

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
                self._frames.client_node_id = check_node_id(node_id)
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
        self._frames.sever_streams()
        flushing = self._loop.create_task(self._flushed())
        try:
            await asyncio.wait((flushing, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            flushing.cancel()

    async def _flushed(self) -> None:
        await self._frames.answered()
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
        self._frames.sever_all()

    async def _take_all(self) -> None:
        while (message := await self._read()) is not None:
            self._heard = math.inf  # until it is read again: while answers wait, the writer's time is what counts
            await self._take(message)
            await self._writer.room()
            self._heard = time.monotonic()

    def _check_silence(self) -> None:
        left_secs = self._heard + SILENCE_SECS - time.monotonic()
        if left_secs <= 0:
            self._silent.set()
        self._watch = self._loop.call_later(min(max(left_secs, _MOMENT_SECS), SILENCE_SECS), self._check_silence)

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
        if _frames_in(message) > MAX_FRAMES:
            raise _broken(f"a message holds more than {MAX_FRAMES} frames")
        calls, attaches, cancels = message.calls, message.attaches, message.cancels
        asked = len(calls) + len(attaches) + len(cancels)
        self._granted = self._rate.take(self.caller.name, asked) if asked else 0
        refusal = self._admitted_anew(message.authorization)
        if refusal is not None:
            self._shut(refusal, noted=asked > 0)
        for number in message.dropped:
            self._frames.sever(number)
        for credit in message.credits:
            try:
                self._frames.credit(credit.id, credit.events)
            except EncodeError as error:
                raise _broken(str(error)) from None
        last_id = self._last_id
        frames: Iterable[Frame] = calls
        mixed = bool(attaches or cancels)
        if mixed:  # in the order in which their caller made them
            frames = sorted((*calls, *attaches, *cancels), key=attrgetter("id"))
        for count, frame in enumerate(frames, 1):
            self._open(frame, refusal, in_turn=mixed)
            if not count % SLICE_FRAMES:
                await asyncio.sleep(0)  # what is answered goes out, and its caller works, while the rest is worked on here
        if given_up := [number for number in message.dropped if number > last_id]:  # before its message could go out
            await asyncio.sleep(0)  # a task that is cancelled before it began would leave no line
            for number in given_up:
                self._frames.sever(number)

    def _admitted_anew(self, authorization: str) -> Refused | None:
        """Ask the gate about the caller as of now, with a fresh token where one came; return what it refuses with."""
        if authorization:
            if len(authorization) > _MAX_AUTHORIZATION_CHARS:  # it is kept
                raise _broken("the authorization is longer than any token")
            self._metadata = [pair for pair in self._metadata if pair[0] != AUTHORIZATION]
            self._metadata.append((AUTHORIZATION, authorization))
        try:
            admitted = self._admit(self._metadata, self._context)
        except Refused as refused:
            return refused.with_traceback(None)  # whose frames would hold the message, in a cycle
        if admitted.caller != self.caller or admitted.caller.stamps != self.caller.stamps:
            raise _broken("a lane belongs to one caller")
        return None

    def _shut(self, refusal: Refused, *, noted: bool) -> None:
        """The gate lets the lane in no longer: streams end. Calls that it let in before are answered, as on their own.

        Args:
            noted: Whether frames are about to be refused, each with a line in the log.
        """
        if not noted:
            note_refusal(LANE_METHOD, refusal, self._frames.client_node_id, None)
        self._frames.sever_streams(answer_to(refusal))

    def _open(self, frame: Frame, refusal: Refused | None, *, in_turn: bool) -> None:
        number = frame.id
        if number <= self._last_id:
            raise _broken(f"frame {number} does not come after {self._last_id}")
        self._last_id = number
        self._granted -= 1
        if self._granted < 0:  # before the gate, as at the ingress: what is over the rate costs next to nothing
            self._frames.turn_away(frame, over_rate())
        elif refusal is not None:
            note_refusal(method_of(frame), refusal, self._frames.client_node_id, said_id(frame))
            self._frames.turn_away(frame, answer_to(refusal), at_the_gate=True)
        else:
            self._frames.open(frame, in_turn=in_turn)


def _frames_in(message: lane_pb2.LaneRequest) -> int:
    frames = len(message.calls) + len(message.attaches) + len(message.cancels)
    return frames + len(message.dropped) + len(message.credits)


def _broken(text: str) -> LaneError:
    return LaneError(grpc.StatusCode.INVALID_ARGUMENT, text)
