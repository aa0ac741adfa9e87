"""How often somebody may ask: a bucket of tokens for each caller, in bounded memory. Pure; the time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

__all__ = ["RateLimit"]


@dataclass(slots=True)
class RateLimit:
    """At most *burst* requests at once, and *per_sec* from then on, for each caller by itself.

    Attributes:
        burst, per_sec: The bucket's size, and how fast it fills.
        max_callers: Of how many callers it is known when they asked; the one that has been quiet longest is forgotten first,
            and begins with a full bucket when it comes again.
    """

    burst: float
    per_sec: float
    max_callers: int = 4096
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, init=False, repr=False)

    def wait_secs(self, caller: str, *, now: float) -> float:
        """Take one token of *caller* and return 0, or return how long from *now* (seconds, any clock) until there is one."""
        left, at = self._left.pop(caller, (self.burst, now))
        left = min(self.burst, left + (now - at) * self.per_sec)
        taken = left >= 1
        self._left[caller] = (left - 1 if taken else left, now)
        while len(self._left) > self.max_callers:
            self._left.popitem(last=False)
        return 0.0 if taken else (1 - left) / self.per_sec
