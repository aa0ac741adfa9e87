"""The service's socket: accepts connections and does their TLS handshakes, of which so many go on at once and no more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable

from blazen_certs.service_wire import CLOSE_SECS, MAX_HEAD_BYTES

__all__ = ["Listener"]

_RETRY_SECS = 1.0

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Accepts by hand: ``asyncio.start_server`` bounds how long a handshake takes, but not how many go on.

    Args:
        listening: The socket; who enters ``run`` closes it afterwards.
        context: TLS of the connections that come from now on. It may be replaced at any time.
        connected: Is started for each connection whose handshake is done.
        refused: Is told whom the bounds, or the machine, kept out (its address, empty where unknown), and why.
        handshake_secs: How long one may take.
        max_handshakes, max_handshakes_each: At once; and for one address. One more is closed unheard.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        connected: Connected,
        refused: Callable[[str, str], None],
        *,
        handshake_secs: float,
        max_handshakes: int,
        max_handshakes_each: int,
    ) -> None:
        self.context = context
        self._listening, self._connected, self._refused = listening, connected, refused
        self._handshake_secs, self._max, self._max_each = handshake_secs, max_handshakes, max_handshakes_each
        self._going_on: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled; handshakes that are going on then end with it."""
        self._listening.setblocking(False)
        try:
            while True:
                await self._accept()
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self) -> None:
        try:
            accepted, address = await asyncio.get_running_loop().sock_accept(self._listening)
        except ConnectionError:
            return  # gone before it was accepted
        except OSError as error:  # no descriptors, no memory: what is open now ends some time
            self._refused("", f"cannot accept connections: {error.strerror or error}")
            await asyncio.sleep(_RETRY_SECS)
            return
        remote = str(address[0])
        if self._going_on.total() >= self._max or self._going_on[remote] >= self._max_each:
            accepted.close()
            self._refused(remote, "too many handshakes at once")
            return
        self._going_on[remote] += 1
        task = asyncio.create_task(self._shake_hands(accepted))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, remote))

    def _done(self, task: asyncio.Task[None], remote: str) -> None:
        self._tasks.discard(task)
        self._going_on[remote] -= 1
        self._going_on += Counter()  # without those who have none

    async def _shake_hands(self, accepted: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
        try:
            # What TLS refuses says TellingConnection; the rest went away, or was too slow.
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: asyncio.StreamReaderProtocol(reader, self._connected),
                    accepted,
                    ssl=self.context,
                    ssl_handshake_timeout=self._handshake_secs,
                    ssl_shutdown_timeout=CLOSE_SECS,
                )
        except asyncio.CancelledError:
            accepted.close()
            raise
