"""The store: a directory of identities on disk, of which a reader never sees a half.

    ca/ca.key  ca/ca.crt                           the authority; on one machine only
    nodes/<node>/v1/{tls.crt,tls.key,bundle.crt}   an identity, never changed once there
    nodes/<node>/current -> v1                     which one counts; sidecars watch nodes/<node> for this link's being replaced

Everything is written into a directory of another name, forced to disk, and renamed. Directories have mode 0700, keys 0600 from
their first byte, the rest 0644 less the umask.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from blazen_certs.errors import StoreError

__all__ = [
    "BUNDLE",
    "CA_CERTIFICATE",
    "CA_KEY",
    "CERTIFICATE",
    "CURRENT",
    "KEPT_VERSIONS",
    "KEY",
    "ca_directory",
    "create_directory_whole",
    "node_directory",
    "publish_version",
]

CA_KEY, CA_CERTIFICATE = "ca.key", "ca.crt"
CERTIFICATE, KEY, BUNDLE = "tls.crt", "tls.key", "bundle.crt"
CURRENT = "current"
KEPT_VERSIONS = 2  # besides the current one

_SECRET = frozenset({CA_KEY, KEY})
_UNFINISHED = ".unfinished-"
_VERSION = re.compile(r"v([1-9][0-9]{0,8})", re.ASCII)
_LOCK_SECS = 10.0


def ca_directory(store: Path) -> Path:
    """Return where the store's authority lives."""
    return store / "ca"


def node_directory(store: Path, node_id: str) -> Path:
    """Return where a node's identity lives: the directory that its sidecar watches."""
    return store / "nodes" / node_id


def create_directory_whole(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make *directory* with *files* in it, all or nothing.

    Raises:
        StoreError: It exists already, and is not empty.
        OSError: The disk, or the rights, do not allow it.
    """
    _make_private(directory.parent)
    unfinished = _write_unfinished(directory.parent, files)
    try:
        unfinished.rename(directory)  # replaces an empty directory at most
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if directory.exists():
            raise StoreError(f"{directory} exists already") from error
        raise
    _sync_directory(directory.parent)


def publish_version(directory: Path, files: Mapping[str, bytes]) -> int:
    """Write *files* as the next version under *directory*, make it current in one step, and return its number.

    Versions older than the last ``KEPT_VERSIONS`` before it are removed.

    Raises:
        StoreError: Another process has been publishing here for 10 seconds.
        OSError: The disk, or the rights, do not allow it; what was current still is.
    """
    _make_private(directory.parent)
    _make_private(directory)
    with _locked(directory):
        for leftover in directory.glob(f"{_UNFINISHED}*"):  # of a process that died
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
        earlier = sorted(int(match[1]) for path in directory.iterdir() if (match := _VERSION.fullmatch(path.name)))
        number = earlier[-1] + 1 if earlier else 1
        unfinished = _write_unfinished(directory, files)
        unfinished.rename(directory / f"v{number}")
        _sync_directory(directory)
        link = directory / f"{_UNFINISHED}{CURRENT}"
        link.symlink_to(f"v{number}")
        link.rename(directory / CURRENT)
        _sync_directory(directory)
        for old in earlier[:-KEPT_VERSIONS]:
            shutil.rmtree(directory / f"v{old}", ignore_errors=True)  # published is published; the next one tries again
        return number


def _write_unfinished(parent: Path, files: Mapping[str, bytes]) -> Path:
    unfinished = parent / f"{_UNFINISHED}{os.getpid()}-{time.monotonic_ns()}"
    unfinished.mkdir(mode=0o700)
    try:
        for name, data in files.items():
            _write_file(unfinished / name, data, 0o600 if name in _SECRET else 0o644)
        _sync_directory(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return unfinished


def _write_file(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_private(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's advisory lock: two processes that issue for one node take turns."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreError(f"another process is writing into {directory}; try again when it is done") from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
