"""What a sidecar serves, by its own word: Envoy's admin interface on a Unix socket. Every wait is bounded."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["SidecarView", "look_at_sidecar", "unlike", "wait_until_served"]

_ANSWER_SECS = 2.0
_POLL_SECS = 0.05
_REFUSALS = "^sds\\..*(key_rotation_failed|update_rejected)$"


@dataclass(frozen=True, slots=True)
class SidecarView:
    """What a sidecar said.

    Attributes:
        serials: Of the certificates that it serves.
        roots: Serial numbers of the roots that it trusts.
        refused: How many secrets it has refused since it started.
        problem: Why it could not be asked; None where it answered.
    """

    serials: frozenset[int] = frozenset()
    roots: frozenset[int] = frozenset()
    refused: int = 0
    problem: str | None = None


def look_at_sidecar(admin_socket: Path) -> SidecarView:
    """Return what the sidecar behind *admin_socket* serves; not to answer within 2 seconds is a ``problem``."""
    try:
        found = _get(admin_socket, "/certs")
        stats = _get(admin_socket, f"/stats?format=json&filter={_REFUSALS}")
        entries = found.get("certificates", [])
        return SidecarView(
            _serials(entries, "cert_chain"),
            _serials(entries, "ca_cert"),
            sum(stat.get("value", 0) for stat in stats.get("stats", [])),
        )
    except (OSError, http.client.HTTPException) as error:
        return SidecarView(problem=f"the sidecar behind {admin_socket} does not answer: {error}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return SidecarView(problem=f"what answers behind {admin_socket} is no Envoy")


def wait_until_served(
    admin_socket: Path, serial: int, roots: Iterable[x509.Certificate], *, before: SidecarView, secs: float
) -> str | None:
    """Wait until the sidecar serves *serial* and trusts *roots*, and nothing else; return why not, after *secs* seconds.

    Args:
        admin_socket: The Unix socket of its admin interface.
        serial: That of the certificate that was published.
        roots: Those of the bundle that was published.
        before: What it said before that; a secret that it refused since then ends the wait.
        secs: How long to wait at most.
    """
    until = time.monotonic() + secs
    trusted = {root.serial_number for root in roots}
    while True:
        view = look_at_sidecar(admin_socket)
        if view.problem is None and view.serials == {serial} and view.roots == trusted:
            return None
        if view.problem is None and before.problem is None and view.refused > before.refused:
            return "the sidecar refused what was published, and serves the former one: see its log"
        if time.monotonic() >= until:
            return view.problem or f"{unlike(view, serial, trusted)}, {secs:g} s after the publication"
        time.sleep(_POLL_SECS)


def unlike(view: SidecarView, serial: int, roots: AbstractSet[int]) -> str | None:
    """Return what the sidecar does otherwise than to serve *serial* and trust *roots*; None where it does that."""
    if view.serials != {serial}:
        served = ", ".join(f"{item:x}" for item in sorted(view.serials)) or "none"
        return f"the sidecar serves {served}, not {serial:x}"
    return None if view.roots == roots else "the sidecar does not trust the published roots"


def _serials(entries: Iterable[dict[str, Any]], part: str) -> frozenset[int]:
    return frozenset(int(item["serial_number"], 16) for entry in entries for item in entry.get(part, []))


def _get(admin_socket: Path, path: str) -> dict[str, Any]:
    connection = _UnixConnection(admin_socket)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise http.client.HTTPException(f"{path} answers {response.status}")
    value = json.loads(body)
    return value if isinstance(value, dict) else {}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_SECS)
        self.sock.connect(str(self._path))
