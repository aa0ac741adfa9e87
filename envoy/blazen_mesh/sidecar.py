"""One running Envoy: started, truly ready, drained in the order that loses no call, ended."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.child import Child, OnLine
from blazen_peer.errors import BlazenError

__all__ = ["HotRestart", "Sidecar", "StartError", "ended"]

POLL_SECS = 0.05
QUIET_SECS = 0.25
END_SECS = 5.0
DRAIN_NOTICE_SECS = 1
"""How long a draining sidecar still takes new connections, while it asks those it has to go elsewhere."""

REPLACED_SECS = 3900
"""How long calls in flight may go on by a listener that discovery has changed or taken away: a peer's longest run, and slack.
After it, Envoy closes the connections."""


class StartError(BlazenError):
    """A process of the mesh did not start, or ended by itself; the text holds its last lines."""

    kind = "Start"


@dataclass(frozen=True, slots=True)
class HotRestart:
    """How one Envoy takes the listening sockets over from another, so that no caller meets a closed port.

    Attributes:
        base_id: What both share, and no other Envoy of the machine has: it names their shared memory.
        epoch: 0 for the first, and one more for each that follows it.
        socket: Where they talk; Envoy lays its own endings on to it. A path rather than Envoy's own default, a name that every
            user of the machine may connect to.
        leave_secs: How long the predecessor may take for its calls in flight, before it is ended.
    """

    base_id: int
    epoch: int
    socket: Path
    leave_secs: float

    @property
    def arguments(self) -> list[str]:
        """The options for Envoy."""
        # Without the predecessor's numbers: asking for them blocks, for ever where it has died.
        found = ["--base-id", str(self.base_id), "--restart-epoch", str(self.epoch), "--skip-hot-restart-parent-stats"]
        found += ["--socket-path", str(self.socket), "--socket-mode", "600"]
        return [*found, "--parent-shutdown-time-s", str(math.ceil(self.leave_secs) + DRAIN_NOTICE_SECS)]

    @property
    def orders(self) -> Path:
        """The socket on which this Envoy takes its successor's orders (Envoy's own naming)."""
        return self.socket.with_name(f"{self.socket.name}_parent_{self.base_id * 10 + self.epoch % 3}")


class Sidecar:
    """An Envoy process and its admin interface."""

    def __init__(self, child: Child, admin: Admin, hot_restart: HotRestart | None = None) -> None:
        self.child, self.admin, self._epoch = child, admin, hot_restart.epoch if hot_restart else 0

    @classmethod
    async def start(
        cls,
        name: str,
        *,
        envoy: Path,
        config: Path,
        admin_socket: Path,
        on_line: OnLine,
        concurrency: int = 1,
        flush_ms: int = 500,
        options: Sequence[str] = (),
        hot_restart: HotRestart | None = None,
        share_output: bool = False,
    ) -> Sidecar:
        """Start *envoy* from *config*; it is not ready yet.

        Args:
            concurrency: Worker threads. One connection is served by one of them.
            flush_ms: How often access logs are written, in milliseconds.
            options: More arguments for Envoy.
            hot_restart: Take over from the Envoy before, or be ready to be taken over from; None: neither.
            share_output: Access logs go to our own standard output, unread by us.
        """
        argv = [str(envoy), "-c", str(config), "--log-level", "warning", "--log-format", "%l %n %v"]
        argv += ["--concurrency", str(concurrency), "--file-flush-interval-msec", str(flush_ms)]
        argv += ["--drain-time-s", str(REPLACED_SECS), "--drain-strategy", "immediate"]
        argv += hot_restart.arguments if hot_restart else ["--disable-hot-restart"]
        child = await Child.start(name, [*argv, *options], on_line=on_line, share_output=share_output)
        return cls(child, Admin(admin_socket), hot_restart)

    async def wait_ready(self, within_secs: float) -> None:
        """Wait until it serves with live certificates.

        Raises:
            StartError: It ended, or is not ready in time; the text says why.
        """
        reason: str | None = "it has just started"
        try:
            async with asyncio.timeout(within_secs):
                while reason := await self._unready():
                    if self.child.returncode is not None:
                        await self.child.wait()
                        raise StartError(ended(self.child))
                    await self._stop_when_refused()
                    await asyncio.sleep(POLL_SECS)
        except TimeoutError:
            raise StartError(f"{self.child.name} is not ready after {within_secs:g} s: {reason}") from None

    async def _unready(self) -> str | None:
        with contextlib.suppress(AdminError):
            if await self.admin.epoch() != self._epoch:
                return "the one before still answers in its place"
        return await self.admin.unready()

    async def _stop_when_refused(self) -> None:
        refused = None
        with contextlib.suppress(AdminError):
            refused = await self.admin.refused()
        if refused:  # it would go on without them; nothing but another configuration, or a free port, mends it
            raise StartError(f"{self.child.name} refuses its {refused}; its last lines:\n{last_lines(self.child)}")

    async def begin_drain(self) -> None:
        """Fail its health checks and ask callers, connection by connection, to go elsewhere. Calls in flight go on."""
        with contextlib.suppress(AdminError):
            await self.admin.post("/healthcheck/fail")
            await self.admin.post("/drain_listeners?graceful&skip_exit")

    async def wait_idle(self, within_secs: float) -> bool:
        """Wait until no call has been in flight for a moment, *within_secs* at most; return whether that came about."""
        clock = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError, AdminError):
            async with asyncio.timeout(within_secs):
                busy = clock.time()
                # Only the admin interface knows, and it has to be asked.
                while self.child.returncode is None and clock.time() - busy < QUIET_SECS:
                    if await self.admin.active_calls():
                        busy = clock.time()
                    await asyncio.sleep(POLL_SECS)
            return True
        return self.child.returncode is not None

    async def drain(self, within_secs: float) -> bool:
        """Do :meth:`begin_drain`, let callers notice, and wait until no call is in flight; return whether that came about."""
        await self.begin_drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_NOTICE_SECS):
                await self.child.wait()
        with contextlib.suppress(AdminError):
            await self.admin.post("/drain_listeners")  # takes no new connections from here on
        return await self.wait_idle(within_secs)

    async def stop(self, within_secs: float = END_SECS) -> bool:
        """End it now, calls in flight or not; kill it after *within_secs*."""
        return await self.child.stop(within_secs)


def ended(child: Child) -> str:
    """Return the line, and the last lines of output, that tell of *child*'s unexpected end."""
    code = child.returncode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{child.name} {how}; its last lines:\n{last_lines(child)}"


def last_lines(child: Child) -> str:
    """Return the last lines of *child*'s output, one below the other."""
    return "\n".join(f"  {line}" for line in child.tail)
