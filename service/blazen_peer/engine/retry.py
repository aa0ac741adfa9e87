"""When a failed step is tried again: exponential backoff with jitter. Arithmetic alone; chance and time left are arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blazen_peer.errors import OverloadedError, ValidationError

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a step that raised is executed again, with the same event.

    The wait after the first failure is ``delay_secs``, and each further one is ``factor`` times the last, up to
    ``max_delay_secs``; of each a random share of up to ``jitter`` is taken off, so that many who failed together do not come
    again together. After an ``OverloadedError`` the wait is at least what the peer asked for.

    Attributes:
        attempts: Executions in all, the first one included.
        delay_secs: The wait after the first failure, in seconds.
        factor: What the wait grows by.
        max_delay_secs: The longest wait, in seconds.
        jitter: From 0 (none) to 1 (any wait from none to the whole).
        on: The errors that are worth another try, a timeout of the step (``TimeoutError``) among them; by default every
            ``Exception``. A cancelled step is never tried again.

    Raises:
        ValidationError: A value is out of its range.
    """

    attempts: int = 3
    delay_secs: float = 0.1
    factor: float = 2.0
    max_delay_secs: float = 30.0
    jitter: float = 0.5
    on: tuple[type[Exception], ...] | type[Exception] = Exception

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValidationError(f"Retry(attempts={self.attempts!r}): use 1 or more executions in all")
        for name, least in (("delay_secs", 0.0), ("factor", 1.0), ("max_delay_secs", 0.0)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
                raise ValidationError(f"Retry({name}={value!r}): use a number of {least:g} or more")
        if not (isinstance(self.jitter, int | float) and 0 <= self.jitter <= 1):
            raise ValidationError(f"Retry(jitter={self.jitter!r}): use a share from 0 to 1")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise ValidationError(f"Retry(on={self.on!r}): give exception classes")

    def backoff_secs(self, failures: int, chance: float) -> float:
        """Return the wait after so many failures in a row (1 or more), in seconds.

        Args:
            failures: How many executions have failed.
            chance: Random, evenly from [0, 1).
        """
        if self.delay_secs == 0 or self.max_delay_secs == 0:
            return 0.0
        # By logarithm: the power itself overflows after some thousand failures.
        grown = math.log(self.delay_secs) + (failures - 1) * math.log(self.factor)
        whole = (
            self.max_delay_secs if grown >= math.log(self.max_delay_secs) else self.delay_secs * self.factor ** (failures - 1)
        )
        return whole * (1 - self.jitter * chance)

    def wait_secs(self, error: BaseException, failures: int, *, chance: float, time_left_secs: float | None) -> float | None:
        """Return how long to wait before the next execution, in seconds; None: give up, *error* is the step's.

        It gives up when all executions are used, when *error* is of no kind that is worth another, and when the run would be
        over before the next one began: then what went wrong is worth more to its caller than that time ran out.

        Args:
            error: What the last execution raised.
            failures: How many executions have failed, that one included.
            chance: Random, evenly from [0, 1).
            time_left_secs: Of the run; None: no deadline.
        """
        if failures >= self.attempts or not isinstance(error, self.on):
            return None
        wait_secs = self.backoff_secs(failures, chance)
        if isinstance(error, OverloadedError) and error.retry_after_secs is not None:
            wait_secs = max(wait_secs, error.retry_after_secs)
        return None if time_left_secs is not None and wait_secs >= time_left_secs else wait_secs
