"""What a server remembers of the calls that carry an invocation id, so that a repeat is answered and never run again.

A call is running, then answered, then a tombstone, then forgotten (``semantics.md``, "Repeats"). The answer lives for a bounded
time, and for less where many or large ones follow; its tombstone says no more than that it has been. Both are bounded by count:
what even the tombstones have forgotten would run again.

The table is behind a protocol, so that a journal on a disk can take its place. This one is in memory; its clock is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from blazen_peer.identity import Caller
from blazen_peer.runtime.event_log import EventLog

__all__ = ["Answered", "Key", "MemoryRunTable", "RunTable", "Running", "Tombstone"]

ANSWER_SECS: Final = 600.0
MAX_ANSWERS: Final = 10_000
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
TOMBSTONE_SECS: Final = 24 * 3600.0
MAX_TOMBSTONES: Final = 100_000

R = TypeVar("R")

Key: TypeAlias = tuple[Caller, str]
"""Who called, and the caller's id of the call: another caller's same id is another key."""


class Running(NamedTuple, Generic[R]):
    """The call is being worked on.

    Attributes:
        fingerprint: Of the request, to know a repeat from another request under the same id.
        run: What the server works on it with.
    """

    fingerprint: bytes
    run: R


class Answered(NamedTuple):
    """The call is over.

    Attributes:
        fingerprint: As above.
        answer: The bytes of the response envelope, a success's or a failure's.
        events: What the run emitted; None where that was nothing.
    """

    fingerprint: bytes
    answer: bytes
    events: EventLog | None


class Tombstone(NamedTuple):
    """The call is over, and its answer is no longer kept."""


class RunTable(Protocol[R]):
    """Where a server looks before it runs anything. Not for several threads."""

    def find(self, key: Key) -> Running[R] | Answered | Tombstone | None:
        """Return what is known of the call *key*; None: nothing, it may run."""

    def begin(self, key: Key, fingerprint: bytes, run: R) -> None:
        """Note that *run* is what answers the call *key*, of which nothing was known."""

    def finish(self, key: Key, answer: bytes, events: EventLog | None = None) -> None:
        """Note the answer of a call that runs."""


class _Kept(NamedTuple):
    """An answer, when it ended, and what it counts for in bytes."""

    answered: Answered
    at: float
    size_bytes: int


class MemoryRunTable(Generic[R]):
    """A run table that ends with its process.

    Args:
        clock: Gives seconds that never go back.
        answer_secs: How long an answer is kept at most.
        max_answers, max_answer_bytes: How many answers are kept, and how many bytes in all, their events included; the oldest
            go first.
        tombstone_secs: How long a call is remembered after its end.
        max_tombstones: How many calls are remembered beyond their answers; the oldest go first.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        answer_secs: float = ANSWER_SECS,
        max_answers: int = MAX_ANSWERS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        tombstone_secs: float = TOMBSTONE_SECS,
        max_tombstones: int = MAX_TOMBSTONES,
    ) -> None:
        self._clock = clock
        self._answer_secs, self._max_answers, self._max_answer_bytes = answer_secs, max_answers, max_answer_bytes
        self._tombstone_secs, self._max_tombstones = tombstone_secs, max_tombstones
        self._running: dict[Key, Running[R]] = {}
        self._answers: OrderedDict[Key, _Kept] = OrderedDict()  # in the order of their ends
        self._answer_bytes = 0
        self._tombstones: OrderedDict[Key, float] = OrderedDict()  # likewise; when each call ended

    def find(self, key: Key) -> Running[R] | Answered | Tombstone | None:
        """Return what is known of the call *key*; None: nothing, it may run."""
        if (running := self._running.get(key)) is not None:
            return running
        self._age()
        if (kept := self._answers.get(key)) is not None:
            return kept.answered
        return _TOMBSTONE if key in self._tombstones else None

    def begin(self, key: Key, fingerprint: bytes, run: R) -> None:
        """Note that *run* is what answers the call *key*, of which nothing was known."""
        self._running[key] = Running(fingerprint, run)

    def finish(self, key: Key, answer: bytes, events: EventLog | None = None) -> None:
        """Note the answer of a call that runs."""
        fingerprint = self._running.pop(key).fingerprint
        size_bytes = len(answer) + (events.size_bytes if events is not None else 0)
        self._answers[key] = _Kept(Answered(fingerprint, answer, events), self._clock(), size_bytes)
        self._answer_bytes += size_bytes
        self._age()

    def _age(self) -> None:
        """Make tombstones of the answers that are too old or too many, and forget tombstones likewise."""
        answers, tombstones = self._answers, self._tombstones
        now = self._clock()
        while answers:
            key, kept = next(iter(answers.items()))
            if (
                kept.at + self._answer_secs > now
                and len(answers) <= self._max_answers
                and self._answer_bytes <= self._max_answer_bytes
            ):
                break
            del answers[key]
            self._answer_bytes -= kept.size_bytes
            tombstones[key] = kept.at
        while tombstones and (
            len(tombstones) > self._max_tombstones or next(iter(tombstones.values())) + self._tombstone_secs <= now
        ):
            tombstones.popitem(last=False)


_TOMBSTONE = Tombstone()
