"""The files: their modes, the one-step change, and that nobody ever sees a half."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from blazen_certs import Authority, StoreError
from blazen_certs.facts import public_key_sha256
from blazen_certs.pem import load_certificate, load_private_key, read_pem_file
from blazen_certs.store import create_directory_whole, publish_version


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    """Nothing is taken from the modes that the code itself asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes_do_not_depend_on_the_umask(store: Path, now: datetime) -> None:
    """Directories 0700, keys 0600, the rest 0644, even where the umask takes nothing away."""
    authority = Authority.create(store, "mesh.test", now=now)
    node = authority.issue("analyst", now=now).path
    for directory in (
        store,
        store / "root/v1",
        store / "issuing/mesh/v1",
        store / "issued/analyst",
        store / "nodes",
        node,
        node / "v1",
    ):
        assert mode_of(directory) == 0o700, directory
    for key in (store / "root/v1/root.key", store / "issuing/mesh/v1/ca.key", node / "v1/tls.key"):
        assert mode_of(key) == 0o600, key
    for public in (store / "root/v1/root.crt", node / "v1/tls.crt", node / "v1/bundle.crt", node / "v1/crl.pem"):
        assert mode_of(public) == 0o644, public


@pytest.mark.usefixtures("umask")
def test_key_has_its_mode_from_the_first_byte(store: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is created with 0600 and its mode never changed: there is no moment in which others may open it."""
    created: dict[str, int] = {}
    real_open, changed = os.open, []

    def spy(path: str | Path, flags: int, mode: int = 0o777, **rest: int) -> int:
        descriptor = real_open(path, flags, mode, **rest)
        if flags & os.O_CREAT:
            created[Path(path).name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, lambda *arguments, **_: changed.append(arguments))
    Authority.create(store, "mesh.test", now=now).issue("analyst", now=now)
    assert created["root.key"] == created["ca.key"] == created["tls.key"] == 0o600
    assert changed == []


def test_current_is_a_relative_link(authority: Authority, now: datetime) -> None:
    """``current`` points at ``v1`` without a path, so that the directory may be mounted anywhere."""
    node = authority.issue("analyst", now=now).path
    assert (node / "current").readlink() == Path("v1")
    assert sorted(path.name for path in node.iterdir()) == ["current", "v1"]
    assert sorted(path.name for path in (node / "current").iterdir()) == ["bundle.crt", "crl.pem", "tls.crt", "tls.key"]


def test_old_versions_are_bounded(authority: Authority, now: datetime) -> None:
    """After six issues there are the current one and the two before it."""
    for _ in range(6):
        identity = authority.issue("analyst", now=now)
    assert identity.version == 6
    assert sorted(path.name for path in identity.path.iterdir()) == ["current", "v4", "v5", "v6"]
    assert (identity.path / "current").readlink() == Path("v6")


def test_reader_never_sees_a_half(authority: Authority, now: datetime) -> None:
    """One who opens ``current`` while at least 30 identities follow each other always finds a certificate with its own key."""
    node = authority.issue("analyst", now=now).path
    done = threading.Event()
    seen: set[int] = set()
    problems: list[str] = []

    def read() -> None:
        while not done.is_set():
            descriptor = os.open(node / "current", os.O_RDONLY | os.O_DIRECTORY)  # as a sidecar: one look at the link
            try:
                home = Path(f"/proc/self/fd/{descriptor}")
                certificate = load_certificate(read_pem_file(home / "tls.crt")[0])
                key = load_private_key(read_pem_file(home / "tls.key")[0])
            except FileNotFoundError:
                continue  # three versions went by between the look and the read
            finally:
                os.close(descriptor)
            seen.add(certificate.serial_number)
            if public_key_sha256(certificate.public_key()) != public_key_sha256(key.public_key()):
                problems.append("key and certificate differ")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        deadline = time.monotonic() + 30
        issued = 0
        while issued < 30 or (len(seen) < 3 and time.monotonic() < deadline):  # on a busy machine the reader is slow to begin
            authority.issue("analyst", now=now)
            issued += 1
    finally:
        done.set()
        reader.join(10)
    assert problems == []
    assert len(seen) >= 3


def test_issuers_of_one_node_take_turns(authority: Authority, now: datetime) -> None:
    """Four that issue for one node at once make four versions, and leave nothing unfinished."""
    versions: list[int] = []
    threads = [threading.Thread(target=lambda: versions.append(authority.issue("analyst", now=now).version)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(versions) == [1, 2, 3, 4]
    node = authority.directory / "nodes" / "analyst"
    assert sorted(path.name for path in node.iterdir()) == ["current", "v2", "v3", "v4"]


def test_failed_write_leaves_what_was(authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle of a publication leaves the old identity current, and no rest."""
    node = authority.issue("analyst", now=now).path
    before = (node / "current" / "tls.crt").read_bytes()
    calls = 0

    def failing(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # past the two of the record
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="No space left"):
            authority.issue("analyst", now=now)
    assert sorted(path.name for path in node.iterdir()) == ["current", "v1"]
    assert (node / "current" / "tls.crt").read_bytes() == before


def test_rests_of_a_dead_process_are_removed(authority: Authority, now: datetime) -> None:
    """What a killed issuer left, a directory or a link, is gone after the next issue, whose number is free."""
    node = authority.issue("analyst", now=now).path
    (node / ".unfinished-1-2").mkdir()
    (node / ".unfinished-1-2" / "tls.key").write_text("half")
    (node / ".unfinished-current").symlink_to("v9")
    (node / "v2").mkdir()  # renamed already, not yet linked
    assert authority.issue("analyst", now=now).version == 3
    assert sorted(path.name for path in node.iterdir()) == ["current", "v1", "v2", "v3"]


def test_failed_creation_leaves_nothing(store: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA of which the disk took only a part is not there at all, and can be made afterwards."""

    def failing(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="No space left"):
            Authority.create(store, "mesh.test", now=now)
    assert not store.exists()
    Authority.create(store, "mesh.test", now=now)


def test_directory_that_exists_is_never_replaced(tmp_path: Path) -> None:
    """Of two that make the same directory at once, the second is refused and leaves no rest."""
    create_directory_whole(tmp_path / "ca", {"ca.crt": b"first"})
    with pytest.raises(StoreError, match="exists already"):
        create_directory_whole(tmp_path / "ca", {"ca.crt": b"second"})
    assert (tmp_path / "ca" / "ca.crt").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_file_that_is_there_is_never_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key goes into a file that this process made itself: one that somebody put in its place is refused, not filled."""
    real_mkdir = Path.mkdir

    def planting(self: Path, *arguments: int, **rest: bool) -> None:
        real_mkdir(self, *arguments, **rest)
        if self.name.startswith(".unfinished-"):
            (self / "ca.key").touch(mode=0o666)

    monkeypatch.setattr(Path, "mkdir", planting)
    with pytest.raises(FileExistsError):
        create_directory_whole(tmp_path / "ca", {"ca.key": b"secret"})
    assert list(tmp_path.iterdir()) == []


def test_foreign_names_are_left_alone(tmp_path: Path) -> None:
    """A CRL or a note that somebody put beside the versions stays, and is taken for no version."""
    for name in ("v0", "v01", "vx", "notes"):
        (tmp_path / "node" / name).mkdir(parents=True)
    for _ in range(5):
        publish_version(tmp_path / "node", {"tls.crt": b"x"})
    assert {path.name for path in (tmp_path / "node").iterdir()} == {
        "v0", "v01", "vx", "notes", "v3", "v4", "v5", "current",
    }  # fmt: skip
