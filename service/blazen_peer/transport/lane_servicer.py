"""The server's end of lanes: many calls of one caller on one stream, each answered by what answers it on its own.

A lane is a way of carrying, not a second peer: a frame's envelope goes to the very function that a unary call's goes to, and
what that raises becomes the same status, with the same details, in the frame's answer. The gate looks at the caller anew for
each message, so that a token's end, or its being withdrawn, ends what a lane may begin.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import Final

import grpc

from blazen_peer import telemetry
from blazen_peer.errors import BlazenError, OverloadedError
from blazen_peer.transport.call_log import CallLog
from blazen_peer.transport.call_rate import CallRate
from blazen_peer.transport.gate import ADMITTED
from blazen_peer.transport.lane_frames import LANE_METHOD
from blazen_peer.transport.lane_limits import (
    HEARTBEAT_SECS,
    LANE_VERSION,
    MAX_FRAME_BYTES,
    MAX_LANES,
    MAX_LANES_OF_ONE,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_FRAMES,
    TAKE_UP_SECS,
)
from blazen_peer.transport.lane_service import Admit, Context, LaneError, LaneService
from blazen_peer.transport.proto import control_pb2, lane_pb2
from blazen_peer.transport.served_lane import ServedLane
from blazen_peer.transport.servicer import CONTROL_SERVICE
from blazen_peer.transport.status import refusal_of

__all__ = ["LANE_METHOD", "LaneServicer", "lane_handlers"]

ABORT_SECS: Final = 5.0
_MOMENT_SECS: Final = 0.02

logger = logging.getLogger(__name__)


class LaneServicer:
    """The lanes of one server.

    Args:
        service: What answers the frames.
        node_id: Names this peer in spans.
        instance_id: This process's own.
        admit: Asks the gate about metadata as of now.
        rate: How many frames each caller may still send.
        log: Takes a line for each frame; None where nobody asked for that.
    """

    def __init__(
        self, service: LaneService, node_id: str, instance_id: str, admit: Admit, rate: CallRate, log: CallLog | None
    ) -> None:
        self._service, self._node_id, self._instance_id, self._admit = service, node_id, instance_id, admit
        self._rate, self._log = rate, log
        self._lanes: set[ServedLane] = set()
        self._of_callers: Counter[str] = Counter()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._leaving: str | None = None
        self._broke = -math.inf  # when a lane ended last on which frames were open

    @property
    def lanes(self) -> frozenset[ServedLane]:
        """Those that are open."""
        return frozenset(self._lanes)

    def described(self) -> control_pb2.Lanes:
        """Return what ``Describe`` says of them."""
        return control_pb2.Lanes(version=LANE_VERSION, open=len(self._lanes), max_frame_bytes=MAX_FRAME_BYTES)

    def send_away(self, reason: str) -> None:
        """Ask every caller to go on elsewhere; what is in flight, or still comes, is answered.

        A lane that is opened from now on hears the same at once: it is there for calls whose lane broke.
        """
        self._leaving = reason
        for lane in self._lanes:
            lane.send_away(reason)

    async def taken_up(self, within_secs: float) -> None:
        """Give callers their time to come for answers, at most *within_secs*.

        For those whose lane has just broken, and those whose answers are too large for one.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        left_secs = min(within_secs, self._broke + TAKE_UP_SECS - began)
        if left_secs > 0:
            await asyncio.sleep(left_secs)
        ends = began + min(within_secs, TAKE_UP_SECS)
        while self._service.untaken and loop.time() < ends:  # noqa: ASYNC110 - it ages too
            await asyncio.sleep(_MOMENT_SECS)

    async def finish(self, within_secs: float) -> None:
        """End the lanes that are left, each once it was sent what answers it, at most within that time."""
        for lane in self._lanes:
            lane.finish()
        try:
            async with asyncio.timeout(within_secs):
                await self._none_open.wait()
        except TimeoutError:
            logger.warning("%d lanes did not take their last answers in %g s", len(self._lanes), within_secs)

    async def serve(self, _: object, context: Context) -> None:
        """Answer one lane until its caller, its sidecar or its silence ends it: the handler of ``PeerControl.Lane``."""
        admitted = ADMITTED.get()
        who = str(admitted.caller)
        try:
            self._check_room(who)
            lane = ServedLane(self._service, self._node_id, admitted, self._admit, self._rate, self._log, context)
        except BlazenError as error:
            said = refusal_of(error)
            await context.abort(said.code, said.text, said.trailing_metadata)
        self._lanes.add(lane)
        self._of_callers[who] += 1
        self._none_open.clear()
        telemetry.open_lanes(1)
        try:
            await lane.hello()
            await lane.follow(self._welcome(), self._leaving)
        except LaneError as error:
            logger.info("a lane of %s ends: %s", who, error)
            code, text = error.code, str(error)
            # Its frames hold the message that was wrong, up to 1 MiB, and tasks of theirs hold it: until the collector comes.
            error.__traceback__ = None
        else:
            return
        finally:
            telemetry.open_lanes(-1)
            if lane.open_frames:
                self._broke = asyncio.get_running_loop().time()
            lane.close()
            self._lanes.discard(lane)
            self._of_callers -= Counter((who,))  # drops who has none left
            if not self._lanes:
                self._none_open.set()
        async with asyncio.timeout(ABORT_SECS):  # a status waits behind what the caller does not take
            await context.abort(code, text)

    def _check_room(self, who: str) -> None:
        if len(self._lanes) >= MAX_LANES:
            raise OverloadedError(f"{MAX_LANES} lanes are open, as many as may be", 1.0)
        if self._of_callers[who] >= MAX_LANES_OF_ONE:
            raise OverloadedError(f"{MAX_LANES_OF_ONE} lanes of this caller are open, as many as may be", 1.0)

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
