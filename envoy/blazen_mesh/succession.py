"""The Envoys of one configuration directory: each takes the listening sockets over from the one before; none is closed."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blazen_mesh.child import OnLine
from blazen_mesh.connections import accepted, listening
from blazen_mesh.paths import NodePaths
from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import END_SECS, HotRestart, Sidecar, StartError

__all__ = ["BASE_IDS", "Succession", "Turn"]

BASE_IDS = 2**31 // 10 - 1
"""The greatest base id. Envoy names its sockets for ten times as much, in 31 bits; above that it gives them other names."""

LOOK_SECS = 0.25
IDLE_TIMES = 4
SHARED_MEMORY = "/dev/shm/envoy_shared_memory_{}"  # noqa: S108 - Envoy's own name for it


@dataclass(frozen=True, slots=True)
class Turn:
    """Which of a directory's Envoys one is.

    Attributes:
        base_id: What all have in common that took over one from the other, and no other Envoy of the machine has.
        epoch: The place among them, from 0.
    """

    base_id: int
    epoch: int = 0

    @classmethod
    def first(cls) -> Turn:
        """One that takes over from nobody. Its base id is drawn by lot: nobody else can have what it names before it does."""
        return cls(1 + secrets.randbelow(BASE_IDS))

    def next(self) -> Turn:
        """The Envoy that takes over from this one."""
        return Turn(self.base_id, self.epoch + 1)

    def before(self) -> Turn:
        """The Envoy that this one takes over from."""
        return Turn(self.base_id, self.epoch - 1)


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
        self.turn, self.starts = Turn.first(), 0
        self._others: list[Sidecar] = []  # on their way out, or not yet in
        self._ports: frozenset[int] = frozenset()
        self._stand_ins: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, turn: Turn) -> None:
        """Start the Envoy of *turn*; when this returns it serves, and the one before lets its calls in flight end.

        Raises:
            StartError: It was not ready in time, and has been killed; or it could not be started.
        """
        settings = self._settings
        try:
            sidecar = await Sidecar.start(
                self._name,
                envoy=self._envoy,
                config=self._home / "envoy.json",
                admin_socket=self._admin_socket,
                on_line=self._on_line,
                concurrency=settings.concurrency,
                flush_ms=settings.flush_ms,
                hot_restart=self._hot_restart(turn),
                share_output=settings.share_output,
            )
        except OSError as error:  # no memory, processes or descriptors left
            raise StartError(f"{self._name} cannot be started: {error}") from None
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
        self.know_ports()
        if turn.epoch:
            self._begin(self._stand_in(self._hot_restart(turn.before()).orders))
            self._begin(self.let_go())

    async def follow(self) -> None:
        """Let another Envoy take over from the one that serves; raises as :meth:`start`."""
        await self.let_go()
        await self.start(self.turn.next())

    async def let_go(self) -> None:
        """Wait for those on their way out: until nobody is connected to them, or their calls have had their time.

        Envoy lets no third one in. A successor ends the one before it by itself, when that time is over.
        """
        budget = self._settings.drain_secs + END_SECS
        await asyncio.gather(*(self._see_off(other, budget) for other in self._others))

    def know_ports(self) -> None:
        """Note on which ports the one that serves listens; once it is on its way out, it does no more."""
        if self.current is not None:
            self._ports = listening(self.current.child.pid) or self._ports

    async def leave(self) -> None:
        """After another supervisor has taken over: see ours off."""
        if self.current is not None:
            self._others.append(self.current)
        await self.let_go()

    async def _see_off(self, other: Sidecar, budget: float) -> None:
        idle, until = 0, time.monotonic() + budget
        while idle < IDLE_TIMES and time.monotonic() < until:
            if await other.child.ends(LOOK_SECS):
                return
            idle = 0 if accepted(other.child.pid, self._ports) else idle + 1
        await other.stop(END_SECS)

    async def _stand_in(self, orders: Path) -> None:
        """Should the Envoy before die early, take the orders that its successor has for it.

        Envoy stops dead, and aborts after ten seconds, when the one before is not there to be told to end.
        """
        until = time.monotonic() + self._settings.drain_secs + 2 * END_SECS
        while _listened_to(orders):
            if time.monotonic() > until:
                return
            await asyncio.sleep(LOOK_SECS)
        self._stand_ins.append(_bound(orders))

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

    def end_orphans(self) -> None:
        """Kill this directory's Envoys that are not ours: those of a killed supervisor, or of one that hung as it took over.

        One that has just taken over lives on for ten seconds after its supervisor: it asks to be sent SIGTERM when that dies,
        and waits then for the one before it to take its orders.
        """
        ours = {sidecar.child.pid for sidecar in self._all()}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                found = f"\0--socket-path\0{self._home / 'hot'}\0" in path.read_text(errors="replace")
                if found and int(path.parent.name) not in ours:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def clean(self) -> None:
        """Remove what dead Envoys left behind: the sockets they talked on, their shared memory."""
        for task in self._tasks:
            task.cancel()
        while self._stand_ins:
            self._stand_ins.pop().close()
        for orders in self._home.glob("hot_parent_*"):  # a killed supervisor's too
            with suppress(ValueError, OSError):  # it may be another user's by now
                Path(SHARED_MEMORY.format(int(orders.name.rpartition("_")[2]) // 10 * 10)).unlink()
        for left in (self._admin_socket, *self._home.glob("hot_*")):
            left.unlink(missing_ok=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hot_restart(self, turn: Turn) -> HotRestart:
        return HotRestart(turn.base_id, turn.epoch, self._home / "hot", self._settings.drain_secs)

    def _all(self) -> list[Sidecar]:
        return [*self._others, *([self.current] if self.current else [])]


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(str(path))
    return found


def _listened_to(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
