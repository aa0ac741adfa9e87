"""What goes wrong with identities, besides wrong arguments (``blazen_peer.errors.ValidationError``).

BlazenError
├── StoreError          "Store"         the directory lacks, or already holds, what was asked for
└── CertificateError    "Certificate"   a finished certificate failed its checks; nothing was written
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blazen_peer.errors import BlazenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blazen_certs.checks import Check

__all__ = ["CertificateError", "StoreError"]


class StoreError(BlazenError):
    """The store lacks what was asked for, already holds it, or is not safe to use; the text says what to do."""

    kind = "Store"


class CertificateError(BlazenError):
    """A certificate does not hold what it must.

    Attributes:
        checks: The checks that failed, at least one.
    """

    kind = "Certificate"

    def __init__(self, checks: Sequence[Check]) -> None:
        super().__init__(tuple(checks))
        self.checks = tuple(checks)

    def __str__(self) -> str:
        return "the certificate failed its checks: " + "; ".join(f"{check.name}: {check.detail}" for check in self.checks)
