"""The event log of a run: numbers, bounds, gaps, and readers that do not know of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.errors import ValidationError
from blazen_peer.runtime.event_log import EVENT_OVERHEAD_BYTES, EventLog, Gap, Heartbeat, LoggedEvent

NEVER_SECS = 3600.0


def log_of(count: int, **limits: int) -> EventLog:
    log = EventLog(**limits)
    for number in range(1, count + 1):
        log.append("demo::E", b"%d" % number)
    return log


async def all_of(items: AsyncIterator[LoggedEvent | Gap | Heartbeat]) -> list[LoggedEvent | Gap | Heartbeat]:
    async with asyncio.timeout(10):
        return [item async for item in items]


def numbered(first: int, last: int) -> list[LoggedEvent]:
    return [LoggedEvent(number, "demo::E", b"%d" % number) for number in range(first, last + 1)]


CURSORS = [
    pytest.param(0, [Gap(1, 6), *numbered(7, 10)], id="from-the-beginning"),
    pytest.param(3, [Gap(4, 6), *numbered(7, 10)], id="behind-the-bound"),
    pytest.param(5, [Gap(6, 6), *numbered(7, 10)], id="one-behind"),
    pytest.param(6, numbered(7, 10), id="at-the-bound"),
    pytest.param(9, numbered(10, 10), id="one-missing"),
    pytest.param(10, [], id="nothing-new"),
]


@pytest.mark.parametrize(("cursor", "expected"), CURSORS)
async def test_cursors(cursor: int, expected: list[LoggedEvent | Gap]) -> None:
    """A reader gets what comes after its cursor, and is told exactly which events are no longer there."""
    log = log_of(10, max_events=4)
    log.close()
    assert await all_of(log.read(cursor, NEVER_SECS)) == expected


def test_bytes() -> None:
    """The log holds no more bytes than it may; an event that alone is over that is refused and changes nothing."""
    log = EventLog(max_bytes=3 * (EVENT_OVERHEAD_BYTES + 8))
    for _ in range(5):
        log.append("t", b"1234567")
        assert log.size_bytes <= 3 * (EVENT_OVERHEAD_BYTES + 8)
    assert log.after(0) == (Gap(1, 2), [LoggedEvent(number, "t", b"1234567") for number in (3, 4, 5)])
    with pytest.raises(ValidationError, match="an event of 1000 bytes is over the 624 bytes"):
        log.append("t", b"x" * 1000)
    assert log.last == 5


def test_default_bounds() -> None:
    """Unless told otherwise 1,024 events and 4 MiB are kept."""
    assert log_of(1024).after(0)[0] is None
    assert log_of(1025).after(0)[0] == Gap(1, 1)
    log = EventLog()
    log.append("t", b"x" * (2 << 20))
    log.append("t", b"x" * (2 << 20))
    assert log.after(0)[0] == Gap(1, 1)


def test_closed() -> None:
    """Nothing is added to a closed log."""
    log = log_of(1)
    log.close()
    log.append("demo::E", b"late")
    assert log.last == 1


async def test_readers_at_their_own_pace() -> None:
    """A reader that stands still holds up neither the log nor another reader, and goes on with a gap."""
    log = EventLog(max_events=4)
    slow, quick = log.read(0, NEVER_SECS), log.read(0, NEVER_SECS)
    log.append("demo::E", b"1")
    assert await anext(slow) == LoggedEvent(1, "demo::E", b"1")
    for number in range(2, 101):
        log.append("demo::E", b"%d" % number)
        assert await anext(quick) in numbered(number - 1, number)
    log.close()
    assert await all_of(quick) == numbered(100, 100)
    assert await all_of(slow) == [Gap(2, 96), *numbered(97, 100)]


async def test_waiting_readers() -> None:
    """Readers that wait are woken by the next event and by the end; one that is cancelled leaves nothing behind."""
    log = EventLog()
    readers = [asyncio.create_task(all_of(log.read(0, NEVER_SECS))) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await readers[0]
    assert len(log._waiters) == 2
    log.append("demo::E", b"1")
    await asyncio.sleep(0)
    log.append("demo::E", b"2")
    log.close()
    assert await asyncio.gather(*readers[1:]) == [numbered(1, 2)] * 2


async def test_heartbeats() -> None:
    """While nothing happens a reader hears so again and again, with the cursor that it has."""
    log = log_of(2)
    reader = log.read(0, 0.001)
    async with asyncio.timeout(10):
        assert [await anext(reader) for _ in range(5)] == [*numbered(1, 2), *[Heartbeat(2)] * 3]
        log.append("demo::E", b"3")
        assert await anext(reader) == LoggedEvent(3, "demo::E", b"3")


@given(
    sizes=st.lists(st.integers(0, 300), max_size=200),
    pauses=st.lists(st.integers(0, 30), max_size=50),
    max_events=st.integers(1, 100),
    max_bytes=st.integers(800, 20_000),
)
def test_no_event_is_lost_unsaid(sizes: list[int], pauses: list[int], max_events: int, max_bytes: int) -> None:
    """However a reader dawdles, what it gets and what it is told is missing make all numbers, once each, in order."""
    log = EventLog(max_events, max_bytes)
    cursor, seen = 0, []
    waits = iter(pauses)

    def read() -> None:
        nonlocal cursor
        gap, events = log.after(cursor)
        if gap is not None:
            seen.extend(range(gap.first, gap.last + 1))
            cursor = gap.last
        for event in events:
            seen.append(event.sequence)
            cursor = event.sequence

    due = next(waits, 0)
    for size in sizes:
        log.append("t", b"x" * size)
        assert len(log._events) <= max_events
        assert log.size_bytes <= max_bytes
        if due == 0:
            read()
            due = next(waits, 0)
        else:
            due -= 1
    while cursor < log.last:
        read()
    assert seen == list(range(1, len(sizes) + 1))
