"""Settings and addresses, parsed once from what a user wrote."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, fields
from typing import Final
from urllib.parse import urlsplit

from blazen_peer.errors import ValidationError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ListenAddress",
    "ServerSettings",
    "check_timeout_secs",
    "client_target",
    "parse_listen_address",
]

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_MAX_UNIX_PATH_BYTES: Final = 107  # sockaddr_un.sun_path less its final zero, unix(7)
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The limits and times of a server.

    Attributes:
        default_timeout_secs: What a run may take when the call gives no timeout.
        max_timeout_secs: What any run may take at most.
        lame_duck_secs: How long a draining server goes on accepting calls after its health says NOT_SERVING: two
            health-check intervals, because sidecars notice late.
        drain_secs: How long runs may then take to finish before they are cancelled.
        max_runs: How many runs may be in progress at once.
        max_queued_runs: How many more may wait for their turn, which counts against their time; a call beyond is refused with
            RESOURCE_EXHAUSTED.
        max_message_bytes: The largest message, each way.
        stream_events, stream_bytes: How many of a run's emitted events are kept for readers that fall behind or come back, and
            how many bytes of them; the oldest go first.
        max_run_refs, max_run_ref_bytes: How many session refs one run may hold, and how many bytes their values may be.
        max_refs, max_ref_bytes: Likewise for the whole server.
        ref_lease_secs: How long a session ref lives unused, where the step that put it did not say.

    Raises:
        ValidationError: Names every setting that is out of its range.
    """

    default_timeout_secs: float = 300.0
    max_timeout_secs: float = 3600.0
    lame_duck_secs: float = 10.0
    drain_secs: float = 30.0
    max_runs: int = 4096
    max_queued_runs: int = 1024
    max_message_bytes: int = MAX_MESSAGE_BYTES
    stream_events: int = 1024
    stream_bytes: int = 4 * 1024 * 1024
    max_run_refs: int = 1024
    max_run_ref_bytes: int = 256 * 1024 * 1024
    max_refs: int = 10_000
    max_ref_bytes: int = 1024 * 1024 * 1024
    ref_lease_secs: float = 3600.0

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} must be {'at least 0' if field.name in _MAY_BE_ZERO else 'above 0'} and finite, not {value}"
            for field in fields(self)
            if not math.isfinite(value := getattr(self, field.name))
            or value < 0
            or (value == 0 and field.name not in _MAY_BE_ZERO)
        ]
        if not problems and self.default_timeout_secs > self.max_timeout_secs:
            problems = ["default_timeout_secs is above max_timeout_secs"]
        if problems:
            raise ValidationError("; ".join(problems))


_MAY_BE_ZERO: Final = frozenset({"lame_duck_secs", "drain_secs", "max_queued_runs"})


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens.

    Attributes:
        target: As grpcio wants it: ``host:port``, ``[v6]:port`` or ``unix:path``.
        is_local: Whether only this machine can reach it.
        host: The host, in brackets where it is IPv6; None for a Unix socket.
    """

    target: str
    is_local: bool
    host: str | None


def parse_listen_address(text: str) -> ListenAddress:
    """Return the listen address that *text* gives: ``host:port`` (0 picks a free one), ``[v6]:port`` or ``unix:PATH``.

    Raises:
        ValidationError: It is neither.
    """
    if text.startswith("unix:"):
        return ListenAddress(_unix_target(text), True, None)
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65_535:
        raise ValidationError(
            f"listen address {text[:200]!r} is not valid: use host:port, such as 127.0.0.1:50051, or unix:PATH"
        )
    return ListenAddress(f"{host}:{port}", _is_loopback(host, text), host)


def client_target(address: str, *, tls: bool = False) -> str:
    """Return grpcio's target for a client's *address*: ``http://host:port`` or ``unix:PATH``; with *tls* ``https://host:port``.

    Raises:
        ValidationError: It is neither, or ``https`` without *tls* or *tls* without ``https``.
    """
    if tls and not address.startswith("https://"):
        raise ValidationError(f"address {address[:200]!r}: tls= needs an https:// address, such as https://10.0.0.2:50051")
    if address.startswith("unix:"):
        return _unix_target(address)
    parts = urlsplit(address) if "://" in address else urlsplit(f"http://{address}")
    if parts.scheme == "https" and not tls:
        raise ValidationError(
            f"address {address[:200]!r}: a peer beside a sidecar is called by the sidecar's egress port, such as "
            "http://127.0.0.1:16001; for one that speaks TLS itself "
            "give tls=load_client_tls(...) (--tls-cert, --tls-key, --tls-ca)"
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    scheme, usage = ("https", "https://host:port") if tls else ("http", "http://host:port or unix:PATH")
    if parts.scheme != scheme or not host or not port or parts.username or parts.path not in ("", "/") or parts.query:
        raise ValidationError(f"address {address[:200]!r} is not valid: use {usage}")
    target = f"[{host}]" if ":" in host else host
    _is_loopback(target, address)
    return f"{target}:{port}"


def check_timeout_secs(timeout_secs: float) -> float:
    """Return *timeout_secs* as a float when it is a number from 0 on.

    Raises:
        ValidationError: It is negative or not a number. Infinity is clamped where it is used.
    """
    if isinstance(timeout_secs, bool) or not isinstance(timeout_secs, int | float) or not timeout_secs >= 0:
        raise ValidationError(f"timeout_secs must be a number of seconds from 0 on, not {timeout_secs!r}")
    return float(min(timeout_secs, 1e15))


def _unix_target(text: str) -> str:
    path = text.removeprefix("unix:").removeprefix("//")
    if not path or "\0" in path or len(path.encode()) > _MAX_UNIX_PATH_BYTES:
        raise ValidationError(f"{text[:200]!r} is not valid: a Unix socket's path has 1 to {_MAX_UNIX_PATH_BYTES} bytes")
    return f"unix:{path}"


def _is_loopback(host: str, text: str) -> bool:
    try:
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        address = ipaddress.ip_address(bare)
        if (address.version == 6) != (bare is not host):
            raise ValidationError(f"address {text[:200]!r} is not valid: write IPv6 in brackets, such as [::1]:50051")
        return address.is_loopback
    except ValueError:
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise ValidationError(f"address {text[:200]!r} is not valid: {host[:100]!r} is no host") from None
        return host == "localhost"
