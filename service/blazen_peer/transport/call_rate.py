"""How many calls a second one caller may make by lanes: what the ingress's rate limit is for calls that come alone.

As there, each caller has one bucket, whatever it calls and with data of whichever class: it holds one second's calls and fills
evenly (``envoy/blazen_mesh/rate_limit.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from blazen_peer.errors import OverloadedError

__all__ = ["CallRate", "over_rate"]

RETRY_SECS: Final = 1.0  # as the ingress tells it: blazen_mesh.limits.OVERLOADED_RETRY_SECS
FULL_SECS: Final = 1.0  # after which a bucket that nobody takes from is full again, whatever the rate
MAX_BUCKETS: Final = 1024

logger = logging.getLogger(__name__)


class CallRate:
    """The buckets of one server.

    Args:
        per_sec: Gives the rate of this moment, in calls a second for each caller; None: there is none.
        clock: Gives seconds, of a clock that never goes back.
    """

    def __init__(self, per_sec: Callable[[], int | None], clock: Callable[[], float]) -> None:
        self._per_sec, self._clock = per_sec, clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, caller: str, count: int) -> int:
        """Return how many of *count* calls that came from *caller* just now may go on; these are counted."""
        per_sec = self._per_sec()
        if per_sec is None:
            return count
        now = self._clock()
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._forget_full(now)
            bucket = self._buckets[caller] = _Bucket(float(per_sec), now)
        left = min(float(per_sec), bucket.left + (now - bucket.at) * per_sec)
        taken = min(count, int(left))
        bucket.left, bucket.at = left - taken, now
        if taken < count and now >= bucket.quiet_until:
            bucket.quiet_until = now + RETRY_SECS
            logger.warning("%s makes more than %d calls a second by lanes: those beyond are refused", caller, per_sec)
        return taken

    def _forget_full(self, now: float) -> None:
        """Forget the buckets that are full again: a new one says the same."""
        for caller in [caller for caller, bucket in self._buckets.items() if now - bucket.at >= FULL_SECS]:
            del self._buckets[caller]


class _Bucket:
    __slots__ = ("at", "left", "quiet_until")

    def __init__(self, left: float, at: float) -> None:
        self.left, self.at = left, at  # how many calls it held, and when that was
        self.quiet_until = at


def over_rate() -> OverloadedError:
    """Return what a caller over its rate hears."""
    return OverloadedError("one caller may not make so many calls a second here: see calls_per_sec in mesh.toml", RETRY_SECS)
