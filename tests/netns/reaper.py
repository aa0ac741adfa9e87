"""Removes the network namespaces of one run: ``reaper.py PREFIX`` waits until its standard input ends, however its parent did.

A program of its own, in a session of its own, so that a test run that was killed leaves nothing behind either. It ends every
process in the namespaces whose names begin with PREFIX, and removes them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

END_SECS = 10.0
NAMESPACES = Path("/run/netns")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False).stdout


def main(prefix: str) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.buffer.read()
    for name in sorted(path.name for path in NAMESPACES.glob(f"{prefix}*")):
        until = time.monotonic() + END_SECS
        while (running := ip("netns", "pids", name).split()) and time.monotonic() < until:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
        ip("netns", "del", name)


if __name__ == "__main__":
    main(sys.argv[1])
