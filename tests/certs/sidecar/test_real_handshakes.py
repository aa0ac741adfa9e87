"""What a real sidecar (Envoy, and so BoringSSL) and a real client (OpenSSL) make of the identities."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority, IssuedIdentity, LeafRequest, build_leaf
from blazen_certs import store as layout
from blazen_certs.cli import main
from blazen_certs.issuing_renewal import keep_issuing
from blazen_certs.keys import load_issuing_key
from blazen_certs.pem import certificates_pem
from blazen_certs.rotation import advance_rotation, read_rotation
from blazen_certs.sidecar import look_at_sidecar, unlike, wait_until_served
from blazen_certs.upkeep import keep_node, revoke_node
from blazen_peer.identity import PeerId

pytestmark = pytest.mark.envoy
REFUSED = (ssl.SSLError, ConnectionError)
WAIT_SECS = 30.0


def refusal(sidecar: Any, client: IssuedIdentity, secs: float = WAIT_SECS) -> tuple[str, float]:
    """Try until *client* is refused; return the reason and how long it took to be so, in seconds."""
    begun = time.monotonic()
    while time.monotonic() < begun + secs:
        try:
            sidecar.handshake(client)
        except REFUSED as error:
            return str(error), time.monotonic() - begun
        time.sleep(0.01)
    raise AssertionError("it was never refused")


def taken(sidecar: Any, authority: Authority, identity: IssuedIdentity) -> None:
    """Wait until the sidecar serves what the node has now."""
    serial = keep_node(authority, identity.peer.node_id, now=datetime.now(UTC)).certificate
    assert serial is not None
    before, admin = sidecar.look(), sidecar.admin
    roots = authority.trust().root_certificates
    assert wait_until_served(admin, serial.serial_number, roots, before=before, secs=WAIT_SECS) is None


@pytest.fixture
def authority(store: Path) -> Authority:
    """An authority of two regions, of now."""
    return Authority.create(store, "mesh.test", regions=["eu", "us"])


@pytest.fixture
def analyst(authority: Authority) -> IssuedIdentity:
    """A node in the EU, whose sidecar is started."""
    return authority.issue("analyst", region="eu")


@pytest.fixture
def intake(authority: Authority) -> IssuedIdentity:
    """A node in the US, which connects to it."""
    return authority.issue("intake", region="us")


def test_regions_meet(start_sidecar: Callable[..., Any], analyst: IssuedIdentity, intake: IssuedIdentity) -> None:
    """Nodes of two regions, each under its own constrained CA, connect: every verifier takes the constraint and the lists."""
    sidecar = start_sidecar(analyst.path)
    assert sidecar.handshake(intake) == analyst.certificate.serial_number


@pytest.mark.parametrize("node", ["intake", "analyst"])
def test_revoked_is_refused_within_two_seconds(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, intake: IssuedIdentity, node: str
) -> None:
    """A revoked client is refused by the sidecar, a revoked sidecar by the client, two seconds after the command at most."""
    sidecar = start_sidecar(analyst.path)
    sidecar.handshake(intake)
    assert main(["revoke", node, "--dir", str(authority.directory)]) == 0
    reason, secs = refusal(sidecar, intake)
    assert secs < 2
    if node == "intake":
        sidecar.wait_refusal("certificate_revoked")
        sidecar.handshake(authority.issue("bystander", region="us"))
    else:
        assert "certificate revoked" in reason


def test_region_cannot_mint_anothers_names(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, intake: IssuedIdentity
) -> None:
    """With the US's own CA key, a certificate in the name of an EU node is made by hand; the sidecar refuses it."""
    sidecar = start_sidecar(analyst.path)
    issuer, now = authority.trust().issuer("us"), datetime.now(UTC)
    request = LeafRequest(PeerId("eu.mesh.test", "intake"))
    key = intake.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = build_leaf(request, key, issuer=issuer.certificate, serial=x509.random_serial_number(), now=now)
    forged = builder.sign(load_issuing_key(issuer), hashes.SHA256())
    intake.certificate_path.write_bytes(certificates_pem([forged, issuer.certificate]))
    with pytest.raises(REFUSED):
        sidecar.handshake(intake)
    sidecar.wait_refusal("permitted_subtree_violation")


def test_renewal_is_served(start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity) -> None:
    """``renew --sidecar`` ends with 0 once the sidecar serves the new serial number; the old one is gone."""
    sidecar = start_sidecar(analyst.path)
    argv = ["renew", "analyst", "--force", "--sidecar", str(sidecar.admin), "--dir", str(authority.directory)]
    assert main(argv) == 0
    assert sidecar.look().serials != {analyst.certificate.serial_number}


def test_issue_asks_the_sidecar(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    """``issue --sidecar`` too: 0 once the sidecar serves it; 1, with the reason, when a sidecar does not."""
    sidecar = start_sidecar(analyst.path)
    more = ["--sidecar", str(sidecar.admin), "--dir", str(authority.directory)]
    assert main(["issue", "analyst", *more]) == 0
    assert "sidecar      serves it" in capsys.readouterr().out
    assert main(["issue", "gpu", "--region", "us", "--sidecar-secs", "0.2", *more]) == 1
    assert "it is published, but the sidecar serves" in capsys.readouterr().err


def test_sidecar_that_does_not_take_it(
    start_sidecar: Callable[..., Any],
    authority: Authority,
    analyst: IssuedIdentity,
    intake: IssuedIdentity,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sidecar that serves something else is waited for no longer than was said, and fails the command."""
    sidecar = start_sidecar(analyst.path)
    argv = ["renew", "intake", "--sidecar", str(sidecar.admin), "--sidecar-secs", "0.3", "--dir", str(authority.directory)]
    assert main(argv) == 1
    served, wanted = (f"{node.certificate.serial_number:x}" for node in (analyst, intake))
    assert f"the sidecar serves {served}, not {wanted}" in capsys.readouterr().out


def test_bad_publication_is_said_and_the_next_one_heals(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, intake: IssuedIdentity
) -> None:
    """Trap 6: a key of another node, published past the checks, is refused; a new certificate heals it; revocation works."""
    sidecar = start_sidecar(analyst.path)
    before = sidecar.look()
    files = {name: (analyst.path / "current" / name).read_bytes() for name in ("tls.crt", "bundle.crt", "crl.pem")}
    layout.publish_version(analyst.path, {**files, "tls.key": intake.key_path.read_bytes()})
    fresh = authority.issue("bystander", region="us")
    serial = fresh.certificate.serial_number
    problem = wait_until_served(sidecar.admin, serial, [], before=before, secs=WAIT_SECS)
    assert problem is not None
    assert "refused" in problem
    sidecar.handshake(intake)  # by what it had before
    assert keep_node(authority, "analyst", now=datetime.now(UTC)).action == "renewed"
    taken(sidecar, authority, analyst)
    sidecar.handshake(intake)
    revoke_node(authority, "intake", now=datetime.now(UTC))
    refusal(sidecar, intake)
    sidecar.wait_refusal("certificate_revoked")


def test_new_issuing_ca_interrupts_nobody(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, intake: IssuedIdentity
) -> None:
    """A new issuing CA is made known by its list, issues a minute later, and its leaves are taken at once."""
    sidecar = start_sidecar(analyst.path)
    now = datetime.now(UTC)
    assert [step.action for step in keep_issuing(authority, now=now, force=True)] == ["prepared", "prepared"]
    sidecar.handshake(intake)
    assert [step.action for step in keep_issuing(authority, now=now + timedelta(minutes=1))] == ["activated", "activated"]
    renewed = authority.issue("intake")
    assert authority.trust().issuer_of(renewed.certificate) == authority.trust().issuer("us")
    taken(sidecar, authority, analyst)
    sidecar.handshake(renewed)


def test_root_is_replaced_and_nobody_is_refused(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, intake: IssuedIdentity
) -> None:
    """In each of the three phases, asked in between, the sidecar serves and takes what is published; the old root is gone."""
    sidecar = start_sidecar(analyst.path)
    sidecars = {"analyst": sidecar.admin}
    phases: Sequence[str] = ("trust-both", "issue-new", "none")
    argv = ["rotate-root", "--sidecar", f"analyst={sidecar.admin}", "--dir", str(authority.directory)]
    for phase in phases:
        assert main(argv) == 0
        found = read_rotation(authority, now=datetime.now(UTC), sidecars=sidecars)
        assert (found.phase, dict(found.blocking)) == (phase, {})
        sidecar.handshake(intake)
    assert sidecar.look().roots == {authority.trust().root.certificate.serial_number}
    assert authority.trust().root.generation == 2


def test_sidecar_that_missed_it_blocks_the_rotation(
    start_sidecar: Callable[..., Any], authority: Authority, analyst: IssuedIdentity, tmp_path: Path
) -> None:
    """The store alone would let the next phase begin; a sidecar that looks at a copy, and so missed the bundle, does not."""
    copy = authority.directory.parent / "copy"
    shutil.copytree(analyst.path, copy, symlinks=True)
    sidecar = start_sidecar(copy)
    sidecars = {"analyst": sidecar.admin}
    advance_rotation(authority, now=datetime.now(UTC))
    step = advance_rotation(authority, now=datetime.now(UTC), sidecars=sidecars)
    assert not step.advanced
    assert "does not trust the published roots" in step.after.blocking["analyst"]
    assert advance_rotation(authority, now=datetime.now(UTC)).advanced


def test_sidecar_that_is_not_there(tmp_path: Path) -> None:
    """A socket that nobody answers on, or that is none, is a problem in words."""
    view = look_at_sidecar(tmp_path / "nothing.sock")
    assert view.problem is not None
    assert "does not answer" in view.problem
    assert unlike(view, 1, {2}) == "the sidecar serves none, not 1"
