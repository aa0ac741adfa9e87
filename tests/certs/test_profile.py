"""What stands in the certificates that the builders make."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from blazen_certs import Authority, LeafRequest, build_leaf, build_root
from blazen_certs.facts import is_ca, purposes_of
from blazen_certs.profile import check_dns_name
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

ANALYST = PeerId("mesh.test", "analyst")


def leaf_of(authority: Authority, now: datetime, **request: object) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf_request = LeafRequest(ANALYST, **request)  # type: ignore[arg-type]
    builder = build_leaf(leaf_request, key.public_key(), issuer=authority.trust().issuer().certificate, serial=7, now=now)
    return builder.sign(key, hashes.SHA256())  # who signs does not matter to what is said


def test_root_says_its_trust_domain_and_purpose(now: datetime) -> None:
    """The root holds one URI, the trust domain itself; it signs certificates and CRLs, with one CA below it, for 10 years."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = build_root("mesh.test", key.public_key(), serial=1, now=now).sign(key, hashes.SHA256())
    names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://mesh.test")]
    assert is_ca(root)
    assert purposes_of(root) == ["keyCertSign", "cRLSign"]
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.path_length) == (True, 1)
    assert root.not_valid_before_utc == now - timedelta(minutes=2)
    assert root.not_valid_after_utc == now + timedelta(days=3652)


def test_two_roots_of_one_trust_domain_have_different_names(now: datetime) -> None:
    """A reader of a bundle with the old and the new root can tell which one a leaf names as its issuer."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    roots = [build_root("mesh.test", key.public_key(), serial=1, now=now).sign(key, hashes.SHA256()) for key in keys]
    assert roots[0].subject != roots[1].subject


def test_leaf_has_one_name_no_subject_and_both_purposes(authority: Authority, now: datetime) -> None:
    """A leaf has an empty subject, a critical SAN of one URI and its DNS name, and serves both ends of a connection."""
    leaf = leaf_of(authority, now)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert len(list(leaf.subject)) == 0
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier(str(ANALYST)), x509.DNSName("analyst.mesh.test")]
    assert usage.critical
    assert purposes_of(leaf) == ["digitalSignature", "serverAuth", "clientAuth"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert leaf.serial_number == 7


def test_leaf_names_its_issuer_by_key(authority: Authority, now: datetime) -> None:
    """The leaf's authority key identifier is the issuing CA's subject key identifier."""
    leaf = leaf_of(authority, now)
    issuing_id = (
        authority.trust().issuer().certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == issuing_id
    own = x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())
    assert leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == own


def test_leaf_lives_a_day_and_starts_two_minutes_early(authority: Authority, now: datetime) -> None:
    """24 hours from now, and valid two minutes ago already, for a reader whose clock is behind."""
    later = now + timedelta(days=3, microseconds=5)
    leaf = leaf_of(authority, later)
    assert leaf.not_valid_before_utc == now + timedelta(days=3) - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == now + timedelta(days=4)


def test_leaf_never_outlives_its_issuer(authority: Authority) -> None:
    """A leaf that is asked for an hour before the CA's end ends with the CA."""
    end = authority.trust().issuer().certificate.not_valid_after_utc
    assert leaf_of(authority, end - timedelta(hours=1)).not_valid_after_utc == end


def test_leaf_never_starts_before_its_issuer(authority: Authority) -> None:
    """A leaf that is asked for in the CA's first second is backdated to the CA's start only."""
    start = authority.trust().issuer().certificate.not_valid_before_utc
    assert leaf_of(authority, start).not_valid_before_utc == start


@pytest.mark.parametrize(
    "offset",
    [pytest.param(timedelta(minutes=-3), id="before-the-ca"), pytest.param(timedelta(days=90), id="when-the-ca-ends")],
)
def test_ca_out_of_its_life_issues_nothing(authority: Authority, now: datetime, offset: timedelta) -> None:
    """Outside the CA's own dates nothing can be issued, and the error says the dates."""
    with pytest.raises(ValidationError, match="cannot issue at"):
        leaf_of(authority, now + offset)


@pytest.mark.parametrize(
    "lifetime",
    [
        pytest.param(timedelta(0), id="zero"),
        pytest.param(timedelta(seconds=-1), id="negative"),
        pytest.param(timedelta(days=90, seconds=1), id="over-90-days"),
    ],
)
def test_lifetime_out_of_range_is_refused(lifetime: timedelta) -> None:
    """A leaf lives more than 0 and at most 90 days."""
    with pytest.raises(ValidationError, match="lifetime"):
        LeafRequest(ANALYST, lifetime=lifetime)


def test_naive_time_is_refused(authority: Authority, now: datetime) -> None:
    """A time without a zone could be any of 24 moments."""
    with pytest.raises(ValidationError, match="time zone"):
        leaf_of(authority, now.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("analyst", "analyst", id="one-label"),
        pytest.param("Analyst.Mesh.Example", "analyst.mesh.example", id="lower-cased"),
        pytest.param("node_1.mesh", "node_1.mesh", id="underscore"),
        pytest.param("a" * 63 + ".b", "a" * 63 + ".b", id="longest-label"),
    ],
)
def test_dns_name_is_kept(given: str, kept: str) -> None:
    """Names that resolvers take are taken, in lower case."""
    assert check_dns_name(given) == kept


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("*.mesh.test", id="wildcard"),
        pytest.param("a..b", id="empty-label"),
        pytest.param("a.", id="trailing-dot"),
        pytest.param("-a.test", id="leading-hyphen"),
        pytest.param("a-.test", id="trailing-hyphen"),
        pytest.param("a b", id="space"),
        pytest.param("a\n", id="newline"),
        pytest.param("bücher.test", id="not-ascii"),
        pytest.param("a" * 64, id="label-too-long"),
        pytest.param(".".join(["a" * 63] * 4), id="name-too-long"),
    ],
)
def test_dns_name_is_refused(name: str) -> None:
    """What is no DNS name, or names more than one host, does not get into a certificate."""
    with pytest.raises(ValidationError, match="not a DNS name"):
        LeafRequest(ANALYST, dns_names=(name,))


def test_node_id_that_makes_no_dns_name_asks_for_one() -> None:
    """A node id of 100 characters is allowed, but the DNS name must then be given."""
    peer = PeerId("mesh.test", "n" * 100)
    with pytest.raises(ValidationError, match="give one, with --dns NAME"):
        LeafRequest(peer)
    assert LeafRequest(peer, dns_names=("n.mesh.test", "N.mesh.test")).dns_names == ("n.mesh.test",)
