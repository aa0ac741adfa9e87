"""Session refs of runs that no server runs: one table for all of a process, without leases."""

from __future__ import annotations

import time
from typing import Final
from uuid import uuid4

from blazen_peer.config import ServerSettings
from blazen_peer.runtime.refs import RefTable

__all__ = ["LOCAL_REFS", "epoch_ms", "local_table"]


def epoch_ms() -> int:
    """Return the milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def local_table() -> RefTable:
    """Return a table within a server's default limits. Its refs have no lease: their caller is this process itself."""
    return RefTable(ServerSettings(), clock=time.monotonic, epoch_ms=epoch_ms, new_uuid=uuid4, leases=False)


LOCAL_REFS: Final = local_table()
