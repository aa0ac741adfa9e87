"""The policy a server enforces: a value, or a file that is read again when it changes.

A file is replaced whole or not at all: what does not read leaves the last good one in force, with one line in the log, and
``describe`` and every health answer say so until it is mended. Flows whose last day (UTC) is over go by themselves.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from blazen_peer.errors import ValidationError
from blazen_peer.policy import Policy
from blazen_peer.runtime.rulings import InForce, identity_in

__all__ = ["PolicySource", "PolicyState"]

MAX_POLICY_BYTES: Final = 4 * 1024 * 1024
DAY_SECS: Final = 86_400

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a server says of its policy.

    Attributes:
        digest: SHA-256 of its text, in hex: the file's own, so that ``sha256sum policy.json`` gives the same.
        loaded_at: When it came into force, in seconds since the epoch.
        classes: The data classes, strictest first.
        problem: Why the file as it is now is not in force; None where it is.
    """

    digest: str
    loaded_at: float
    classes: tuple[str, ...]
    problem: str | None


class PolicySource:
    """Gives the policy of this moment.

    Args:
        policy: The policy, or the file that holds one.
        node_id: The server's own name.
        clock: Seconds since the epoch.

    Raises:
        ValidationError: The file cannot be read or holds no policy, now, at the start.
    """

    def __init__(self, policy: Policy | str | Path, node_id: str, clock: Callable[[], float]) -> None:
        self._node_id, self._clock = node_id, clock
        self._path = None if isinstance(policy, Policy) else Path(policy)
        self._seen: tuple[int, int, int] | None = None
        self._problem: str | None = None
        self._day = -1
        if isinstance(policy, Policy):
            self._take(policy, policy.to_json().encode())
            return
        try:
            self._load(Path(policy))
        except (OSError, ValidationError) as error:
            raise ValidationError(f"cannot use the policy {policy}: {_why(error)}") from None

    def in_force(self) -> InForce:
        """Return the policy as it stands in the file now, for today; the same object until it changes."""
        if self._path is not None:
            try:
                self._load(self._path)
            except (OSError, ValidationError) as error:
                problem = _why(error)
                if problem != self._problem:
                    _LOG.error("cannot use the policy %s again (%s): the last good one stays in force", self._path, problem)
                    self._problem = problem
        if int(self._clock()) // DAY_SECS != self._day:
            self._begin_day()
        return self._in_force

    @property
    def state(self) -> PolicyState:
        """What is in force."""
        classes = tuple(each.name for each in self._policy.classes)
        return PolicyState(self._digest, self._loaded_at, classes, self._problem)

    def _load(self, path: Path) -> None:
        try:
            stat = path.stat()
        except OSError:
            self._seen = None  # back again, it is read again
            raise
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen == self._seen:
            return
        with path.open("rb") as file:
            text = file.read(MAX_POLICY_BYTES + 1)
        self._seen = seen
        if len(text) > MAX_POLICY_BYTES:
            raise ValidationError(f"it is over {MAX_POLICY_BYTES} bytes")
        self._take(Policy.from_json(text), text)

    def _take(self, policy: Policy, text: bytes) -> None:
        identity = identity_in(policy, self._node_id)
        self._policy, self._digest, self._loaded_at = policy, hashlib.sha256(text).hexdigest(), self._clock()
        self._problem = None
        self._begin_day()
        _LOG.info("%s enforces policy %s: %d flows", self._node_id, self._digest[:12], len(policy.flows))
        if identity is None:
            _LOG.warning("no flow of the policy is to or from %s: every call will be refused", self._node_id)

    def _begin_day(self) -> None:
        now = self._clock()
        self._day = int(now) // DAY_SECS
        today: date = datetime.fromtimestamp(now, UTC).date()
        # Who this peer is stands in the whole policy, of which today may have less.
        self._in_force = InForce(self._policy.on(today), identity_in(self._policy, self._node_id))


def _why(error: OSError | ValidationError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
