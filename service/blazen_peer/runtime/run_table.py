"""What a server remembers of the calls that carry an invocation id, so that a repeat is answered and never run again.

A call is running, then answered, then a tombstone, then forgotten (``semantics.md``, "Repeats"). The answer lives for a bounded
time, and for less where many or large ones follow; its tombstone says no more than that it has been. Both are bounded by count:
what even the tombstones have forgotten would run again.

The table is behind a protocol, so that a journal on a disk can take its place. This one is in memory; its clock is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from blazen_peer.identity import Caller
from blazen_peer.runtime.event_log import EventLog
from blazen_peer.runtime.rulings import RunLabel

__all__ = ["Answered", "Key", "MemoryRunTable", "RunTable", "Running", "Tombstone", "key_of"]

ANSWER_SECS: Final = 600.0
MAX_ANSWERS: Final = 10_000
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
UNTAKEN_SECS: Final = 30.0
MAX_UNTAKEN_BYTES: Final = 1024 * 1024 * 1024
TOMBSTONE_SECS: Final = 24 * 3600.0
MAX_TOMBSTONES: Final = 100_000

R = TypeVar("R")

Key: TypeAlias = tuple[str, str, str]
"""Who called (kind and name), and the caller's id of the call: another caller's same id is another key. A plain tuple of text
is found fastest, and a hundred thousand of them cost the garbage collector nothing."""


def key_of(caller: Caller, invocation_id: str) -> Key:
    """Return what the table knows *caller*'s call by."""
    return caller.kind, caller.name, invocation_id


class Running(NamedTuple, Generic[R]):
    """The call is being worked on.

    Attributes:
        fingerprint: Of the request, to know a repeat from another request under the same id.
        run: What the server works on it with.
        label: What it is of, where a policy says who may have it.
    """

    fingerprint: bytes
    run: R
    label: RunLabel | None = None


class Answered(NamedTuple):
    """The call is over.

    Attributes:
        fingerprint: As above.
        answer: The bytes of the response envelope, a success's or a failure's.
        events: What the run emitted; None where that was nothing.
        label: As above.
    """

    fingerprint: bytes
    answer: bytes
    events: EventLog | None
    label: RunLabel | None = None


class Tombstone(NamedTuple):
    """The call is over, and its answer is no longer kept.

    Attributes:
        label: As above.
    """

    label: RunLabel | None = None


class RunTable(Protocol[R]):
    """Where a server looks before it runs anything. Not for several threads."""

    @property
    def untaken(self) -> int:
        """How many answers nobody was given yet, that are kept for who comes for them."""

    def find(self, key: Key) -> Running[R] | Answered | Tombstone | None:
        """Return what is known of the call *key*; None: nothing, it may run."""

    def begin(self, key: Key, fingerprint: bytes, run: R, label: RunLabel | None = None) -> None:
        """Note that *run* is what answers the call *key*, of which nothing was known."""

    def finish(self, key: Key, answer: bytes, events: EventLog | None = None, *, untaken: bool = False) -> None:
        """Note the answer of a call that runs. *untaken*: nobody was given it yet, and its caller comes for it."""


class MemoryRunTable(Generic[R]):
    """A run table that ends with its process.

    Args:
        clock: Gives seconds that never go back.
        answer_secs: How long an answer is kept at most.
        max_answers, max_answer_bytes: How many answers are kept, and how many bytes in all, their events included; the oldest
            go first.
        tombstone_secs: How long a call is remembered after its end.
        untaken_secs, max_untaken_bytes: How long an answer that nobody was given waits for its caller, beside the others, and
            how many bytes of such; then it is as any other.
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
        untaken_secs: float = UNTAKEN_SECS,
        max_untaken_bytes: int = MAX_UNTAKEN_BYTES,
    ) -> None:
        self._clock = clock
        self._answer_secs, self._max_answers, self._max_answer_bytes = answer_secs, max_answers, max_answer_bytes
        self._tombstone_secs, self._max_tombstones = tombstone_secs, max_tombstones
        self._untaken_secs, self._max_untaken_bytes = untaken_secs, max_untaken_bytes
        self._untaken: dict[Key, tuple[float, int]] = {}  # when each ended and its bytes, in the order of their ends
        self._untaken_bytes = 0
        self._running: dict[Key, tuple[bytes, R, RunLabel | None]] = {}
        # What else than a tuple is the label of a tombstone.
        self._ended: dict[Key, tuple[bytes, bytes, EventLog | None, RunLabel | None] | RunLabel | None] = {}
        self._answers: deque[tuple[Key, float, int]] = deque()  # when each ended and its bytes, in the order of their ends
        self._answer_bytes = 0
        self._tombstones: deque[tuple[Key, float]] = deque()  # likewise

    @property
    def untaken(self) -> int:
        """How many answers nobody was given yet, that are kept for who comes for them."""
        self._age()
        return len(self._untaken)

    def find(self, key: Key) -> Running[R] | Answered | Tombstone | None:
        """Return what is known of the call *key*; None: nothing, it may run."""
        if (running := self._running.get(key)) is not None:
            return Running(*running)
        if key not in self._ended:
            return None
        self._age()
        if key not in self._ended:
            return None
        if key in self._untaken:
            self._take(key)
        ended = self._ended[key]
        return Answered(*ended) if isinstance(ended, tuple) else Tombstone(ended)

    def begin(self, key: Key, fingerprint: bytes, run: R, label: RunLabel | None = None) -> None:
        """Note that *run* is what answers the call *key*, of which nothing was known."""
        self._running[key] = fingerprint, run, label

    def finish(self, key: Key, answer: bytes, events: EventLog | None = None, *, untaken: bool = False) -> None:
        """Note the answer of a call that runs. *untaken*: nobody was given it yet, and its caller comes for it."""
        fingerprint, _, label = self._running.pop(key)
        self._ended[key] = fingerprint, answer, events, label
        size_bytes = len(answer) if events is None else len(answer) + events.size_bytes
        if untaken:
            self._untaken[key] = self._clock(), size_bytes
            self._untaken_bytes += size_bytes
        else:
            self._answers.append((key, self._clock(), size_bytes))
            self._answer_bytes += size_bytes
        self._age()

    def _take(self, key: Key) -> None:
        """Count an answer that nobody was given as any other from now on."""
        _, size_bytes = self._untaken.pop(key)
        self._untaken_bytes -= size_bytes
        self._answers.append((key, self._clock(), size_bytes))
        self._answer_bytes += size_bytes

    def _age(self) -> None:
        """Make tombstones of the answers that are too old or too many, and forget tombstones likewise."""
        answers, tombstones = self._answers, self._tombstones
        now = self._clock()
        while self._untaken:
            key, (at, _) = next(iter(self._untaken.items()))
            if at > now - self._untaken_secs and self._untaken_bytes <= self._max_untaken_bytes:
                break
            self._take(key)
        old = now - self._answer_secs
        while answers and (
            answers[0][1] <= old or len(answers) > self._max_answers or self._answer_bytes > self._max_answer_bytes
        ):
            key, at, size_bytes = answers.popleft()
            self._answer_bytes -= size_bytes
            ended = self._ended[key]
            self._ended[key] = ended[3] if isinstance(ended, tuple) else ended
            tombstones.append((key, at))
        forgotten = now - self._tombstone_secs
        while tombstones and (tombstones[0][1] <= forgotten or len(tombstones) > self._max_tombstones):
            del self._ended[tombstones.popleft()[0]]
