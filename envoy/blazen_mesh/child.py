"""One supervised process: its lines handed on as they come, its end awaited, its stop bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["Child", "OnLine"]

OnLine = Callable[[str, str], None]
"""Called with the process's name and one line of its output."""

TAIL_LINES = 15
MAX_LINE_BYTES = 64 * 1024
KILL_SECS = 2.0
CHUNK_BYTES = 64 * 1024
_LAUNCHER = str(Path(__file__).with_name("launcher.py"))


class Child:
    """A process that lives no longer than we do: the kernel kills it when this one dies, however that comes.

    It has a session of its own, so that a terminal's Ctrl-C reaches us alone and we choose the order of ends.

    Attributes:
        name: For people.
        tail: The last lines it wrote.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, on_line: OnLine) -> None:
        self.name, self._process, self._on_line = name, process, on_line
        self._asked = False
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._ended = asyncio.create_task(self._follow(), name=f"output of {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        on_line: OnLine,
        env: Mapping[str, str] | None = None,
        share_output: bool = False,
    ) -> Child:
        """Start *argv*, its standard error joined to its standard output. A program that is not there ends at once.

        Args:
            share_output: It writes to our own standard output, unread by us, which costs nothing; *on_line* then gets its
                standard error alone.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=None if share_output else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if share_output else asyncio.subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        return cls(name, process, on_line)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait, without bound, until it has ended and its output is read; return the exit code."""
        return await asyncio.shield(self._ended)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to it and to what it started; nothing when it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def ask_to_end(self) -> None:
        """Send SIGTERM, once: to a draining peer a second one means to stop at once."""
        if not self._asked:
            self._asked = True
            self.send(signal.SIGTERM)

    async def stop(self, within_secs: float) -> bool:
        """Ask it to end, kill it after *within_secs*; return whether asking was enough."""
        self.ask_to_end()
        if await self.ends(within_secs):
            return True
        await self.kill()
        return False

    async def ends(self, within_secs: float) -> bool:
        """Wait until it ends by itself, *within_secs* at most; return whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_secs):
                await self.wait()
        return self.returncode is not None

    async def kill(self) -> None:
        """Kill it and what it started, and wait a moment for the last output."""
        self.send(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECS):
                await self.wait()

    async def _follow(self) -> int:
        stream, rest = self._process.stdout or self._process.stderr, b""
        assert stream is not None  # noqa: S101 - it was asked for
        while chunk := await stream.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._emit(line)
        if rest:
            self._emit(rest)
        return await self._process.wait()

    def _emit(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.tail.append(text)
        self._on_line(self.name, text)
