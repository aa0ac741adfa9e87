"""The Envoys of one configuration directory: each takes the listening sockets over from the one before; none is closed."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from blazen_mesh.child import OnLine
from blazen_mesh.paths import NodePaths
from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import DRAIN_NOTICE_SECS, HotRestart, Sidecar

__all__ = ["Succession", "Turn"]

ROWS = 16
SHARED_MEMORY = "/dev/shm/envoy_shared_memory_{}0"  # noqa: S108 - Envoy's own name for it


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of a directory's Envoys one is.

    Attributes:
        row: The number of the row of Envoys in which each took over from the one before.
        epoch: The place in that row, from 0.
    """

    row: int = 0
    epoch: int = 0

    def next(self) -> Turn:
        """The Envoy that takes over from this one."""
        return Turn(self.row, self.epoch + 1)

    def afresh(self) -> Turn:
        """The first of another row, when there is nobody to take over from."""
        return Turn((self.row + 1) % ROWS, 0)


class Succession:
    """Starts Envoys, and knows which one serves.

    Attributes:
        current: The one that serves; before the first, None.
        turn: Its place.
        starts: How many have served.
    """

    def __init__(self, name: str, paths: NodePaths, *, envoy: Path, on_line: OnLine, settings: Settings) -> None:
        self._name, self._envoy, self._on_line, self._settings = name, envoy, on_line, settings
        self._home, self._admin_socket = Path(paths.config_dir), Path(paths.admin_socket)
        self.current: Sidecar | None = None
        self.turn, self.starts = Turn(), 0
        self._others: list[Sidecar] = []  # on their way out, or not yet in

    async def start(self, turn: Turn) -> None:
        """Start the Envoy of *turn*; when this returns it serves, and the one before lets its calls in flight end.

        Raises:
            StartError: It was not ready in time, and has been killed.
        """
        settings = self._settings
        sidecar = await Sidecar.start(
            self._name,
            envoy=self._envoy,
            config=self._home / "envoy.json",
            admin_socket=self._admin_socket,
            on_line=self._on_line,
            concurrency=settings.concurrency,
            flush_ms=settings.flush_ms,
            hot_restart=HotRestart(self._base_id(turn), turn.epoch, self._home / "hot", settings.drain_secs),
            share_output=settings.share_output,
        )
        self._others.append(sidecar)  # so that it is killed with the others whatever happens now
        try:
            await sidecar.wait_ready(settings.start_secs)
        except BaseException:
            await sidecar.child.kill()
            raise
        self._others = [other for other in self._others if other is not sidecar and other.child.returncode is None]
        if self.current is not None and self.current.child.returncode is None:
            self._others.append(self.current)
        self.current, self.turn, self.starts = sidecar, turn, self.starts + 1

    async def follow(self) -> None:
        """Let another Envoy take over from the one that serves; raises as :meth:`start`."""
        await self.let_go()
        await self.start(self.turn.next())

    async def let_go(self) -> None:
        """Wait for those on their way out, as long as their calls in flight may take. Envoy lets no third one in."""
        budget = self._settings.drain_secs + 2 * DRAIN_NOTICE_SECS
        await asyncio.gather(*(other.child.ends_within(budget) for other in self._others))

    async def leave(self) -> None:
        """After another supervisor has taken over: wait until its Envoy has ended ours."""
        if self.current is not None:
            self._others.append(self.current)
        await self.let_go()

    async def drain(self) -> bool:
        """Let calls in flight end, and return whether they did in time."""
        return self.current is None or await self.current.drain(self._settings.drain_secs)

    async def stop(self) -> None:
        """End them all now."""
        await asyncio.gather(*(sidecar.stop() for sidecar in self._all()))

    def kill(self) -> None:
        """Kill them all."""
        for sidecar in self._all():
            sidecar.child.send(signal.SIGKILL)

    def clean(self) -> None:
        """Remove what dead Envoys left behind: the sockets they talked on, their shared memory."""
        for left in (self._admin_socket, *self._home.glob("hot_*")):
            left.unlink(missing_ok=True)
        Path(SHARED_MEMORY.format(self._base_id(self.turn))).unlink(missing_ok=True)

    def _all(self) -> list[Sidecar]:
        return [*self._others, *([self.current] if self.current else [])]

    def _base_id(self, turn: Turn) -> int:
        # Another one for each directory of the machine, and for each row in it: 28 bits, since Envoy multiplies it by 10.
        return int.from_bytes(sha256(str(self._home).encode()).digest()[:3], "big") * ROWS + turn.row
