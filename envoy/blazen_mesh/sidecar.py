"""One running Envoy: started, truly ready, drained in the order that loses no call, ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.child import Child, OnLine
from blazen_peer.errors import BlazenError

__all__ = ["Sidecar", "StartError"]

POLL_SECS = 0.05
END_SECS = 5.0


class StartError(BlazenError):
    """A process of the mesh did not start, or ended by itself; the text holds its last lines."""

    kind = "Start"


class Sidecar:
    """An Envoy process and its admin interface."""

    def __init__(self, child: Child, admin: Admin) -> None:
        self.child, self.admin = child, admin

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
    ) -> Sidecar:
        """Start *envoy* from *config*; it is not ready yet.

        Args:
            concurrency: Worker threads. One connection is served by one of them.
            flush_ms: How often access logs are written, in milliseconds.
            options: More arguments for Envoy.
        """
        argv = [str(envoy), "-c", str(config), "--disable-hot-restart", "--log-level", "warning", "--log-format", "%l %n %v"]
        argv += ["--concurrency", str(concurrency), "--file-flush-interval-msec", str(flush_ms), *options]
        return cls(await Child.start(name, argv, on_line=on_line), Admin(admin_socket))

    async def wait_ready(self, within_secs: float) -> None:
        """Wait until it serves with live certificates.

        Raises:
            StartError: It ended, or is not ready in time; the text says why.
        """
        reason: str | None = "it has just started"
        try:
            async with asyncio.timeout(within_secs):
                while reason := await self.admin.unready():
                    if self.child.returncode is not None:
                        await self.child.wait()
                        raise StartError(ended(self.child))
                    await asyncio.sleep(POLL_SECS)
        except TimeoutError:
            raise StartError(f"{self.child.name} is not ready after {within_secs:g} s: {reason}") from None

    async def begin_drain(self) -> None:
        """Fail its health checks and ask callers, connection by connection, to go elsewhere. Calls in flight go on."""
        with contextlib.suppress(AdminError):
            await self.admin.post("/healthcheck/fail")
            await self.admin.post("/drain_listeners?graceful&skip_exit")

    async def wait_idle(self, within_secs: float) -> bool:
        """Wait until no call is in flight, for *within_secs* at most; return whether that came about."""
        with contextlib.suppress(TimeoutError, AdminError):
            async with asyncio.timeout(within_secs):
                # Only the admin interface knows, and it has to be asked.
                while self.child.returncode is None and await self.admin.active_calls():  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECS)
            return True
        return self.child.returncode is not None

    async def stop(self, within_secs: float = END_SECS) -> bool:
        """End it now, calls in flight or not; kill it after *within_secs*."""
        return await self.child.stop(within_secs)


def ended(child: Child) -> str:
    """Return the line, and the last lines of output, that tell of *child*'s unexpected end."""
    code = child.returncode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return "\n".join([f"{child.name} {how}; its last lines:", *(f"  {line}" for line in child.tail)])
