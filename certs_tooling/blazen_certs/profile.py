"""What a certificate of this mesh holds: pure builders, with the time, the serial and the keys as arguments.

    root     P-256, 10 years, CA with at most one issuing CA below it, URI SAN ``spiffe://<trust domain>``
    issuing  P-256, 90 days, CA with none below it, URI SAN ``spiffe://<its trust domain>``, and a critical name constraint:
             no URI but of exactly that host
    leaf     P-256, 24 hours, empty subject, critical SAN: exactly one URI ``spiffe://<trust domain>/peer/<node>``, DNS names

A region ``eu`` of the mesh ``mesh.example`` has the trust domain ``eu.mesh.example``. The trust domain stands in a CA as its
URI SAN, as SPIFFE X.509-SVID (section 3.2) wants it of a signing certificate, so that its certificate says what it is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from blazen_peer.identity import PeerId

__all__ = [
    "BACKDATING",
    "DEFAULT_LEAF_LIFETIME",
    "ISSUING_LIFETIME",
    "LEAF_PURPOSES",
    "MAX_LEAF_LIFETIME",
    "ROOT_LIFETIME",
    "WHOLE_MESH",
    "LeafRequest",
    "build_issuing",
    "build_leaf",
    "build_root",
    "check_dns_name",
    "check_region",
    "check_time",
    "default_dns_name",
    "key_mark",
    "region_trust_domain",
    "trust_domain_uri",
]

ROOT_LIFETIME = timedelta(days=3652)  # 10 years
ISSUING_LIFETIME = timedelta(days=90)
DEFAULT_LEAF_LIFETIME = timedelta(hours=24)
MAX_LEAF_LIFETIME = timedelta(days=90)
BACKDATING = timedelta(minutes=2)  # for a reader whose clock is behind ours
LEAF_PURPOSES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)  # a sidecar is both

WHOLE_MESH = "mesh"  # the place of the one issuing CA of a mesh without regions

_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_MAX_DNS_NAME = 253  # RFC 1035, section 2.3.4, without the root's dot
_DNS_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


def check_time(now: datetime) -> datetime:
    """Return *now* in whole seconds, as certificates count.

    Raises:
        ValidationError: It has no time zone, so that nobody can say which moment it is.
    """
    if now.tzinfo is None:
        raise ValidationError(f"time {now.isoformat()} has no time zone: use datetime.now(UTC), or a text that ends in Z")
    return now.replace(microsecond=0)


def check_dns_name(name: str) -> str:
    """Return *name* in lower case when it may stand in a certificate as a DNS name.

    Raises:
        ValidationError: It is not 1 to 253 characters of labels with letters, digits, ``-`` and ``_``. Wildcards are refused.
    """
    lower = name.lower()
    if len(lower) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(lower):
        raise ValidationError(
            f"{name[:260]!r} is not a DNS name: use labels of 1 to 63 letters, digits, '-' or '_', joined by dots"
        )
    return lower


def default_dns_name(peer: PeerId) -> str:
    """Return ``<node>.<trust domain>``, the name that a caller's sidecar sends as SNI when it is told no other.

    Raises:
        ValidationError: The node id does not make a DNS name; another one must be given.
    """
    try:
        return check_dns_name(f"{peer.node_id}.{peer.trust_domain}")
    except ValidationError as error:
        raise ValidationError(f"node id {peer.node_id!r} makes no DNS name: give one, with --dns NAME") from error


def check_region(region: str) -> str:
    """Return *region* when it may name one: a single lower-case DNS label, and not ``mesh``.

    Raises:
        ValidationError: It is not.
    """
    if not _REGION.fullmatch(region):
        raise ValidationError(f"region {region[:80]!r} is not valid: use 1 to 63 of a-z, 0-9 or '-', such as eu or us-east")
    if region == WHOLE_MESH:
        raise ValidationError(f"region {region!r} is not valid: that word stands for a mesh without regions")
    return region


def region_trust_domain(region: str, trust_domain: str) -> str:
    """Return the trust domain of *region* in the mesh *trust_domain*: ``eu.mesh.example``; of ``mesh``, the mesh's own."""
    return trust_domain if region == WHOLE_MESH else f"{region}.{trust_domain}"


def key_mark(public_key: EllipticCurvePublicKey) -> str:
    """Return the first 8 hex digits of a CA's key identifier: what keeps the names of two CAs apart."""
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()[:8]


def trust_domain_uri(trust_domain: str) -> str:
    """Return the SPIFFE id of a trust domain itself (SPIFFE-ID, section 2.1)."""
    return f"spiffe://{trust_domain}"


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """What a node's certificate shall say.

    Attributes:
        peer: Whose it is.
        dns_names: At least one, kept in lower case; empty means ``default_dns_name``.
        lifetime: How long after now it ends.

    Raises:
        ValidationError: A name is not a DNS name, or the lifetime is not within (0, 90 days].
    """

    peer: PeerId
    dns_names: tuple[str, ...] = ()
    lifetime: timedelta = DEFAULT_LEAF_LIFETIME

    def __post_init__(self) -> None:
        names = tuple(check_dns_name(name) for name in self.dns_names) or (default_dns_name(self.peer),)
        object.__setattr__(self, "dns_names", tuple(dict.fromkeys(names)))
        if not timedelta(0) < self.lifetime <= MAX_LEAF_LIFETIME:
            hours = self.lifetime / timedelta(hours=1)
            raise ValidationError(f"a lifetime of {hours:g} hours is not allowed: use more than 0 and at most 2160 (90 days)")


def build_root(trust_domain: str, public_key: EllipticCurvePublicKey, *, serial: int, now: datetime) -> x509.CertificateBuilder:
    """Return the unsigned root certificate of *trust_domain*, for its own key to sign (RFC 5280, section 4.2; X.509-SVID, 3.2).

    Args:
        trust_domain: The host of every identity under this root.
        public_key: The root's own.
        serial: At most 20 bytes, positive (``x509.random_serial_number()``).
        now: Current time, timezone-aware; validity starts two minutes earlier, for skewed clocks.

    Raises:
        ValidationError: The trust domain is not a lower-case DNS name, or *now* has no time zone.
    """
    if check_dns_name(trust_domain) != trust_domain:
        raise ValidationError(f"trust domain {trust_domain!r} must be in lower case")
    now = check_time(now)
    name = _ca_name("root", public_key)
    return _build_ca(
        name, name, public_key, trust_domain, serial=serial, path_length=1, start=now - BACKDATING, end=now + ROOT_LIFETIME
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)


def build_issuing(
    region: str, public_key: EllipticCurvePublicKey, *, root: x509.Certificate, trust_domain: str, serial: int, now: datetime
) -> x509.CertificateBuilder:
    """Return the unsigned certificate of a region's issuing CA, for the root's key to sign (RFC 5280, section 4.2.1.10).

    Args:
        region: A region of the mesh, or ``mesh`` for a mesh without regions.
        public_key: The issuing CA's own.
        root: The root's certificate; the issuing CA lies within its life.
        trust_domain: The mesh's, not the region's.
        serial: At most 20 bytes, positive.
        now: Current time, timezone-aware; validity starts two minutes earlier, for skewed clocks.

    Raises:
        ValidationError: The root is not valid at *now*, or *now* has no time zone.
    """
    now = _check_issuing_time(root, now)
    own = region_trust_domain(region, trust_domain)
    start = max(now - BACKDATING, root.not_valid_before_utc)
    end = min(now + ISSUING_LIFETIME, root.not_valid_after_utc)
    name = _ca_name(f"issuing {region}", public_key)
    builder = _build_ca(name, root.subject, public_key, own, serial=serial, path_length=0, start=start, end=end)
    # A host without a leading dot admits that host alone, to OpenSSL and BoringSSL; Go admits what is below it as well.
    constraint = x509.NameConstraints(permitted_subtrees=[x509.UniformResourceIdentifier(own)], excluded_subtrees=None)
    return builder.add_extension(constraint, critical=True).add_extension(_issued_by(root), critical=False)


def build_leaf(
    request: LeafRequest,
    public_key: EllipticCurvePublicKey,
    *,
    issuer: x509.Certificate,
    serial: int,
    now: datetime,
) -> x509.CertificateBuilder:
    """Return the unsigned certificate for *request*, for the issuer's key to sign (RFC 5280; SPIFFE X.509-SVID, section 2).

    Args:
        request: Names and lifetime.
        public_key: The node's key; the private half never comes here.
        issuer: The CA's certificate. The leaf lies within its life: where the request asks for longer, it ends with its issuer.
        serial: At most 20 bytes, positive (``x509.random_serial_number()``).
        now: Current time, timezone-aware; validity starts two minutes earlier, for skewed clocks.

    Raises:
        ValidationError: The issuer is not valid at *now*, or *now* has no time zone.
    """
    now = _check_issuing_time(issuer, now)
    start, end = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(request.peer))]
    names += [x509.DNSName(name) for name in request.dns_names]
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([]))
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(max(now - BACKDATING, start))
        .not_valid_after(min(now + request.lifetime, end))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{**_NO_USAGE, "digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage(LEAF_PURPOSES), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_issued_by(issuer), critical=False)
    )


def _check_issuing_time(issuer: x509.Certificate, now: datetime) -> datetime:
    now = check_time(now)
    start, end = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    if not start <= now < end:
        raise ValidationError(
            f"the CA is valid from {start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ} and cannot issue at {now.isoformat()}"
        )
    return now


def _ca_name(what: str, public_key: EllipticCurvePublicKey) -> x509.Name:
    # The key's own mark in the name keeps two CAs apart while one replaces the other.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Blazen mesh"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{what} {key_mark(public_key)}"),
        ]
    )


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def _build_ca(
    name: x509.Name,
    issuer: x509.Name,
    public_key: EllipticCurvePublicKey,
    trust_domain: str,
    *,
    serial: int,
    path_length: int,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(name)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(x509.KeyUsage(**{**_NO_USAGE, "key_cert_sign": True, "crl_sign": True}), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain_uri(trust_domain))]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
