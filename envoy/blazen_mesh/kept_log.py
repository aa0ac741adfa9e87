"""A sidecar's log in a file beside its configuration, for `blazen-mesh doctor`; bounded."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["LOG_NAME", "KeptLog"]

LOG_NAME = "sidecar.log"
MAX_BYTES = 16 * 1024 * 1024


class KeptLog:
    """The lines of one sidecar. At 16 MiB the file becomes ``sidecar.log.1``, in place of the one before, and begins anew.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOG_NAME
        self._open()

    def write(self, line: str) -> None:
        """Add *line*; it can be read at once."""
        if self._file.tell() > MAX_BYTES:
            self.close()
            self._path.replace(self._path.with_suffix(".log.1"))
            self._open()
        self._file.write(f"{line}\n".encode())

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
