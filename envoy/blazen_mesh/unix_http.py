"""HTTP over a Unix socket, as Envoy's admin interface and our own supervisor speak it. Imports little: healthchecks use it."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

__all__ = ["NoAnswerError", "ask"]

TIMEOUT_SECS = 2.0


class NoAnswerError(Exception):
    """Nobody answers on the socket; the text says why."""


def ask(socket_path: Path, path: str, *, method: str = "GET", timeout_secs: float = TIMEOUT_SECS) -> tuple[int, str]:
    """Return the status and the body of one request.

    Raises:
        NoAnswerError: Nobody answers within *timeout_secs*.
    """
    connection = _UnixConnection(socket_path, timeout_secs)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(str(error)) from None
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_secs: float) -> None:
        super().__init__("localhost", timeout=timeout_secs)
        self._path, self._timeout_secs = path, timeout_secs

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_secs)
        self.sock.connect(str(self._path))
