"""What a run has emitted: numbered, bounded, read by any number of readers at their own pace.

A reader is nothing but a cursor, the sequence number that it saw last. It slows nobody: the log drops its oldest events when it
is full, and a reader that has fallen behind is told which ones it missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from blazen_peer.errors import ValidationError

__all__ = ["EventLog", "Gap", "Heartbeat", "LoggedEvent", "check_event_size"]

MAX_EVENTS: Final = 1024
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_BATCH: Final = 64  # a reader that stands still holds this many events at most that the log has dropped
EVENT_OVERHEAD_BYTES: Final = 200  # what an event weighs in memory beside its text: many small ones are bounded too


class LoggedEvent(NamedTuple):
    """One event of a run.

    Attributes:
        sequence: Counts up by one from 1 within the run.
        event_type: Its wire name.
        data_json: Its data, one JSON document in UTF-8.
    """

    sequence: int
    event_type: str
    data_json: bytes


class Gap(NamedTuple):
    """The events *first* to *last*, both included, are no longer there."""

    first: int
    last: int


class Heartbeat(NamedTuple):
    """Nothing happened for a while; *sequence* is the last event's."""

    sequence: int


class EventLog:
    """The events of one run. Belongs to one event loop.

    Args:
        max_events: How many are kept.
        max_bytes: How many bytes they may hold in all.

    Attributes:
        last: The sequence number of the newest event; 0 before the first.
        closed: Whether no more will come.
        size_bytes: What it holds.
    """

    __slots__ = ("_events", "_max_bytes", "_max_events", "_waiters", "closed", "last", "size_bytes")

    def __init__(self, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._events: deque[LoggedEvent] = deque()
        self._waiters: set[asyncio.Future[bool]] = set()
        self.last, self.closed, self.size_bytes = 0, False, 0

    def append(self, event_type: str, data_json: bytes) -> None:
        """Add an event and wake who waits for it. After :meth:`close` nothing is added: the run is over.

        Raises:
            ValidationError: It alone is over the limit in bytes.
        """
        if self.closed:
            return
        size_bytes = check_event_size(event_type, data_json, self._max_bytes)
        events = self._events
        self.last += 1
        events.append(LoggedEvent(self.last, event_type, data_json))
        self.size_bytes += size_bytes
        while len(events) > self._max_events or self.size_bytes > self._max_bytes:
            dropped = events.popleft()
            self.size_bytes -= _size_bytes(dropped.event_type, dropped.data_json)
        if self._waiters:
            self._wake()

    def close(self) -> None:
        """Say that no more events will come."""
        self.closed = True
        self._wake()

    def after(self, cursor: int) -> tuple[Gap | None, list[LoggedEvent]]:
        """Return the first events after *cursor* that are there, a batch at most, and before them what is missing."""
        missed = self.last - cursor
        if missed <= 0:
            return None, []
        first = len(self._events) - missed
        gap = Gap(cursor + 1, cursor - first) if first < 0 else None
        first = max(0, first)
        return gap, [self._events[index] for index in range(first, min(first + MAX_BATCH, len(self._events)))]

    async def wait(self, cursor: int, timeout_secs: float) -> bool:
        """Wait until there is an event after *cursor*, or the log is closed; return False when *timeout_secs* pass first."""
        if self.last > cursor or self.closed:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(timeout_secs, _settle, waiter, False)
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            timer.cancel()

    async def read(self, cursor: int, heartbeat_secs: float) -> AsyncIterator[LoggedEvent | Gap | Heartbeat]:
        """Give what comes after *cursor* until the log is closed; a heartbeat after each *heartbeat_secs* of nothing."""
        while True:
            gap, events = self.after(cursor)
            if gap is not None:
                cursor = gap.last
                yield gap
            for event in events:
                cursor = event.sequence
                yield event
            if self.last > cursor:
                continue
            if self.closed:
                return
            if not await self.wait(cursor, heartbeat_secs):
                yield Heartbeat(cursor)

    def _wake(self) -> None:
        for waiter in self._waiters:
            _settle(waiter, True)
        self._waiters.clear()


def check_event_size(event_type: str, data_json: bytes, max_bytes: int) -> int:
    """Return what an event weighs in a log.

    Raises:
        ValidationError: It alone is over *max_bytes*.
    """
    size_bytes = _size_bytes(event_type, data_json)
    if size_bytes > max_bytes:
        raise ValidationError(
            f"an event of {len(data_json)} bytes is over the {max_bytes} bytes that a run's stream keeps: "
            "emit less, or return it as the result"
        )
    return size_bytes


def _settle(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)


def _size_bytes(event_type: str, data_json: bytes) -> int:
    return len(event_type) + len(data_json) + EVENT_OVERHEAD_BYTES
