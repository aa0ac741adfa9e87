"""The store: a directory of identities on disk, of which a reader never sees a half.

    root/v1/{root.crt,root.key}                    a trusted root; its key may live elsewhere
    root/current -> v1                             the root that issuing CAs come from
    issuing/<region>/v1/{ca.crt,ca.key,crl.pem}    an issuing CA and its revocation list; ``mesh`` where there are no regions
    issuing/<region>/current -> v1                 the one that issues
    issued/<node>/<serial>.crt                     what was issued to a node: without it, nobody could revoke it by name
    nodes/<node>/v1/{tls.crt,tls.key,bundle.crt,crl.pem}   an identity, never changed once there
    nodes/<node>/current -> v1                     which one counts; sidecars watch nodes/<node> for this link's being replaced

Everything is written under another name, forced to disk, and renamed. Directories have mode 0700, keys 0600 from their first
byte, the rest 0644 less the umask.
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
    "CRL",
    "CURRENT",
    "KEPT_VERSIONS",
    "KEY",
    "ROOT_CERTIFICATE",
    "ROOT_KEY",
    "create_directory_whole",
    "current_version",
    "issued_directory",
    "issuing_directory",
    "locked",
    "make_current",
    "node_directory",
    "publish_version",
    "remove_version",
    "replace_file",
    "root_directory",
    "versions",
    "write_version",
]

ROOT_KEY, ROOT_CERTIFICATE = "root.key", "root.crt"
CA_KEY, CA_CERTIFICATE = "ca.key", "ca.crt"
CERTIFICATE, KEY, BUNDLE, CRL = "tls.crt", "tls.key", "bundle.crt", "crl.pem"
CURRENT = "current"
KEPT_VERSIONS = 2  # besides the current one

_SECRET = frozenset({ROOT_KEY, CA_KEY, KEY})
_UNFINISHED = ".unfinished-"
_VERSION = re.compile(r"v([1-9][0-9]{0,8})", re.ASCII)
_LOCK_SECS = 10.0


def root_directory(store: Path) -> Path:
    """Return where the store's trusted roots are."""
    return store / "root"


def issuing_directory(store: Path, region: str) -> Path:
    """Return where a region's issuing CAs are."""
    return store / "issuing" / region


def issued_directory(store: Path, node_id: str) -> Path:
    """Return where the record of what was issued to a node is."""
    return store / "issued" / node_id


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


def versions(directory: Path) -> list[int]:
    """Return the numbers of the versions under *directory*, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(match[1]) for path in directory.iterdir() if (match := _VERSION.fullmatch(path.name)))


def current_version(directory: Path) -> int | None:
    """Return the number of the version that counts, or None where there is none."""
    link = directory / CURRENT
    match = _VERSION.fullmatch(link.readlink().name) if link.is_symlink() else None
    return None if match is None else int(match[1])


def publish_version(directory: Path, files: Mapping[str, bytes]) -> int:
    """Write *files* as the next version under *directory*, make it current in one step, and return its number.

    Versions older than the last ``KEPT_VERSIONS`` before it are removed.

    Raises:
        StoreError: Another process has been publishing here for 10 seconds.
        OSError: The disk, or the rights, do not allow it; what was current still is.
    """
    _make_private(directory.parent)
    _make_private(directory)
    with locked(directory):
        earlier = versions(directory)
        number = _write_next(directory, files)
        _point_current(directory, number)
        for old in earlier[:-KEPT_VERSIONS]:
            shutil.rmtree(directory / f"v{old}", ignore_errors=True)  # published is published; the next one tries again
        return number


def write_version(directory: Path, files: Mapping[str, bytes]) -> int:
    """Write *files* as the next version under *directory*, which is not current yet; return its number. Raises as above."""
    _make_private(directory.parent)
    _make_private(directory)
    with locked(directory):
        return _write_next(directory, files)


def make_current(directory: Path, number: int) -> None:
    """Make the version *number* the one that counts, in one step. Raises as ``publish_version``."""
    with locked(directory):
        _point_current(directory, number)


def remove_version(directory: Path, number: int) -> None:
    """Remove a version, in one step as a reader sees it. Raises as ``publish_version``."""
    with locked(directory):
        gone = directory / f"{_UNFINISHED}v{number}"
        (directory / f"v{number}").rename(gone)
        _sync_directory(directory)
        shutil.rmtree(gone, ignore_errors=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write *data* as *path*, in one step as a reader sees it; the directory is made where it is not there.

    Raises:
        OSError: The disk, or the rights, do not allow it; what was there still is.
    """
    _make_private(path.parent.parent)
    _make_private(path.parent)
    unfinished = path.parent / f"{_UNFINISHED}{os.getpid()}-{time.monotonic_ns()}"
    try:
        _write_file(unfinished, data, 0o600 if path.name in _SECRET else 0o644)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _write_next(directory: Path, files: Mapping[str, bytes]) -> int:
    for leftover in directory.glob(f"{_UNFINISHED}*"):  # of a process that died
        leftover.unlink() if leftover.is_symlink() or leftover.is_file() else shutil.rmtree(leftover)
    number = max(versions(directory), default=0) + 1
    unfinished = _write_unfinished(directory, files)
    unfinished.rename(directory / f"v{number}")
    _sync_directory(directory)
    return number


def _point_current(directory: Path, number: int) -> None:
    link = directory / f"{_UNFINISHED}{CURRENT}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"v{number}")
    link.rename(directory / CURRENT)
    _sync_directory(directory)


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
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's advisory lock: two processes that write into it take turns.

    Raises:
        StoreError: Another process has held it for 10 seconds.
    """
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
