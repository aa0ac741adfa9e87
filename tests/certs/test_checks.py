"""One wrong thing in a certificate fails one check, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from blazen_certs import Authority, CertificateError, Check
from blazen_certs.checks import check_bundle, check_leaf, require, trust_domain_of
from blazen_peer.errors import ValidationError

Forge = Callable[..., tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]
URI = "spiffe://mesh.test/peer/analyst"


def checks_of(leaf: x509.Certificate, authority: Authority, at: datetime, public_key: Any = None) -> list[Check]:
    return check_leaf(
        [leaf, authority.trust().issuer().certificate],
        authority.trust().root_certificates,
        at=at,
        node_id="analyst",
        trust_domain="mesh.test",
        public_key=public_key or leaf.public_key(),
        fix="issue it anew",
    )


def test_forge_makes_a_right_one(forge: Forge, authority: Authority, now: datetime) -> None:
    """Unchanged, the forge's leaf passes every check: so each case below fails for its one change alone."""
    leaf, key = forge()
    assert [check for check in checks_of(leaf, authority, now, key.public_key()) if not check.ok] == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        pytest.param({"uris": [URI, URI.replace("analyst", "gpu")]}, ("name", "exactly one URI"), id="two-uris"),
        pytest.param({"uris": []}, ("name", "found 0: none"), id="no-uri"),
        pytest.param({"uris": ["https://mesh.test/peer/analyst"]}, ("name", "is not spiffe://"), id="not-spiffe"),
        pytest.param(
            {"uris": ["spiffe://mesh.test/peer/gpu"]}, ("name", "expected spiffe://mesh.test/peer/analyst"), id="other-node"
        ),
        pytest.param({"uris": [URI + "/.."]}, ("name", "is not spiffe://"), id="dot-dot"),
        pytest.param({"dns_names": []}, ("dns", "no DNS name"), id="no-dns-name"),
        pytest.param({"san_critical": False}, ("subject", "not critical"), id="san-not-critical"),
        pytest.param({"purposes": []}, ("purpose", "serverAuth and clientAuth must both"), id="no-extended-usage"),
        pytest.param({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]}, ("purpose", "must both"), id="server-only"),
        pytest.param({"purposes": [ExtendedKeyUsageOID.CLIENT_AUTH]}, ("purpose", "must both"), id="client-only"),
        pytest.param(
            {"digital_signature": False, "cert_sign": False}, ("purpose", "digitalSignature is missing"), id="no-signature"
        ),
        pytest.param({"usage_critical": False}, ("purpose", "critical digitalSignature"), id="usage-not-critical"),
        pytest.param({"cert_sign": True}, ("purpose", "may sign certificates"), id="may-sign-certificates"),
        pytest.param({"curve": ec.SECP384R1()}, ("key-type", "P-384"), id="p-384"),
    ],
)
def test_one_wrong_thing_fails_its_own_check(
    forge: Forge, authority: Authority, now: datetime, changes: dict[str, Any], finding: tuple[str, str]
) -> None:
    """Each fault is found, by the check whose name stands for it and by no other."""
    leaf, _ = forge(**changes)
    failed = [check for check in checks_of(leaf, authority, now) if not check.ok]
    assert [check.name for check in failed] == [finding[0]]
    assert finding[1] in failed[0].detail
    assert failed[0].fix == "issue it anew"


def test_other_trust_domain_is_beyond_its_ca(forge: Forge, authority: Authority, now: datetime) -> None:
    """A name of another trust domain breaks the CA's name constraint, whether or not anybody expects a certain name."""
    leaf, _ = forge(uris=["spiffe://us.test/peer/analyst"])
    failed = {check.name: check.detail for check in checks_of(leaf, authority, now) if not check.ok}
    assert list(failed) == ["constraint", "name"]
    assert "spiffe://us.test/peer/analyst is outside what CN=issuing mesh" in failed["constraint"]


def test_ca_is_no_leaf(forge: Forge, authority: Authority, now: datetime) -> None:
    """A certificate that may itself be a CA is refused as a node's."""
    leaf, _ = forge(ca=True, cert_sign=True)
    assert "purpose" in [check.name for check in checks_of(leaf, authority, now) if not check.ok]


@pytest.mark.parametrize(
    ("days", "finding"),
    [
        pytest.param((0, 1, 2), ("dates", "expired"), id="expired"),
        pytest.param((2, 3, 1), ("dates", "not valid yet"), id="not-yet"),
        pytest.param((0, 91, 1), ("lifetime", "longer than 90 days"), id="too-long"),
        pytest.param((80, 91, 81), ("lifetime", "outside its issuer's life"), id="outlives-issuer"),
    ],
)
def test_dates(forge: Forge, authority: Authority, now: datetime, days: tuple[int, int, int], finding: tuple[str, str]) -> None:
    """Expired, not yet valid, too long and longer than the issuer are four different findings; the chain is none of them.

    ``days`` are the leaf's start, its end, and the moment of looking, from the CA's start.
    """
    start, end, at = (now + timedelta(days=day) for day in days)
    leaf, _ = forge(start=start, end=end)
    failed = [check for check in checks_of(leaf, authority, at) if not check.ok]
    assert [check.name for check in failed] == [finding[0]]
    assert finding[1] in failed[0].detail


def test_last_second_counts(forge: Forge, authority: Authority, now: datetime) -> None:
    """notAfter itself is still valid, a second later is not (RFC 5280, section 4.1.2.5)."""
    leaf, _ = forge(end=now)
    assert all(check.ok for check in checks_of(leaf, authority, now))
    assert [c.name for c in checks_of(leaf, authority, now + timedelta(seconds=1)) if not c.ok] == ["dates"]


def test_key_of_another(forge: Forge, authority: Authority, now: datetime) -> None:
    """A key that is not the certificate's is found."""
    leaf, _ = forge()
    _, other = forge()
    failed = [check for check in checks_of(leaf, authority, now, other.public_key()) if not check.ok]
    assert [check.name for check in failed] == ["key"]


def test_other_ca(forge: Forge, authority: Authority, now: datetime, tmp_path: Path) -> None:
    """A leaf of another CA does not chain to this one, even with all else equal."""
    other = Authority.create(tmp_path / "other", "mesh.test", now=now)
    leaf = other.issue("analyst", now=now).certificate
    failed = [check for check in checks_of(leaf, authority, now) if not check.ok]
    assert [check.name for check in failed] == ["chain"]
    assert "not in the bundle" in failed[0].detail


def test_right_issuer_name_with_another_key(forge: Forge, authority: Authority, now: datetime) -> None:
    """Naming the CA is not being signed by it."""
    leaf, _ = forge(signer=ec.generate_private_key(ec.SECP256R1()))
    failed = [check for check in checks_of(leaf, authority, now) if not check.ok]
    assert [check.name for check in failed] == ["chain"]
    assert "does not lead to" in failed[0].detail


def test_rsa_signature_under_an_ec_ca(forge: Forge, authority: Authority, now: datetime) -> None:
    """A signature of another kind is a failed check, not a crash."""
    leaf, _ = forge(signer=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert [check.name for check in checks_of(leaf, authority, now) if not check.ok] == ["chain"]


def test_leaf_in_the_bundle_is_no_chain(forge: Forge, authority: Authority, now: datetime) -> None:
    """Putting the leaf itself among the trusted does not make it valid."""
    leaf, key = forge()
    checks = check_leaf(
        [leaf], [leaf], at=now, node_id=None, trust_domain=None, public_key=key.public_key(), fix="issue it anew"
    )
    assert not next(check for check in checks if check.name == "chain").ok


def test_no_anchors(forge: Forge, authority: Authority, now: datetime) -> None:
    """Without a trusted CA nothing is valid."""
    leaf, _ = forge()
    checks = check_leaf([leaf], [], at=now, node_id=None, trust_domain=None, public_key=None, fix="issue it anew")
    assert [check.name for check in checks if not check.ok] == ["chain"]


def test_subject_of_others_is_let_pass(forge: Forge, authority: Authority, now: datetime) -> None:
    """An authority that writes a subject is usable; the names count, and may then be not critical."""
    leaf, _ = forge(subject="CN=analyst", san_critical=False)
    assert all(check.ok for check in checks_of(leaf, authority, now))


def test_bundle_of_two_roots(authority: Authority, now: datetime, tmp_path: Path) -> None:
    """While roots change, the bundle holds both, and leaves of both chain to it."""
    second = Authority.create(tmp_path / "second", "mesh.test", now=now)
    anchors = [*authority.trust().root_certificates, *second.trust().root_certificates]
    for issuer in (authority, second):
        chain = [issuer.issue("analyst", now=now).certificate, *issuer.trust().issuer_certificates]
        checks = check_leaf(chain, anchors, at=now, node_id=None, trust_domain=None, public_key=None, fix="")
        assert all(check.ok for check in checks)
    assert check_bundle(anchors, must_hold=[authority.trust().root.certificate], fix="").ok


def test_bundle_must_hold_cas_only(forge: Forge, authority: Authority) -> None:
    """A leaf in the bundle is refused: it would be trusted as it stands."""
    leaf, _ = forge()
    assert not check_bundle([*authority.trust().root_certificates, leaf], must_hold=[], fix="").ok


def test_trust_domain_is_read_from_cas_only(forge: Forge) -> None:
    """A certificate that names a node does not say a trust domain."""
    leaf, _ = forge()
    with pytest.raises(ValidationError):
        trust_domain_of(leaf)


def test_require_names_each_failure() -> None:
    """What was not written, and why, stands in one line."""
    failed = Check("name", False, "two names", "fix it")
    with pytest.raises(CertificateError, match="name: two names") as raised:
        require([Check("chain", True, "fine"), failed])
    assert raised.value.checks == (failed,)
