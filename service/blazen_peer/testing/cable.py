"""A cable that can be pulled: carries bytes between two Unix sockets, and knows nothing of what they mean."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

__all__ = ["Cable"]

CHUNK_BYTES: Final = 65_536


class Cable:
    """Carries each connection to *listen_path* on to *target_path*.

    Attributes:
        connections: How many were made so far.
    """

    def __init__(self, listen_path: Path, target_path: Path) -> None:
        self._listen_path, self._target_path = listen_path, target_path
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def plug_in(self) -> None:
        """Take connections; nothing changes where it does so already."""
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._connected, self._listen_path)

    async def pull(self) -> None:
        """Break all connections at once, whatever is under way on them, and take no new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._listen_path.unlink(missing_ok=True)
        for end in list(self._ends):
            end.transport.abort()
        if server is not None:
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._ends.add(writer)
        try:
            if self._server is None:
                return
            far_reader, far_writer = await asyncio.open_unix_connection(self._target_path)
            self._ends.add(far_writer)
            try:
                with contextlib.suppress(OSError):
                    await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
            finally:
                self._ends.discard(far_writer)
                far_writer.transport.abort()
        finally:
            self._ends.discard(writer)
            writer.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    finally:
        writer.transport.abort()
