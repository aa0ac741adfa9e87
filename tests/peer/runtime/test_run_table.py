"""The run table: what is known of a call, for how long, and how much of it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.event_log import EventLog
from blazen_peer.runtime.run_table import Answered, Key, MemoryRunTable, Running, Tombstone, key_of

PRINT, OTHER = b"request", b"another"
KEY: Key = key_of(ANONYMOUS, "call-1")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered(table: MemoryRunTable[str], name: str, answer: bytes = b"answer") -> Key:
    """Let a call begin and end, and return its key."""
    key = key_of(ANONYMOUS, name)
    table.begin(key, PRINT, name)
    table.finish(key, answer)
    return key


def test_a_life(clock: Clock) -> None:
    """Unknown, running, answered, a tombstone, forgotten: each at its time and to the second."""
    table: MemoryRunTable[str] = MemoryRunTable(clock, answer_secs=600, tombstone_secs=3600)
    assert table.find(KEY) is None
    table.begin(KEY, PRINT, "the run")
    clock.now += 100_000  # a run may take as long as it may
    assert table.find(KEY) == Running(PRINT, "the run")
    table.finish(KEY, b"answer")
    clock.now += 599
    assert table.find(KEY) == Answered(PRINT, b"answer", None)
    clock.now += 1
    assert table.find(KEY) == Tombstone()
    clock.now += 2999
    assert table.find(KEY) == Tombstone()
    clock.now += 1
    assert table.find(KEY) is None


def test_defaults(clock: Clock) -> None:
    """Unless told otherwise: answers for 600 s, tombstones for 24 h, 10,000 and 100,000 of them."""
    table: MemoryRunTable[str] = MemoryRunTable(clock)
    keys = [answered(table, f"{number}", b"") for number in range(110_001)]
    assert isinstance(table.find(keys[-10_000]), Answered)
    assert table.find(keys[-10_001]) == Tombstone()
    assert table.find(keys[1]) == Tombstone()
    assert table.find(keys[0]) is None
    clock.now += 600
    assert table.find(keys[-1]) == Tombstone()
    clock.now += 24 * 3600 - 600
    assert table.find(keys[-1]) is None


CALLERS = [
    pytest.param(Caller.claimed("node-b"), id="another-node"),
    pytest.param(Caller("proven", "node-a"), id="another-kind"),
    pytest.param(ANONYMOUS, id="anonymous"),
]


@pytest.mark.parametrize("other", CALLERS)
def test_another_caller(clock: Clock, other: Caller) -> None:
    """Another caller's same id is nothing that is known."""
    table: MemoryRunTable[str] = MemoryRunTable(clock)
    table.begin(key_of(Caller.claimed("node-a"), "id"), PRINT, "run")
    assert table.find(key_of(other, "id")) is None


def test_answer_bytes(clock: Clock) -> None:
    """The oldest answers go first when their bytes are too many, events included; one that is too large alone goes at once."""
    table: MemoryRunTable[str] = MemoryRunTable(clock, max_answer_bytes=1000)
    first, second = answered(table, "first", b"x" * 500), answered(table, "second", b"x" * 500)
    assert isinstance(table.find(first), Answered)
    log = EventLog()
    log.append("demo::E", b"x" * 100)
    third = key_of(ANONYMOUS, "third")
    table.begin(third, PRINT, "third")
    table.finish(third, b"", log)
    assert table.find(first) == Tombstone()
    assert isinstance(table.find(second), Answered)
    assert table.find(third) == Answered(PRINT, b"", log)
    assert table.find(answered(table, "large", b"x" * 1001)) == Tombstone()
    assert table.find(third) == Tombstone()
    assert isinstance(table.find(answered(table, "last", b"x" * 1000)), Answered)


class Model(RuleBasedStateMachine):
    """Any order of calls: a call that is over within its time is never unknown, so it never runs twice."""

    ANSWERS, TOMBSTONES = 3, 5

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table: MemoryRunTable[int] = MemoryRunTable(
            self.clock,
            answer_secs=10,
            max_answers=self.ANSWERS,
            max_answer_bytes=100,
            tombstone_secs=30,
            max_tombstones=self.TOMBSTONES,
        )
        self.running: dict[Key, int] = {}
        self.ended: list[tuple[Key, float, int]] = []
        self.count = 0

    @rule()
    def begin(self) -> None:
        self.count += 1
        key = key_of(ANONYMOUS, str(self.count))
        assert self.table.find(key) is None
        self.table.begin(key, PRINT, self.count)
        self.running[key] = self.count

    @precondition(lambda self: self.running)
    @rule(data=st.data(), size=st.integers(0, 120))
    def finish(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(list(self.running)))
        del self.running[key]
        self.table.finish(key, b"x" * size)
        self.ended.append((key, self.clock.now, size))

    @rule(secs=st.integers(0, 12))
    def pass_time(self, secs: int) -> None:
        self.clock.now += secs

    @invariant()
    def is_as_told(self) -> None:
        for key, number in self.running.items():
            assert self.table.find(key) == Running(PRINT, number)
        younger_bytes = 0
        for age, (key, at, size) in enumerate(reversed(self.ended)):
            younger_bytes += size
            found, passed = self.table.find(key), self.clock.now - at
            if passed >= 30 or age >= self.ANSWERS + self.TOMBSTONES:
                assert found is None
            elif passed >= 10 or age >= self.ANSWERS or size > 100:
                assert found == Tombstone() or age >= self.TOMBSTONES
            elif younger_bytes <= 100 and all(other <= 100 for _, _, other in self.ended):
                assert found == Answered(PRINT, b"x" * size, None)
            else:
                assert found is not None or age >= self.TOMBSTONES


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


def test_untaken(clock: Clock) -> None:
    """An answer that nobody was given waits for its caller beside the others, for its time and within its bytes."""
    table: MemoryRunTable[str] = MemoryRunTable(clock, max_answers=1, untaken_secs=30, max_untaken_bytes=1000)

    def untaken(name: str) -> Key:
        key = key_of(ANONYMOUS, name)
        table.begin(key, PRINT, name)
        table.finish(key, b"x" * 500, untaken=True)
        return key

    fetched, late, third = untaken("fetched"), untaken("late"), answered(table, "third")
    assert isinstance(table.find(fetched), Answered)  # it is as any other from now on
    fourth = answered(table, "fourth")
    assert [table.find(key) for key in (fetched, third)] == [Tombstone(), Tombstone()]
    clock.now += 29
    answered(table, "fifth")
    assert table.find(fourth) == Tombstone()
    clock.now += 1
    answered(table, "sixth")  # by now the other is as any other too, and goes with the next
    answered(table, "seventh")
    assert table.find(late) == Tombstone()
    first, *_, last = [untaken(f"{number}") for number in range(3)]
    answered(table, "eighth")
    assert table.find(first) == Tombstone()
    assert isinstance(table.find(last), Answered)
