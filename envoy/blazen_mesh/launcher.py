"""Become another program that the kernel kills as soon as the parent is gone: ``launcher.py PARENT_PID PROGRAM...``.

Run by path, a program of its own rather than ``preexec_fn``, which must not run in a process that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):  # it died before we asked
        sys.exit(1)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - a fixed argument list, no shell
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
