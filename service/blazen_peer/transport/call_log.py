"""One line for each call that came by a lane: what sidecars write of a call that comes alone, by the same names.

Sidecars see a lane as one call. Names, ids, sizes, times and the status; never a payload or an error's text.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from blazen_peer.errors import BlazenError
from blazen_peer.identity import Caller
from blazen_peer.transport.lane_frames import Frame, method_of, said_id
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire import SubWorkflowRequest

__all__ = ["LOGGER", "CallLine", "CallLog", "CallRecord"]

LOGGER: Final = "blazen_peer.calls"
LONGEST: Final = 256  # characters of what a caller chose itself, as in the sidecars' access logs
_TRACE_ID = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-", re.ASCII)
# As Envoy writes them.
_NAMES = {code: "".join(word.title() for word in code.name.split("_")) for code in grpc.StatusCode}
_NAMES |= {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}

logger = logging.getLogger(LOGGER)


class CallLine(dict[str, Any]):
    """A line's fields; ``str()`` of it is JSON."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)


class CallLog:
    """Writes the lines of one server.

    Args:
        node_id: The server's own.
        clock: Gives seconds since the epoch.
    """

    def __init__(self, node_id: str, clock: Callable[[], float]) -> None:
        self.node_id, self.now = node_id, clock

    def opened(self, frame: Frame, caller: Caller, client_node_id: str | None) -> CallRecord:
        """Take down what *frame* says of itself. *client_node_id*: what the caller calls itself."""
        return CallRecord(self, frame, caller, client_node_id)


class CallRecord:
    """What is known of a call that goes on; it does not keep the frame."""

    __slots__ = ("_began", "_fields", "_log")

    def __init__(self, log: CallLog, frame: Frame, caller: Caller, client_node_id: str | None) -> None:
        self._log, self._began = log, log.now()
        call = frame if isinstance(frame, lane_pb2.Call) else None
        self._fields = {
            "log": "call",
            "node": log.node_id,
            "hop": "lane",
            "caller": str(caller),
            "client": client_node_id,
            "data_class": caller.stamps[0][:LONGEST] if caller.stamps else None,
            "workflow": None if call is None else _workflow_of(call.envelope),
            "invocation_id": said_id(frame),
            "method": method_of(frame),
            "bytes_received": 0 if call is None else len(call.envelope),
            "trace_id": None if call is None or (found := _TRACE_ID.match(call.traceparent)) is None else found[1],
        }

    def over(self, error: BaseException | None, sent_bytes: int) -> None:
        """Write the line.

        Args:
            error: What ended the call; None where it was answered.
            sent_bytes: The envelopes that went back.
        """
        refused = error if isinstance(error, BlazenError) else None
        started = datetime.fromtimestamp(self._began, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        logger.info(
            CallLine(
                time=started,
                **self._fields,
                grpc_status=_NAMES[_code_of(error)],
                refusal=None if refused is None else refused.kind,
                duration_ms=max(0, round((self._log.now() - self._began) * 1000)),
                bytes_sent=sent_bytes,
            )
        )


def _workflow_of(envelope: bytes) -> str | None:
    """Return the workflow that is called; None where *envelope* is no request."""
    try:
        return SubWorkflowRequest.decode(envelope).workflow_name[:LONGEST]
    except BlazenError:
        return None


def _code_of(error: BaseException | None) -> grpc.StatusCode:
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, BlazenError):
        return refusal_of(error).code
    return grpc.StatusCode.INTERNAL if isinstance(error, Exception) else grpc.StatusCode.CANCELLED
