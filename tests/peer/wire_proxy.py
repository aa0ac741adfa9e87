"""A TCP proxy before a server, which a test can cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blazen_peer import PeerServer

__all__ = ["Wire", "wired"]


class Wire:
    """A TCP proxy before a server that a test can cut: all connections at once, as a pulled cable does.

    While ``passing`` is clear it holds back whatever comes, as a network does that loses all and says nothing.
    """

    def __init__(self, port: int) -> None:
        self.target_port, self.connections, self.refusing, self.address = port, 0, False, ""
        self.delay_secs = 0.0  # before anything goes through a new connection
        self._writers: set[asyncio.StreamWriter] = set()
        self.passing = asyncio.Event()
        self.passing.set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        self.cut()
        self.server.close()
        await self.server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            if self.refusing:
                return
            await asyncio.sleep(self.delay_secs)
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(back_writer)
            try:
                await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))
            finally:
                self._writers.discard(back_writer)
                back_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self.passing.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.transport.abort()


@asynccontextmanager
async def wired(server: PeerServer) -> AsyncIterator[Wire]:
    """Put a wire before *server*; its ``address`` is what clients connect to."""
    wire = Wire(int(server.address.rpartition(":")[2]))
    wire.address = await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()
