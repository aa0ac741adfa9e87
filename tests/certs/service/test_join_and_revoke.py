"""A node that joins while somebody revokes it: one comes after the other, whatever the moment."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority, store
from blazen_certs.codes import CodeBook, JoinCode
from blazen_certs.errors import CodeError, StoreError
from blazen_certs.issued import known_nodes, read_issued
from blazen_certs.service_issuer import Caller, ServiceIssuer
from blazen_certs.upkeep import revoke_node
from blazen_peer.identity import PeerId

PEER = PeerId("mesh.test", "analyst")
WAIT_SECS = 30


class Slow(Authority):
    """An authority that signs when it is let, and says when it is about to."""

    about_to, let = threading.Event(), threading.Event()

    def sign(self, *arguments: Any, **options: Any) -> Any:
        self.about_to.set()
        assert self.let.wait(WAIT_SECS)
        return super().sign(*arguments, **options)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    """A new authority of mesh.test."""
    Slow.about_to, Slow.let = threading.Event(), threading.Event()
    Authority.create(tmp_path / "ca", "mesh.test")
    return Slow(tmp_path / "ca", "mesh.test")


def join(authority: Authority, code: JoinCode, secret: str | None = None) -> dict[str, Any]:
    issuer = ServiceIssuer(authority, lifetime=timedelta(hours=1), log=lambda _: None)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return issuer.join(code.id, secret or code.secret, PEER, key, Caller("127.0.0.1"))


def test_a_first_certificate_is_not_missed(slow: Slow) -> None:
    """A node without any certificate whose code was just used up is revoked once it has its first one."""
    code = CodeBook.of(slow.directory).make(PEER, slow.trust().root.certificate)
    record = store.issued_directory(slow.directory, "analyst")
    with ThreadPoolExecutor(2) as threads:
        joining = threads.submit(join, slow, code)
        assert slow.about_to.wait(WAIT_SECS)
        revoking = threads.submit(revoke_node, slow, "analyst", now=datetime.now(UTC))
        deadline = time.monotonic() + WAIT_SECS
        while _open_here(record) < 2 and not revoking.done():  # the joining one's, and that of who waits for the lock
            assert time.monotonic() < deadline
            time.sleep(0.01)
        slow.let.set()
        assert joining.result()["certificate"]
        (revoked,) = revoking.result().revoked
    assert read_issued(slow.directory, "analyst") == [revoked]
    assert slow.is_revoked(revoked)


def test_who_holds_no_code_leaves_nothing(slow: Slow) -> None:
    """A refused caller makes no record in the store, and its failure counts once."""
    code = CodeBook.of(slow.directory).make(PEER, slow.trust().root.certificate)
    with pytest.raises(CodeError, match="the code is not accepted"):
        join(slow, code, "A" * 27)
    assert not store.issued_directory(slow.directory, "analyst").exists()
    assert '"failures": 1' in (slow.directory / "codes" / f"{code.id}.json").read_text()


def test_a_record_that_stays_empty_is_no_node(slow: Slow) -> None:
    """Where a join fails after its code was looked at, no node appears in ``status``, and a new code is good."""
    book = CodeBook.of(slow.directory)
    code = book.make(PEER, slow.trust().root.certificate)
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(join, slow, code)
        assert slow.about_to.wait(WAIT_SECS)
        key = next((slow.directory / "issuing").rglob("ca.key"))
        key.rename(key.with_suffix(".away"))
        slow.let.set()
        with pytest.raises(StoreError):
            joining.result()
    assert known_nodes(slow.directory) == []
    key.with_suffix(".away").rename(key)
    assert join(slow, book.make(PEER, slow.trust().root.certificate))["certificate"]
    assert known_nodes(slow.directory) == ["analyst"]


def _open_here(directory: Path) -> int:
    """Return how many of this process's descriptors are open on *directory*."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += descriptor.readlink() == directory.resolve()
    return found
