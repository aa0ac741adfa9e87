"""Where something listens: ``host:port`` or ``unix:PATH``, parsed once, and the same as Envoy writes it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

__all__ = ["MAX_SOCKET_PATH_BYTES", "Address", "TcpAddress", "UnixAddress", "check_socket_path", "parse_address", "parse_tcp"]

MAX_SOCKET_PATH_BYTES = 107  # unix(7): sun_path is 108 bytes, the last one for the closing zero
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (IP address or name) and a port."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address rather than a name to look up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name is never taken for it."""
        return self.is_ip and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def to_envoy(self) -> dict[str, Any]:
        """Return ``envoy.config.core.v3.Address``."""
        return {"socket_address": {"address": self.host, "port_value": self.port}}


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def to_envoy(self) -> dict[str, Any]:
        """Return ``envoy.config.core.v3.Address``."""
        return {"pipe": {"path": self.path}}


Address = TcpAddress | UnixAddress


def check_socket_path(path: str) -> str:
    """Return *path* when the kernel takes it for a Unix socket.

    Raises:
        ValueError: It is longer than 107 bytes.
    """
    size = len(path.encode())
    if size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the socket path {path!r} has {size} bytes, and the system allows {MAX_SOCKET_PATH_BYTES}: use a shorter directory"
        )
    return path


def parse_tcp(text: object) -> TcpAddress:
    """Return the address that *text* (``127.0.0.1:50051``, ``[::1]:50051``, ``analyst:15001``) names.

    Raises:
        ValueError: It is anything else, or the port is not within 1 to 65535.
    """
    if not isinstance(text, str):
        raise ValueError('write it as text, like "127.0.0.1:50051"')
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = TcpAddress(host[1:-1] if bracketed else host, int(port) if _NUMBER.fullmatch(port) else 0)
    shaped = (address.is_ip and bracketed == (":" in address.host)) or (not bracketed and _HOST_NAME.fullmatch(host))
    if not (colon and shaped and 1 <= address.port <= 65535):
        raise ValueError(f"{text!r} is not HOST:PORT with a port within 1 to 65535")
    return address


def parse_address(text: object) -> Address:
    """Return the TCP address, or the Unix socket of ``unix:PATH``, that *text* names.

    Raises:
        ValueError: It is neither; the path is relative or longer than the system allows.
    """
    if not (isinstance(text, str) and text.startswith("unix:")):
        return parse_tcp(text)
    path = text.removeprefix("unix:")
    if not PurePosixPath(path).is_absolute() or "\0" in path:
        raise ValueError(f"{text!r} needs an absolute path, like 'unix:/run/blazen/peer.sock'")
    return UnixAddress(check_socket_path(path))
