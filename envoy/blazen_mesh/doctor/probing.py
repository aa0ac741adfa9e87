"""What all probes share: how long each may take, how many at once, what time it is, and the logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ParamSpec, TypeVar

from blazen_mesh.doctor.logs import Entry, Logs

__all__ = ["Probing"]

LOG_SECS = 2.0
"""How long the other end's log is waited for: sidecars write theirs every half second."""

_POLL_SECS = 0.1
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass
class Probing:
    """The means of a doctor's visit.

    Attributes:
        now: The time, timezone-aware.
        timeout_secs: How long one probe may take.
        command_secs: How long a command that is started may take.
        token: The environment in which ``blazen-peer`` finds the token; empty without one.
        read_logs: Reads the logs as they are now.
        has_logs: Whether they may grow.
    """

    now: Callable[[], datetime]
    timeout_secs: float
    command_secs: float
    token: Mapping[str, str]
    read_logs: Callable[[], Logs]
    has_logs: bool
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))

    async def in_thread(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a blocking probe, which bounds itself, beside the others."""
        async with self.at_once:
            return await asyncio.to_thread(function, *args, **kwargs)

    async def bounded(self, probe: Awaitable[_T]) -> _T:
        """Await a probe, which bounds itself, when its turn comes."""
        async with self.at_once:
            return await probe

    async def refusal(self, callee: str, local: str) -> Entry | None:
        """Wait a moment for *callee*'s log to tell of the refused connection from *local*; None where it does not."""
        return await self._in_log(lambda logs: logs.refusal(callee, local=local))

    async def refusal_since(self, callee: str, caller: str, since: datetime) -> Entry | None:
        """Wait a moment for *callee*'s log to tell of a refused connection of *caller*; None where it does not."""
        return await self._in_log(lambda logs: logs.refusal_since(callee, caller, since))

    async def _in_log(self, find: Callable[[Logs], Entry | None]) -> Entry | None:
        for _ in range(int(LOG_SECS / _POLL_SECS)):
            logs = await asyncio.to_thread(self.read_logs)
            if (found := find(logs)) is not None or not self.has_logs:
                return found
            await asyncio.sleep(_POLL_SECS)
        return None
