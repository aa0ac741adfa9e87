"""Renewal, revocation and lists in a store, at any time one likes: the clock is an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, CertificateError, Material, StoreError, publish_identity, verify_identity
from blazen_certs import store as layout
from blazen_certs.crl import crl_number, revoked_serials
from blazen_certs.facts import dns_names_of
from blazen_certs.issuing import sign_list
from blazen_certs.publish import read_material
from blazen_certs.renewal import renewal_time
from blazen_certs.upkeep import keep_lists, keep_node, keep_nodes, local_nodes, revoke_node, revoke_serial
from blazen_peer.errors import ValidationError

HOUR = timedelta(hours=1)


def test_not_due_is_left_alone(authority: Authority, now: datetime) -> None:
    """Right after it was issued nothing happens to a node: the same version, the same certificate."""
    issued = authority.issue("analyst", now=now)
    kept = keep_node(authority, "analyst", now=now + timedelta(minutes=1))
    assert (kept.action, kept.version, kept.certificate) == ("kept", 1, issued.certificate)


def test_due_is_renewed_as_it_was_asked_for(authority: Authority, now: datetime) -> None:
    """At its time, and not a second before, a node gets a new key and certificate with its own names and lifetime."""
    issued = authority.issue("analyst", now=now, lifetime=timedelta(hours=3), dns_names=["a.test", "b.test"])
    due = renewal_time(issued.certificate)
    assert keep_node(authority, "analyst", now=due - timedelta(seconds=1)).action == "kept"
    second = due.replace(microsecond=0) + timedelta(seconds=1)  # certificates count in whole seconds
    kept = keep_node(authority, "analyst", now=second)
    assert (kept.action, kept.version) == ("renewed", 2)
    assert kept.certificate is not None
    assert kept.certificate.public_key() != issued.certificate.public_key()
    assert dns_names_of(kept.certificate) == ["a.test", "b.test"]
    assert kept.certificate.not_valid_after_utc == second + timedelta(hours=3)


def test_asked_for_is_renewed(authority: Authority, now: datetime) -> None:
    """Forced, it is renewed though it is not due."""
    authority.issue("analyst", now=now)
    assert keep_node(authority, "analyst", now=now, force=True).action == "renewed"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: (d / "tls.crt").write_text("garbage"), id="garbage"),
        pytest.param(lambda d: (d / "tls.crt").unlink(), id="no-certificate"),
        pytest.param(lambda d: (d / "tls.key").write_bytes(b""), id="empty-key"),
        pytest.param(lambda d: (d / "tls.key").chmod(0o644), id="key-was-open-to-others"),
        pytest.param(lambda d: (d / "bundle.crt").write_bytes((d / "tls.crt").read_bytes()), id="leaf-as-bundle"),
    ],
)
def test_damaged_is_issued_anew(authority: Authority, now: datetime, damage: Callable[[Path], Any]) -> None:
    """Whatever is wrong with a node's files, a new certificate takes its place, with its names; never an older version."""
    authority.issue("analyst", now=now, dns_names=["a.test"])
    issued = authority.issue("analyst", now=now + timedelta(seconds=1), dns_names=["a.test"])
    damage(issued.path / "current")
    kept = keep_node(authority, "analyst", now=now + timedelta(minutes=1))
    assert (kept.action, kept.version) == ("renewed", 3)
    assert kept.certificate is not None
    assert dns_names_of(kept.certificate) == ["a.test"]
    assert verify_identity(issued.path, at=now + timedelta(minutes=1), node_id="analyst", trust=authority.trust()).ok


def test_lists_are_signed_every_six_hours_and_brought_to_nodes(authority: Authority, now: datetime) -> None:
    """A list is signed again once it is six hours old, with a higher number; a node then gets it beside its own certificate."""
    issued = authority.issue("analyst", now=now, lifetime=timedelta(days=2))
    assert keep_lists(authority, now=now + 6 * HOUR - timedelta(seconds=1)) == []
    first = crl_number(authority.trust().issuer().crl)
    assert len(keep_lists(authority, now=now + 6 * HOUR)) == 1
    assert crl_number(authority.trust().issuer().crl) == first + 1
    kept = keep_node(authority, "analyst", now=now + 6 * HOUR)
    assert (kept.action, kept.version, kept.certificate) == ("republished", 2, issued.certificate)
    assert issued.crl_path.read_bytes() == authority.trust().crl_pem
    assert issued.key_path.read_bytes() == (issued.path / "v1" / "tls.key").read_bytes()


def test_keeping_a_node_signs_the_lists_that_it_needs(authority: Authority, now: datetime) -> None:
    """Nobody is given a list that ends soon: whoever is due gets fresh ones too."""
    authority.issue("analyst", now=now)
    keep_node(authority, "analyst", now=now + 20 * HOUR)
    report = verify_identity(authority.directory / "nodes/analyst", at=now + 40 * HOUR, node_id="analyst")
    assert "lists" not in [check.name for check in report.checks if not check.ok]


def test_revoked_node_is_on_the_list_everywhere(authority: Authority, now: datetime) -> None:
    """Every certificate of the node that is still good is revoked, the older ones too, and every node has the list at once."""
    old, new = (authority.issue("analyst", now=now + step * HOUR) for step in range(2))
    bystander = authority.issue("gpu", now=now)
    done = revoke_node(authority, "analyst", now=now + 2 * HOUR)
    serials = {old.certificate.serial_number, new.certificate.serial_number}
    assert {certificate.serial_number for certificate in done.revoked} == serials
    assert set(revoked_serials(authority.trust().issuer().crl)) == serials
    assert bystander.crl_path.read_bytes() == new.crl_path.read_bytes() == authority.trust().crl_pem
    assert [kept.action for kept in done.published] == ["revoked", "republished"]


def test_revoked_node_stays_out_until_it_is_issued_again(authority: Authority, now: datetime) -> None:
    """It is not renewed when due, nor when asked; ``issue`` lets it in, and what was revoked stays so."""
    authority.issue("analyst", now=now)
    revoke_node(authority, "analyst", now=now)
    for moment in (now, now + 20 * HOUR, now + 30 * HOUR, now + timedelta(days=10)):
        assert keep_node(authority, "analyst", now=moment, force=True).action == "revoked"
    back = authority.issue("analyst", now=now + timedelta(days=10))
    assert keep_node(authority, "analyst", now=now + timedelta(days=10)).action == "kept"
    assert not authority.is_revoked(back.certificate)
    assert len(revoked_serials(authority.trust().issuer().crl)) == 1


def test_revoking_again_changes_nothing(authority: Authority, now: datetime) -> None:
    """What is on the list keeps the time since which it is."""
    authority.issue("analyst", now=now)
    revoke_node(authority, "analyst", now=now + HOUR)
    before = revoked_serials(authority.trust().issuer().crl)
    done = revoke_node(authority, "analyst", now=now + 2 * HOUR)
    assert (done.revoked, len(done.already)) == ((), 1)
    assert revoked_serials(authority.trust().issuer().crl) == before


def test_what_waits_for_a_revocation_sees_it(authority: Authority, now: datetime) -> None:
    """Who keeps nodes while another command revokes renews no revoked node, and brings nobody the lists from before."""
    issued = {node: authority.issue(node, now=now).certificate for node in ("analyst", "gpu")}
    due = max(map(renewal_time, issued.values())) + timedelta(seconds=1)
    records = [layout.issued_directory(authority.directory, node) for node in issued]
    with ThreadPoolExecutor(2) as threads:
        with layout.locked(records[0]), layout.locked(records[1]):
            waiting = [threads.submit(keep_node, authority, node, now=due) for node in issued]
            deadline = time.monotonic() + 30
            while any(_open_here(record) < 2 for record in records):  # ours, and that of who waits for the lock
                assert time.monotonic() < deadline
                time.sleep(0.01)
            sign_list(authority.trust().issuer(), now=due, revoke={issued["analyst"].serial_number: due})
        analyst, gpu = (task.result() for task in waiting)
    assert (analyst.action, gpu.action) == ("revoked", "renewed")
    for node in issued:
        path = layout.node_directory(authority.directory, node)
        assert read_material(path).crl_pem == authority.trust().crl_pem


def _open_here(directory: Path) -> int:
    """Return how many of this process's descriptors are open on *directory*."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += descriptor.readlink() == directory.resolve()
    return found


def test_one_certificate_by_its_serial(authority: Authority, now: datetime) -> None:
    """The one is revoked, the node's other one lives on."""
    stolen = authority.issue("analyst", now=now).certificate
    kept = authority.issue("analyst", now=now).certificate
    revoke_serial(authority, stolen.serial_number, now=now)
    assert authority.is_revoked(stolen)
    assert not authority.is_revoked(kept)
    assert keep_node(authority, "analyst", now=now).action == "kept"
    with pytest.raises(StoreError, match="no certificate 1f was issued"):
        revoke_serial(authority, 0x1F, now=now)


def test_a_revocation_by_serial_waits_for_who_renews(authority: Authority, now: datetime) -> None:
    """While the node's record is held, as a renewal does, its certificate is put on no list: one comes after the other."""
    stolen = authority.issue("analyst", now=now).certificate
    record = layout.issued_directory(authority.directory, "analyst")
    with ThreadPoolExecutor(1) as threads:
        with layout.locked(record):
            waiting = threads.submit(revoke_serial, authority, stolen.serial_number, now=now)
            deadline = time.monotonic() + 30
            while _open_here(record) < 2 and not waiting.done():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not authority.is_revoked(stolen)
        assert waiting.result().revoked == (stolen,)
    assert authority.is_revoked(stolen)


def test_unknown_node_cannot_be_revoked(authority: Authority, now: datetime) -> None:
    """A slip of the pen revokes nobody, and is said."""
    with pytest.raises(StoreError, match="nothing was ever issued to analist"):
        revoke_node(authority, "analist", now=now)


def test_failure_at_one_node_does_not_keep_the_others(authority: Authority, now: datetime) -> None:
    """A node that is not there is said to have failed; the next one is renewed."""
    for node in ("a", "b"):
        authority.issue(node, now=now)
    done = {kept.node: kept.action for kept in keep_nodes(authority, ["a", "missing", "b"], now=now, force=True)}
    assert done == {"a": "renewed", "missing": "failed", "b": "renewed"}


def test_nothing_unchecked_is_published(authority: Authority, now: datetime) -> None:
    """Another node's key, a foreign bundle, a list of nobody's, an ended list: each is refused, and what was current stays."""
    analyst, gpu = authority.issue("analyst", now=now), authority.issue("gpu", now=now)
    other = Authority.create(authority.directory.parent / "other", "mesh.test", now=now)
    right = read_material(analyst.path)
    wrong = {
        "key": Material(right.chain_pem, gpu.key_path.read_bytes(), right.bundle_pem, right.crl_pem),
        "chain": Material(right.chain_pem, right.key_pem, other.trust().bundle_pem, right.crl_pem),
        "lists": Material(right.chain_pem, right.key_pem, right.bundle_pem, other.trust().crl_pem),
        "name": Material(gpu.certificate_path.read_bytes(), gpu.key_path.read_bytes(), right.bundle_pem, right.crl_pem),
    }
    for name, material in wrong.items():
        with pytest.raises(CertificateError, match=name):
            publish_identity(analyst.path, material, node_id="analyst", trust_domain="mesh.test", now=now)
    long = authority.issue("long", now=now, lifetime=timedelta(days=9)).path
    with pytest.raises(CertificateError, match=r"lists: .* ended"):
        publish_identity(long, read_material(long), node_id="long", trust_domain=None, now=now + 25 * HOUR)
    assert layout.current_version(analyst.path) == 1


def test_local_nodes_are_those_with_an_identity(authority: Authority, now: datetime) -> None:
    """A node to which something was only signed, elsewhere, is not one of this store's."""
    issued = authority.issue("here", now=now)
    authority.sign("elsewhere", issued.certificate.public_key(), now=now)
    assert local_nodes(authority) == ["here"]


def test_node_belongs_to_one_region(store: Path, now: datetime) -> None:
    """A name that was issued in one region is refused in another; renewed, it stays in its own."""
    authority = Authority.create(store, "mesh.test", regions=["eu", "us"], now=now)
    assert str(authority.issue("analyst", region="eu", now=now).peer) == "spiffe://eu.mesh.test/peer/analyst"
    assert str(authority.issue("analyst", now=now).peer) == "spiffe://eu.mesh.test/peer/analyst"
    with pytest.raises(ValidationError, match="analyst is of region eu"):
        authority.issue("analyst", region="us", now=now)
    with pytest.raises(ValidationError, match="say which, with --region"):
        authority.issue("gpu", now=now)
    with pytest.raises(ValidationError, match="there is no region 'asia'"):
        authority.issue("gpu", region="asia", now=now)


def test_region_without_its_key_is_issued_elsewhere(store: Path, now: datetime) -> None:
    """Where only one region's key is, only its nodes are issued; the other's list is still handed on."""
    authority = Authority.create(store, "mesh.test", regions=["eu", "us"], now=now)
    (store / "issuing/us/v1/ca.key").unlink()
    authority = Authority.open(store)
    identity = authority.issue("analyst", region="eu", now=now)
    assert len(read_material(identity.path).crl_pem.split(b"BEGIN")) == 3
    with pytest.raises(StoreError, match="issue on the machine that has it"):
        authority.issue("gpu", region="us", now=now)
    with pytest.raises(CertificateError, match=r"lists: that of CN=issuing us .* ended"):
        authority.issue("analyst", now=now + 25 * HOUR)
