"""Which TCP ports a process listens on, and how many connections it has taken on them (proc_pid_fd(5), proc_net(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path

__all__ = ["accepted", "listening"]

ESTABLISHED, LISTEN = "01", "0A"


def listening(pid: int) -> frozenset[int]:
    """Return the ports that process *pid* listens on; none when it is gone."""
    return frozenset(port for port, state in _sockets(pid) if state == LISTEN)


def accepted(pid: int, ports: Set[int]) -> int:
    """Return how many connections process *pid* has whose own end is one of *ports*."""
    return sum(port in ports for port, state in _sockets(pid) if state == ESTABLISHED)


def _sockets(pid: int) -> Iterator[tuple[int, str]]:
    inodes = set()
    with suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                inodes.add(Path(descriptor.path).readlink().name.removeprefix("socket:[").rstrip("]"))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if rest[5] in inodes:
                    yield int(local.rpartition(":")[2], 16), state
