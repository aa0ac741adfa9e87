"""What a stream of a run says beside the events that its steps emit: gaps, heartbeats, the end. All are ``SubWorkflowEvent``.

Their event types are reserved, so that no step's event can be taken for one of them. The sequence number is the one that the
reader's cursor is at after it.
"""

from __future__ import annotations

import json
from typing import Final

from blazen_peer.errors import EncodeError
from blazen_peer.wire.envelopes import SubWorkflowEvent, SubWorkflowResponse

__all__ = ["END", "GAP", "HEARTBEAT", "HEARTBEAT_SECS", "RESERVED_PREFIX", "end_of", "gap_of", "heartbeat_of", "read_gap"]

RESERVED_PREFIX: Final = "blazen::"
GAP: Final = "blazen::Gap"  # data: {"first": 3, "last": 9}, both included
HEARTBEAT: Final = "blazen::Heartbeat"
END: Final = "blazen::End"
HEARTBEAT_SECS: Final = 10.0  # a reader that hears nothing for several of these has lost its connection


def gap_of(first: int, last: int) -> SubWorkflowEvent:
    """Return what says that the events *first* to *last* are no longer kept."""
    return SubWorkflowEvent(last, GAP, b'{"first":%d,"last":%d}' % (first, last))


def heartbeat_of(cursor: int) -> SubWorkflowEvent:
    """Return what says that nothing has happened since the event *cursor*."""
    return SubWorkflowEvent(cursor, HEARTBEAT, b"null")


def end_of(cursor: int, response: SubWorkflowResponse) -> SubWorkflowEvent:
    """Return the last message of a stream: how the run ended."""
    return SubWorkflowEvent(cursor, END, b"null", response)


def read_gap(event: SubWorkflowEvent) -> tuple[int, int]:
    """Return the first and the last number of the events that a gap stands for.

    Raises:
        EncodeError: It does not hold them.
    """
    try:
        data = json.loads(event.data_json)
        return int(data["first"]), int(data["last"])
    except (ValueError, TypeError, KeyError):
        raise EncodeError(f"a {GAP} of the peer's does not say what is missing") from None
