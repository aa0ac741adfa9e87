"""Whether an address can be listened on: asked before gRPC is, which hands no reason on and prints lines of its own."""

from __future__ import annotations

import errno
import os
import socket

from blazen_peer.config import ListenAddress
from blazen_peer.errors import TransportError

__all__ = ["check_bindable"]

PROBE_SECS = 1.0


def check_bindable(address: ListenAddress) -> None:
    """Do nothing where a server can listen on *address*.

    Raises:
        TransportError: It is taken, or not this machine's, with the system's reason. A Unix socket that somebody listens on
            is taken; a file that nobody listens on any more is not, and gRPC replaces it.
    """
    try:
        if address.host is None:
            _probe_unix(address.target.removeprefix("unix:"))
        else:
            _bind_once(address.host.strip("[]"), int(address.target.rpartition(":")[2]))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise TransportError(f"cannot listen on {address.target}: {reason}", may_have_run=False) from None


def _bind_once(host: str, port: int) -> None:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(where)


def _probe_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECS)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except TimeoutError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
