"""Garbage of every kind that a lane's caller can send, and what must come of each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TypeAlias

from blazen_peer.transport.lane_limits import MAX_CREDIT, MAX_FRAME_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire import SubWorkflowRequest

__all__ = ["ANSWERED", "ENDS", "SILENT", "request", "unknown_field"]

Request = lane_pb2.LaneRequest
Call = lane_pb2.Call
Attach = lane_pb2.Attach
Cancel = lane_pb2.Cancel
Frame: TypeAlias = Callable[[random.Random, int], Request]

MOST = 2**64 - 1
INVALID, NOT_FOUND, TOO_LARGE, PRECONDITION, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 8, 9, 14, 16
LONG = 300_000
"""Characters that no field but an envelope may have; such frames are one in a hundred, so that the flood stays quick."""


def request(step_id: str, document: object = None, timeout_secs: int | None = 20) -> bytes:
    """Return the envelope of a call."""
    return SubWorkflowRequest("w", (step_id,), json.dumps(document).encode(), timeout_secs).encode()


def unknown_field(size_bytes: int) -> bytes:
    """Return a field that no version knows: number 500, of that size."""
    length = size_bytes
    digits = bytearray()
    while True:
        digits.append(length & 127 | (128 if length > 127 else 0))
        length >>= 7
        if not length:
            return b"\xa2\x1f" + bytes(digits) + b"x" * size_bytes


SOUND = request("unknown")


def _call(number: int, **fields: object) -> Request:
    return Request(calls=[Call(id=number, **{"envelope": SOUND, **fields})])  # type: ignore[arg-type]


def _padded(chance: random.Random, number: int) -> Request:
    frame = Call.FromString(Call(id=number, envelope=SOUND).SerializeToString() + unknown_field(_length(chance)))
    return Request(calls=[frame])


def _length(chance: random.Random) -> int:
    return LONG if chance.random() < 0.01 else chance.randrange(200, 2000)


ANSWERED: dict[str, tuple[Frame, set[int]]] = {
    "an envelope that is cut": (lambda c, n: _call(n, envelope=SOUND[: c.randrange(len(SOUND))]), {INVALID, NOT_FOUND}),
    "an envelope of noise": (lambda c, n: _call(n, envelope=b"\x01" + c.randbytes(c.randrange(200))), {INVALID, NOT_FOUND}),
    "an envelope of another version": (lambda c, n: _call(n, envelope=b"\x63" + SOUND[1:]), {PRECONDITION}),
    "no envelope": (lambda c, n: _call(n, envelope=b""), {INVALID}),
    "an oversized envelope": (
        lambda c, n: _call(n, envelope=b"x" * (MAX_FRAME_BYTES + 1)) if c.random() < 0.02 else _call(n, envelope=b"\x00"),
        {TOO_LARGE, INVALID},
    ),
    "a step that nobody has": (lambda c, n: _call(n), {NOT_FOUND}),
    "input that nests": (lambda c, n: _call(n, envelope=_nested()), {INVALID}),
    "an invocation id with NUL": (lambda c, n: _call(n, invocation_id="a\x00b"), {INVALID}),
    "an invocation id with a newline": (lambda c, n: _call(n, invocation_id="a\nb"), {INVALID}),
    "an endless invocation id": (lambda c, n: _call(n, invocation_id="x" * _length(c)), {INVALID}),
    "an endless parent": (lambda c, n: _call(n, parent_run_id="x" * _length(c)), {INVALID}),
    "an endless data class": (lambda c, n: _call(n, data_class="x" * _length(c)), {INVALID}),
    "an endless traceparent": (lambda c, n: _call(n, traceparent="0" * _length(c)), {NOT_FOUND}),
    "an endless tracestate": (
        lambda c, n: _call(n, traceparent=f"00-{'1' * 32}-{'1' * 16}-01", tracestate="a=b," * (_length(c) // 4)),
        {NOT_FOUND},
    ),
    "times beyond all bounds": (lambda c, n: _call(n, timeout_ms=MOST, cursor=MOST, event_credit=2**32 - 1), {NOT_FOUND}),
    "another process's": (lambda c, n: _call(n, instance_id="x" * _length(c)), {UNAVAILABLE}),
    "a stream of a step that nobody has": (lambda c, n: _call(n, stream=True, event_credit=1), {NOT_FOUND}),
    "a stream with too much credit": (
        lambda c, n: _call(n, stream=True, event_credit=MAX_CREDIT + 1 + c.getrandbits(20)),
        {INVALID},
    ),
    "unknown fields in a frame": (_padded, {NOT_FOUND}),
    "attach to nothing": (
        lambda c, n: Request(attaches=[Attach(id=n, invocation_id="none", cursor=c.getrandbits(64))]),
        {NOT_FOUND},
    ),
    "attach to an endless id": (lambda c, n: Request(attaches=[Attach(id=n, invocation_id="\n" * _length(c))]), {INVALID}),
    "attach to no id": (lambda c, n: Request(attaches=[Attach(id=n, event_credit=2**32 - 1)]), {INVALID}),
    "cancel nothing": (lambda c, n: Request(cancels=[Cancel(id=n, invocation_id="none", grace_ms=MOST)]), {NOT_FOUND}),
    "cancel an id with NUL": (lambda c, n: Request(cancels=[Cancel(id=n, invocation_id="\x00")]), {INVALID}),
    "a wrong token": (lambda c, n: Request(calls=[Call(id=n, envelope=SOUND)], authorization="Bearer no"), {UNAUTHENTICATED}),
}
"""By kind: how a message of one frame with that id is made, and the codes of which its answer has one."""


def _nested() -> bytes:
    return SubWorkflowRequest("w", ("echo",), b"[" * 2000 + b"]" * 2000, 20).encode()


SILENT: dict[str, Callable[[random.Random, int], Request | bytes]] = {
    "credit for nothing": lambda c, n: Request(credits=[lane_pb2.Credit(id=c.getrandbits(64), events=c.getrandbits(32))]),
    "credit for the frame of id 0": lambda c, n: Request(credits=[lane_pb2.Credit(id=0, events=2**32 - 1)]),
    "credit for a call that is no stream": lambda c, n: Request(credits=[lane_pb2.Credit(id=1, events=2**32 - 1)]),
    "dropped that never were": lambda c, n: Request(dropped=[0, MOST, *(c.getrandbits(64) for _ in range(4))]),
    "dropped twice": lambda c, n: Request(dropped=[MOST, MOST]),
    "a kind that nobody knows": lambda c, n: Request(ping=True).SerializeToString() + unknown_field(_length(c)),
    "an empty message": lambda c, n: b"",
    "a sign of life": lambda c, n: Request(ping=True),
}
"""By kind: what asks for no answer, and must not be in the way of what does."""

ENDS: dict[str, Callable[[int], Request | bytes]] = {
    "no protobuf": lambda n: b"\xff\xff\xff\xff",
    "a message that is cut": lambda n: _call(n).SerializeToString()[:-1],
    "text that is not UTF-8": lambda n: b"\x3a\x02\xff\xfe",
    "a second hello": lambda n: Request(hello=lane_pb2.Hello(version=1)),
    "an id twice": lambda n: Request(calls=[Call(id=n), Call(id=n)]),
    "ids that fall": lambda n: Request(calls=[Call(id=n + 1), Call(id=n)]),
    "id 0": lambda n: Request(calls=[Call(id=0)]),
    "nothing after the last id": lambda n: Request(calls=[Call(id=MOST), Call(id=1)]),
    "too many frames": lambda n: Request(calls=[Call(id=n + one) for one in range(MAX_FRAMES + 1)]),
    "half a million frames of no bytes": lambda n: b"\x12\x00" * (MAX_MESSAGE_BYTES // 2),
    "too many dropped": lambda n: Request(dropped=range(MAX_FRAMES + 1)),
    "too many credits": lambda n: Request(credits=[lane_pb2.Credit(id=1)] * (MAX_FRAMES + 1)),
    "too large a message": lambda n: Request(calls=[Call(id=n, envelope=b"x" * MAX_MESSAGE_BYTES)]),
    "an endless token": lambda n: Request(ping=True, authorization="x" * (MAX_MESSAGE_BYTES - 100)),
}
"""By kind: what breaks the lane's rules, sent where the next id is *n*."""
