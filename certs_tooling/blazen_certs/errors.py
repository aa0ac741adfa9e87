"""What goes wrong with identities, besides wrong arguments (``blazen_peer.errors.ValidationError``).

BlazenError
├── StoreError          "Store"         the directory lacks, or already holds, what was asked for
├── CertificateError    "Certificate"   a finished certificate failed its checks; nothing was written
├── CodeError           "Code"          a join code is not accepted
└── ServiceError        its own         the certificate service was not reached, is not the mesh's own, or refused
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blazen_peer.errors import BlazenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blazen_certs.checks import Check

__all__ = ["CertificateError", "CodeError", "ServiceError", "StoreError"]


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


class CodeError(BlazenError):
    """A join code is not accepted: it is wrong, used, past its end, or another node's."""

    kind = "Code"


class ServiceError(BlazenError):
    """The certificate service gave no certificate.

    Attributes:
        message: One line for people.
        kind: "Unreachable" (no answer), "Untrusted" (not the certificate service of this mesh), "Handshake" (it refused our
            certificate), "Malformed" (no answer of ours), or what it refused with: "Code", "Revoked", "Denied", "Busy", ...
    """

    kind = "Service"

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.message, self.kind = message, kind

    def __str__(self) -> str:
        return self.message
