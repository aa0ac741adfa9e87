"""What goes out on a lane: frames gather in one message while the one before is being taken, and go together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from blazen_peer.transport.lane_limits import HEARTBEAT_SECS, MAX_FRAMES, MAX_WAITING_BYTES, WRITE_SECS

__all__ = ["LaneWriter"]

M = TypeVar("M", bound=Any)

FULL_BYTES: Final = 256 * 1024  # from this size on a message goes as it is, and the next frame begins another


class LaneWriter(Generic[M]):
    """Gathers frames and writes them. A single frame goes at once: there is no delay but the time of the write before.

    Add a frame to :attr:`message`, and say so by :meth:`note`.

    Args:
        write: Writes one message, and returns when the transport has room for the next.
        make: Makes an empty message.
        beat: Adds what belongs to a sign of life; it is asked after a silence of ``HEARTBEAT_SECS``.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[Any]],
        make: Callable[[], M],
        loop: asyncio.AbstractEventLoop,
        beat: Callable[[M], None] | None = None,
    ) -> None:
        self._write, self._make, self._loop, self._on_beat = write, make, loop, beat
        self.message: M = make()
        self._size_bytes = self._frames = self._full_bytes = 0
        self._full: deque[tuple[M, int]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None

    @property
    def waiting_bytes(self) -> int:
        """About how much waits."""
        return self._full_bytes + self._size_bytes

    def note(self, size_bytes: int) -> None:
        """Say that a frame of about *size_bytes* was added."""
        self._frames += 1
        self._size_bytes += size_bytes
        if self._size_bytes >= FULL_BYTES or self._frames >= MAX_FRAMES:
            self._full.append((self.message, self._size_bytes))
            self._full_bytes += self._size_bytes
            self.message, self._size_bytes, self._frames = self._make(), 0, 0
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def unsent(self) -> list[M]:
        """Return the messages that were not begun to be written."""
        return [*(message for message, _ in self._full), self.message]

    async def room(self) -> None:
        """Wait while too much waits. The writer's own time is what bounds this."""
        if self.waiting_bytes > MAX_WAITING_BYTES:
            await self._until(lambda: self.waiting_bytes <= MAX_WAITING_BYTES)

    async def flushed(self) -> None:
        """Wait until everything was written."""
        await self._until(lambda: not (self._frames or self._full) and self._wake is not None)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._emptied is None or self._emptied.done():
                self._emptied = self._loop.create_future()
            await asyncio.shield(self._emptied)  # several wait for it: one that is cancelled must not take it along

    async def run(self) -> None:
        """Write until cancelled; in silence, a sign of life now and then.

        Raises:
            TimeoutError: A message was not taken.
        """
        while True:
            if self._full:
                message, size_bytes = self._full.popleft()
                self._full_bytes -= size_bytes
            elif self._frames:
                message, self.message, self._size_bytes, self._frames = self.message, self._make(), 0, 0
            else:
                await self._something()
                continue
            async with asyncio.timeout(WRITE_SECS):
                await self._write(message.SerializeToString())
            self._tell()

    async def _something(self) -> None:
        self._wake = self._loop.create_future()
        self._tell()
        heartbeat = self._loop.call_later(HEARTBEAT_SECS, self._beat)
        try:
            await self._wake
        finally:
            heartbeat.cancel()
            self._wake = None

    def _tell(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _beat(self) -> None:
        self.message.ping = True
        if self._on_beat is not None:
            self._on_beat(self.message)
        self.note(0)
