"""What goes out on a lane: frames gather in one message while the one before is being taken, and go together."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from blazen_peer.transport.lane_limits import HEARTBEAT_SECS, MAX_FRAMES, MAX_WAITING_BYTES, WRITE_SECS

__all__ = ["LaneWriter"]

M = TypeVar("M", bound=Any)

TICK_SECS: Final = HEARTBEAT_SECS / 2  # BEAT_TICKS of them are at most HEARTBEAT_SECS of silence
BEAT_TICKS: Final = 2
WRITE_TICKS: Final = math.ceil(WRITE_SECS / TICK_SECS) + 1  # the first may come right after the write began

FULL_BYTES: Final = 256 * 1024  # from this size on a message goes as it is, and the next frame begins another


class LaneWriter(Generic[M]):
    """Gathers frames and writes them. A single frame goes at once: there is no delay but the time of the write before.

    Add a frame to :attr:`message`, and say so by :meth:`note`.

    Args:
        write: Writes one message, and returns when the transport has room for the next.
        make: Makes an empty message.
        before: Is given each message just before it is written.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[Any]],
        make: Callable[[], M],
        loop: asyncio.AbstractEventLoop,
        before: Callable[[M], None] | None = None,
    ) -> None:
        self._write, self._make, self._loop, self._before = write, make, loop, before
        self.message: M = make()
        self._size_bytes = self._frames = self._full_bytes = 0
        self._full: deque[tuple[M, int]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ticks = 0  # since the last message was begun to be written
        self._timer: asyncio.TimerHandle

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
        self._task, self._ticks = asyncio.current_task(), 0
        self._timer = self._loop.call_later(TICK_SECS, self._tick)
        try:
            while True:
                if self._full:
                    message, size_bytes = self._full.popleft()
                    self._full_bytes -= size_bytes
                elif self._frames:
                    message, self.message, self._size_bytes, self._frames = self.message, self._make(), 0, 0
                else:
                    self._wake = self._loop.create_future()
                    self._tell()
                    await self._wake
                    self._wake = None
                    continue
                self._ticks = 0
                if self._before is not None:
                    self._before(message)
                await self._write(message.SerializeToString())
                self._tell()
        except asyncio.CancelledError:
            if self._wake is None and self._ticks >= WRITE_TICKS:
                raise TimeoutError(f"a message was not taken in {WRITE_SECS:g} s") from None
            raise
        finally:
            self._wake = None
            self._timer.cancel()

    def _tick(self) -> None:
        """Look whether a write takes too long, or a sign of life is due: so no message pays for a timer of its own."""
        self._timer = self._loop.call_later(TICK_SECS, self._tick)
        self._ticks += 1
        if self._wake is not None:  # there is nothing to write
            if self._ticks >= BEAT_TICKS:
                self._beat()
        elif self._ticks >= WRITE_TICKS and self._task is not None:
            self._task.cancel()

    def _tell(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _beat(self) -> None:
        self.message.ping = True
        self.note(0)
