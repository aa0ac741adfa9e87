"""When a client may repeat a call whose connection broke: the rule, without a clock, a socket or chance of its own.

What cannot have started may be repeated anywhere. What may have started is for the same server process alone, which knows
whether it did: any other refuses it (``semantics.md``, "Repeats").
"""

from __future__ import annotations

from typing import Final

from blazen_peer.errors import OtherProcessError, TlsError, TransportError

__all__ = ["Repeats"]

FIRST_DELAY_SECS: Final = 0.1
MAX_DELAY_SECS: Final = 5.0


class Repeats:
    """The repeats of one call.

    Args:
        retries: How many there may be; for a stream, one after another without a message between them.
        instance_id: The process that the client believes to call; None from a peer that does not tell.

    Attributes:
        instance_id: The process that the next attempt is for; it goes along, so that another refuses it.
        may_have_run: Whether any attempt so far can have reached a run.
    """

    def __init__(self, retries: int, instance_id: str | None) -> None:
        self._retries, self._left = retries, retries
        self.instance_id = instance_id
        self.may_have_run = False

    def progressed(self) -> None:
        """The call was answered to: the count begins anew."""
        self._left = self._retries
        self.may_have_run = True

    def delay_secs(self, error: TransportError, spread: float) -> float | None:
        """Return how long to wait before the next attempt, in seconds; None: *error* is the end. See :meth:`final`.

        Args:
            error: How an attempt ended.
            spread: A random number from 0 to 1, so that the callers of a peer that died do not all come back at once.
        """
        if isinstance(error, OtherProcessError):
            if self.may_have_run or not self._left:
                return None
            self._left -= 1
            self.instance_id = error.instance_id
            return 0.0
        self.may_have_run |= error.may_have_run
        if isinstance(error, TlsError) or not self._left or (self.may_have_run and self.instance_id is None):
            return None
        delay_secs: float = min(MAX_DELAY_SECS, FIRST_DELAY_SECS * 2.0 ** (self._retries - self._left))
        self._left -= 1
        return delay_secs * (0.5 + spread / 2)

    def final(self, error: TransportError) -> TransportError:
        """Return what the caller gets to see when *error* is the end: it says of all attempts whether one may have run."""
        if isinstance(error, OtherProcessError):
            return TransportError(f"{error}; whether the call ran before that cannot be known", may_have_run=self.may_have_run)
        if self.may_have_run and not error.may_have_run:
            return TransportError(f"{error}; an earlier attempt may have run")
        return error
