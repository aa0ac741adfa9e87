"""The bounds of a lane, the same at both ends; the server's go to the client in its welcome."""

from __future__ import annotations

from typing import Final

__all__ = [
    "HEARTBEAT_SECS",
    "HELLO_SECS",
    "LANE_VERSION",
    "MAX_CREDIT",
    "MAX_FRAMES",
    "MAX_FRAME_BYTES",
    "MAX_LANES",
    "MAX_LANES_OF_ONE",
    "MAX_MESSAGE_BYTES",
    "MAX_OPEN_FRAMES",
    "MAX_TRACE_CHARS",
    "MAX_WAITING_BYTES",
    "SILENCE_SECS",
    "TAKE_UP_SECS",
    "WRITE_SECS",
]

LANE_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 256 * 1024  # an envelope; what is larger goes by itself, so that no call waits behind a giant
MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_FRAMES: Final = 512  # of one message
MAX_OPEN_FRAMES: Final = 4096  # unanswered at once
MAX_CREDIT: Final = 4096  # events that a stream may be told to send ahead
MAX_TRACE_CHARS: Final = (
    512  # of each trace header: as many as W3C asks to hand on; a longer one is left away, as a broken one is
)
MAX_LANES: Final = 1024  # of a server
MAX_LANES_OF_ONE: Final = 256  # of one caller at a server
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024  # answers that wait to be taken; beyond, nothing more is read
HELLO_SECS: Final = 5.0
HEARTBEAT_SECS: Final = 5.0
SILENCE_SECS: Final = 3 * HEARTBEAT_SECS
TAKE_UP_SECS: Final = 5.0  # how long the calls of a lane that broke look for their process, and may find it
WRITE_SECS: Final = 30.0  # how long one message may wait to be taken before the other end counts as gone
