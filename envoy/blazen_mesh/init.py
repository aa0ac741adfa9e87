"""Being process 1 of a container: somebody has to take the orphans in, and to hand signals on."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["run_as_init"]

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_as_init() -> None:
    """As process 1, go on in a child, hand signals on to it, reap every orphan, and end as it does. Otherwise do nothing.

    A process of its own, since whoever reaps all children takes the ends of those that the supervisor waits for away from it.
    """
    if os.getpid() != 1:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)  # none may come before the handler is there
    child = os.fork()
    if child:
        for signum in _HANDED_ON:
            signal.signal(signum, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
    if child:
        sys.exit(_reap_until(child))


def _reap_until(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
