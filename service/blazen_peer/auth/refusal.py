"""How a caller is refused, and the names of the headers that are looked at."""

from __future__ import annotations

from typing import Literal

__all__ = ["AUTHORIZATION", "CLIENT_CERT", "DATA_CLASS_STAMP", "SIDECAR_PROOF", "Refused"]

AUTHORIZATION = "authorization"
CLIENT_CERT = "x-forwarded-client-cert"  # Envoy writes it; see sidecar.py
SIDECAR_PROOF = "x-blazen-sidecar-proof"  # the ingress sidecar adds it to every call that it lets in
DATA_CLASS_STAMP = "x-blazen-data-class"  # the caller's egress sidecar stamps it; the ingress keeps it


class Refused(Exception):  # noqa: N818 - an answer of the gate, not a fault
    """A call that is not admitted.

    Attributes:
        status: The gRPC status that the caller gets, and all that it learns.
        reason: One line for the server's own log. It never holds a token, a proof, or another header's text.
    """

    def __init__(self, status: Literal["UNAUTHENTICATED", "PERMISSION_DENIED"], reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"
