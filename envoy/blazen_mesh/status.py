"""What a supervisor says of its sidecar: one value, a file while it is ready, and HTTP on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

__all__ = ["Conversation", "Status", "StatusServer", "answer"]

MAX_REQUEST_BYTES = 8192
REQUEST_SECS = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """One sidecar, as its supervisor sees it.

    Attributes:
        state: ``waiting`` (for an identity), ``starting``, ``serving``, ``draining``.
        why_not: Why it is not ready; None when it is.
        degraded: What is wrong though it serves: it goes on with what it had before.
        generation: Which configuration is in place.
        serial: The newest leaf's serial number in hexadecimal, and when it ends (ISO 8601).
        envoy_pid: Envoy's process.
        starts: How many Envoys there have been, this one included.
    """

    node: str
    state: Literal["waiting", "starting", "serving", "draining"] = "starting"
    why_not: str | None = "it has just started"
    degraded: tuple[str, ...] = ()
    generation: str | None = None
    serial: str | None = None
    expires: str | None = None
    envoy_pid: int | None = None
    starts: int = 0

    @property
    def ready(self) -> bool:
        """Whether calls pass."""
        return self.state == "serving" and self.why_not is None

    def to_json(self) -> str:
        """Return it as one JSON object."""
        return json.dumps({"ready": self.ready, **asdict(self)})


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StatusServer:
    """Answers on a Unix socket that only our own user may open.

    ``GET`` anything gives the status: 200 when ready, 503 when not. ``POST /hand-over`` is given to *hand_over* whole.
    """

    def __init__(self, socket_path: Path, status: Callable[[], Status], hand_over: Conversation) -> None:
        self._path, self._status, self._hand_over = socket_path, status, hand_over
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, in place of whoever did before."""
        draft = self._path.with_name(f".{self._path.name}")
        draft.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, draft, limit=MAX_REQUEST_BYTES)
        draft.chmod(0o600)
        draft.replace(self._path)  # there, and closed to others, from the first moment that it has its name

    async def stop(self, *, keep_name: bool = False) -> None:
        """Answer nobody any more. *keep_name*: the socket's path belongs to a successor now."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if not keep_name:
                self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that goes away, is slow or talks nonsense concerns nobody but itself.
        with contextlib.suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_SECS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.startswith("POST /hand-over "):
                await self._hand_over(reader, writer)
            else:
                status = self._status()
                answer(writer, HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE, status.to_json())
            await writer.drain()
        writer.close()


def answer(writer: asyncio.StreamWriter, code: HTTPStatus, body: str) -> None:
    """Write one HTTP answer; the body ends with a newline, and more may follow it until the connection closes."""
    head = f"HTTP/1.1 {code.value} {code.phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    writer.write(f"{head}{body}\n".encode())
