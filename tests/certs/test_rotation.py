"""The root's replacement: what each phase leaves, and what keeps the next one from beginning."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from blazen_certs import Authority, RootKeys, StoreError, verify_identity
from blazen_certs.issued import note_shown, read_issued
from blazen_certs.issuing_renewal import coming_issuer, keep_issuing
from blazen_certs.rotation import advance_rotation, read_rotation
from blazen_certs.upkeep import keep_lists, keep_node, revoke_node

MINUTE = timedelta(minutes=1)


@pytest.fixture
def nodes(authority: Authority, now: datetime) -> tuple[str, ...]:
    """Two nodes of the store."""
    for node in ("analyst", "gpu"):
        authority.issue(node, now=now)
    return "analyst", "gpu"


def valid(authority: Authority, node: str, at: datetime) -> bool:
    return verify_identity(authority.directory / "nodes" / node, at=at, node_id=node, trust=authority.trust()).ok


def test_three_phases(authority: Authority, nodes: tuple[str, ...], now: datetime) -> None:
    """Trust both, issue from the new, drop the old: in each, every node is valid, and any two of them trust each other."""
    first = authority.trust().root.certificate
    seen = []
    for _ in range(3):
        step = advance_rotation(authority, now=now)
        assert step.advanced
        assert all(valid(authority, node, now) for node in nodes)
        trust = authority.trust()
        leaf = authority.directory / "nodes/gpu/current"
        seen.append((step.after.phase, [root.generation for root in trust.roots], trust.issuer().generation))
        assert (leaf / "bundle.crt").read_bytes() == trust.bundle_pem
    assert seen == [("trust-both", [1, 2], 1), ("issue-new", [1, 2], 2), ("none", [2], 2)]
    assert authority.trust().root.certificate != first
    assert len(authority.trust().issuers) == 1


def test_node_that_missed_the_bundle_blocks(authority: Authority, nodes: tuple[str, ...], now: datetime) -> None:
    """A node whose files still are the old ones keeps the new root from issuing, and is named."""
    advance_rotation(authority, now=now)
    (authority.directory / "nodes/gpu/current").unlink()
    (authority.directory / "nodes/gpu/current").symlink_to("v1")
    found = read_rotation(authority, now=now)
    assert dict(found.blocking) == {"gpu": "its bundle does not hold the new root"}


def test_blocked_step_heals_what_it_can(authority: Authority, nodes: tuple[str, ...], now: datetime) -> None:
    """A node of the store that lacks something gets it by the next call, which then advances."""
    advance_rotation(authority, now=now)
    (authority.directory / "nodes/gpu/current").unlink()
    (authority.directory / "nodes/gpu/current").symlink_to("v1")
    assert advance_rotation(authority, now=now).after.phase == "issue-new"
    assert valid(authority, "gpu", now)


def elsewhere(authority: Authority, now: datetime) -> None:
    """Sign a certificate for a node whose directory is on another machine, and note what it has of it."""
    key = authority.issue("source", now=now).certificate.public_key()
    signed = authority.sign("far", key, now=now)
    note_shown(authority.directory, "far", signed.certificate, signed.bundle_pem, signed.crl_pem, now=now)


def test_node_elsewhere_blocks_until_it_shows(authority: Authority, now: datetime) -> None:
    """A node of another machine keeps each phase waiting until it has shown the new bundle, then the new certificate."""
    elsewhere(authority, now)
    advance_rotation(authority, now=now)
    step = advance_rotation(authority, now=now)
    assert not step.advanced
    assert dict(step.after.blocking) == {"far": "its bundle does not hold the new root"}
    trust, old = authority.trust(), authority.issue("any", now=now).certificate
    shown = read_issued(authority.directory, "far")[0]
    note_shown(authority.directory, "far", shown, trust.bundle_pem, b"", now=now)
    assert advance_rotation(authority, now=now).after.blocking == {"far": "it lacks the revocation list of a new issuing CA"}
    note_shown(authority.directory, "far", shown, trust.bundle_pem, trust.crl_pem, now=now)
    assert advance_rotation(authority, now=now).after.phase == "issue-new"
    assert advance_rotation(authority, now=now).after.blocking == {"far": "its certificate does not come from the new root"}
    signed = authority.sign("far", old.public_key(), now=now)
    assert not advance_rotation(authority, now=now).advanced  # signed is not yet shown
    note_shown(authority.directory, "far", signed.certificate, signed.bundle_pem, signed.crl_pem, now=now)
    assert advance_rotation(authority, now=now).after.phase == "none"


def test_node_that_never_showed_anything_blocks(authority: Authority, now: datetime) -> None:
    """Silence is not consent: what was only signed blocks."""
    authority.sign("far", authority.issue("any", now=now).certificate.public_key(), now=now)
    advance_rotation(authority, now=now)
    assert advance_rotation(authority, now=now).after.blocking == {"far": "it has not shown anything yet"}


@pytest.mark.parametrize("why", ["revoked", "ended"])
def test_dead_node_does_not_block(authority: Authority, now: datetime, why: str) -> None:
    """A node that nobody lets in any more, revoked or ended, holds nobody up."""
    authority.sign("far", authority.issue("any", now=now).certificate.public_key(), now=now)
    if why == "revoked":
        revoke_node(authority, "far", now=now)
    later = now if why == "revoked" else now + timedelta(hours=25)
    for phase in ("trust-both", "issue-new", "none"):
        assert advance_rotation(authority, now=later).after.phase == phase


def test_new_root_needs_no_old_key(store: Path, tmp_path: Path, now: datetime) -> None:
    """With the old root's key lost, the root is replaced all the same; the new one's goes where keys are kept."""
    authority = Authority.create(store, "mesh.test", keys=RootKeys(tmp_path / "safe"), now=now)
    authority.issue("analyst", now=now)
    (tmp_path / "safe").rename(tmp_path / "lost")
    elsewhere_now = Authority.open(store, keys=RootKeys(tmp_path / "new-safe", b"open sesame"))
    for _ in range(3):
        assert advance_rotation(elsewhere_now, now=now).advanced
    (kept,) = (tmp_path / "new-safe").iterdir()
    assert b"ENCRYPTED" in (kept / "root.key").read_bytes()
    assert not list(store.rglob("root.key"))
    assert (
        elsewhere_now.keys.load(elsewhere_now.trust().root).public_key() == elsewhere_now.trust().root.certificate.public_key()
    )


def test_region_on_another_machine_stops_it_first(store: Path, now: datetime) -> None:
    """Where an issuing CA's key is elsewhere, nothing is begun that could not be ended."""
    authority = Authority.create(store, "mesh.test", regions=["eu", "us"], now=now)
    (store / "issuing/us/v1/ca.key").unlink()
    with pytest.raises(StoreError, match="the issuing CA of us is on another machine"):
        advance_rotation(authority, now=now)
    assert read_rotation(authority, now=now).phase == "none"


def test_issuing_ca_is_renewed_at_two_thirds(authority: Authority, nodes: tuple[str, ...], now: datetime) -> None:
    """A new issuing CA is prepared about 60 days on, its list goes to every node, and a minute later it issues."""
    assert [step.action for step in keep_issuing(authority, now=now + timedelta(days=53))] == ["kept"]
    later = now + timedelta(days=60)
    for node in nodes:
        keep_node(authority, node, now=later)
    assert [step.action for step in keep_issuing(authority, now=later)] == ["prepared"]
    trust = authority.trust()
    coming = coming_issuer(trust, "mesh")
    assert coming is not None
    assert trust.issuer().version == 1
    for node in nodes:
        assert (authority.directory / "nodes" / node / "current/crl.pem").read_bytes() == trust.crl_pem
    assert [step.action for step in keep_issuing(authority, now=later + MINUTE / 2)] == ["waits"]
    assert [step.action for step in keep_issuing(authority, now=later + MINUTE)] == ["activated"]
    assert authority.trust().issuer().version == 2
    assert keep_node(authority, "gpu", now=later + MINUTE).action == "kept"  # its certificate is as good as before
    assert [step.action for step in keep_issuing(authority, now=later + 2 * MINUTE)] == ["kept"]


def test_issuing_ca_waits_for_a_node_elsewhere_a_day_at_most(authority: Authority, now: datetime) -> None:
    """Who has not shown the new list within a day holds older ones that ended, and is refused by nobody but itself."""
    authority.sign("far", authority.issue("any", now=now).certificate.public_key(), now=now, lifetime=timedelta(days=89))
    assert [step.action for step in keep_issuing(authority, now=now, force=True)] == ["prepared"]
    assert "at far" in keep_issuing(authority, now=now + timedelta(hours=23))[0].detail
    assert keep_issuing(authority, now=now + timedelta(hours=24))[0].action == "activated"


def test_root_key_elsewhere_is_asked_for(store: Path, tmp_path: Path, now: datetime) -> None:
    """What needs the root's key says so, says where it should be, and until when; what does not need it works."""
    authority = Authority.create(store, "mesh.test", keys=RootKeys(tmp_path / "safe"), now=now)
    authority.issue("analyst", now=now)
    without = Authority.open(store)
    (step,) = keep_issuing(without, now=now + timedelta(days=70))
    assert step.action == "failed"
    assert "this needs the key of the root" in step.detail
    assert "--root-dir DIR" in step.detail
    assert without.issue("gpu", now=now).version == 1
    assert keep_issuing(authority, now=now + timedelta(days=70))[0].action == "prepared"


def test_ended_issuing_ca_goes(authority: Authority, now: datetime) -> None:
    """A retired issuing CA is kept, and its list signed, until its end; then it is removed with its key."""
    keep_issuing(authority, now=now, force=True)
    keep_issuing(authority, now=now + MINUTE)
    later = now + timedelta(days=60)
    keep_issuing(authority, now=later, force=True)
    keep_issuing(authority, now=later + MINUTE)
    keep_lists(authority, now=now + timedelta(days=89))
    assert len(authority.trust().issuers) == 3
    keep_lists(authority, now=now + timedelta(days=90, minutes=1))
    assert [issuer.version for issuer in authority.trust().issuers] == [3]
