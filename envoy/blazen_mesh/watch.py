"""Keeps an eye on an identity: which version is on disk, and whether Envoy has taken it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from blazen_mesh.admin import Admin
from blazen_mesh.identity_files import Identity, IdentityFileError, read_identity

__all__ = ["IdentityWatch"]

SETTLE_SECS = 2.0
STUCK_SECS = 5.0


class IdentityWatch:
    """One identity directory.

    Attributes:
        newest: The last version that could be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.newest: Identity | None = None
        self._seen_at = time.monotonic()
        self._before = self._counted = 0  # refusals: before the newest version, and by now

    def look(self, name: str, *, crl: bool, now: datetime) -> str | None:
        """Read the version on disk; return why it cannot be used, or None. Arguments as for ``read_identity``."""
        try:
            found = read_identity(self.directory, name=name, crl=crl, now=now)
        except IdentityFileError as error:
            return str(error)
        if self.newest is None or found.digest != self.newest.digest:
            self.newest, self._seen_at, self._before = found, time.monotonic(), self._counted
        return None

    def envoy_started(self) -> None:
        """Note that another Envoy counts from 0, and has just read what is on disk."""
        self._before, self._counted, self._seen_at = 0, 0, time.monotonic()

    async def count(self, admin: Admin) -> None:
        """Ask Envoy how often it has refused a secret; raises AdminError."""
        self._counted = await admin.refused_secrets()

    async def refused(self, admin: Admin) -> str | None:
        """Return what of the newest version Envoy has not taken, once it has had a moment for it; None when it has all.

        A refused version sticks: Envoy keeps the broken half, takes files that equal the former ones for unchanged, and so can
        go on without new revocation lists, however often they are put there.

        Raises:
            AdminError: Envoy does not answer.
        """
        if self.newest is None or time.monotonic() - self._seen_at < SETTLE_SECS:
            return None
        if self.newest.serial not in (served := await admin.serials()):
            old = ", ".join(f"{serial:x}" for serial in sorted(served))
            return f"Envoy has not taken certificate {self.newest.serial:x} and serves {old}"
        if self._counted > self._before:
            return f"Envoy refused a part of the identity with certificate {self.newest.serial:x}"
        return None

    @property
    def stuck(self) -> bool:
        """Whether the newest version has been there so long that Envoy will not take it by itself."""
        return time.monotonic() - self._seen_at > STUCK_SECS
