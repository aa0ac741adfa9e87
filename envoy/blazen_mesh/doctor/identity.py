"""What a node's own certificate files say, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from blazen_mesh.doctor.findings import Finding, Names
from blazen_mesh.doctor.places import NodeFiles
from blazen_peer.identity import PeerId

__all__ = ["Identity", "dns_names_of", "examine_identity", "span_text", "uris_of"]

LEAF_LEFT_LEAST = 1 / 6
"""A leaf is renewed at 2/3 of its life, so with a sixth left several attempts have failed."""

CRL_LEFT_LEAST = 1 / 4
"""A list is signed again after a quarter of its life."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What is in ``current``.

    Attributes:
        directory: ``current`` itself.
        leaf: The node's certificate.
        crls: Its revocation lists; empty without any.
    """

    directory: Path
    leaf: x509.Certificate
    crls: tuple[x509.CertificateRevocationList, ...]

    @property
    def serial(self) -> str:
        """The leaf's serial number, as Envoy writes it."""
        return f"{self.leaf.serial_number:x}"


def examine_identity(names: Names, files: NodeFiles, expected: PeerId, now: datetime) -> tuple[list[Finding], Identity | None]:
    """Return what is to be said of the identity of *files*, and the identity where it can be read.

    Args:
        expected: Whom it must name.
        now: Timezone-aware.
    """
    current = files.identity_dir / "current"
    crl_path = current / "crl.pem"
    try:
        chain = x509.load_pem_x509_certificates((current / "tls.crt").read_bytes())
        anchors = x509.load_pem_x509_certificates((current / "bundle.crt").read_bytes())
        key = load_pem_private_key((current / "tls.key").read_bytes(), None)
        crls = _load_crls(crl_path.read_bytes()) if crl_path.exists() else ()
    except FileNotFoundError as error:
        return [names.wrong("identity", "identity-missing", f"{error.filename} is not there")], None
    except PermissionError as error:
        return [names.wrong("identity", "identity-unreadable", f"{error.filename}: {error.strerror}")], None
    except (ValueError, TypeError) as error:
        return [names.wrong("identity", "identity-broken", f"{current}: {error}")], None
    leaf = chain[0]
    found = _leaf_findings(names, chain, anchors, expected, now)
    if key.public_key() != leaf.public_key():
        found.append(names.wrong("identity", "identity-broken", f"{current}/tls.key is not the key of tls.crt"))
    found += _crl_findings(names, leaf, crls, now, wanted=files.wants_crl)
    if not found:
        lists = f", not revoked, list good for {span_text(_ends(crls) - now)}" if crls else ""
        detail = f"{expected}, {span_text(leaf.not_valid_after_utc - now)} left{lists}"
        found.append(names.fine("identity", detail))
    return found, Identity(current, leaf, crls)


def uris_of(certificate: x509.Certificate) -> list[str]:
    """Return the URIs that *certificate* names."""
    return _alternative_names(certificate, x509.UniformResourceIdentifier)


def dns_names_of(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names that *certificate* names."""
    return _alternative_names(certificate, x509.DNSName)


def span_text(span: timedelta) -> str:
    """Return a span in its largest fitting unit: ``23 h``."""
    secs = abs(int(span.total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if secs >= 2 * size:
            return f"{secs // size} {unit}"
    return f"{secs} s"


def _alternative_names(certificate: x509.Certificate, kind: type[x509.UniformResourceIdentifier | x509.DNSName]) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):  # there are none, or none that can be read
        return []
    return [str(name) for name in names.get_values_for_type(kind)]


def _leaf_findings(
    names: Names, chain: list[x509.Certificate], anchors: list[x509.Certificate], expected: PeerId, now: datetime
) -> list[Finding]:
    leaf, found = chain[0], []
    starts, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if uris_of(leaf) != [str(expected)]:
        said = ", ".join(uris_of(leaf)) or "nobody"
        found.append(names.wrong("identity", "identity-of-another", f"it names {said}, not {expected}"))
    if ends <= now:
        found.append(
            names.wrong("identity", "certificate-expired", f"at {ends:%Y-%m-%d %H:%M:%SZ}, {span_text(now - ends)} ago")
        )
    elif starts > now:
        detail = f"it begins in {span_text(starts - now)}: the authority's clock is ahead of this machine's"
        found.append(names.wrong("identity", "certificate-not-yet-valid", detail))
    elif (ends - now) < (ends - starts) * LEAF_LEFT_LEAST:
        found.append(names.wrong("identity", "certificate-expires-soon", f"{span_text(ends - now)} left", state="warning"))
    if not _leads_to(leaf, chain[1:], anchors):
        found.append(
            names.wrong("identity", "certificate-unknown-authority", f"{leaf.issuer.rfc4514_string()} is not in its bundle")
        )
    return found


def _leads_to(leaf: x509.Certificate, between: list[x509.Certificate], anchors: list[x509.Certificate]) -> bool:
    """Say whether signatures lead from *leaf* by way of *between* to one of *anchors*."""
    if any(_signed_by(leaf, anchor) for anchor in anchors):
        return True
    return any(
        _signed_by(leaf, issuer) and _leads_to(issuer, [other for other in between if other is not issuer], anchors)
        for issuer in between
    )


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _crl_findings(
    names: Names, leaf: x509.Certificate, crls: tuple[x509.CertificateRevocationList, ...], now: datetime, *, wanted: bool
) -> list[Finding]:
    ours = [crl for crl in crls if crl.issuer == leaf.issuer]
    if not ours:
        return [names.wrong("revocation", "crl-missing")] if wanted else []
    found = []
    if any(crl.get_revoked_certificate_by_serial_number(leaf.serial_number) for crl in ours):
        found.append(names.wrong("identity", "certificate-revoked", f"serial {leaf.serial_number:x} is on the list"))
    ends = _ends(crls)
    begins = max(crl.last_update_utc for crl in crls)
    longest = max(crl.next_update_utc - crl.last_update_utc for crl in crls if crl.next_update_utc)
    if ends <= now:
        found.append(names.wrong("revocation", "crl-expired", f"at {ends:%Y-%m-%d %H:%M:%SZ}"))
    elif begins > now:
        found.append(names.wrong("revocation", "crl-not-yet-valid", f"in {span_text(begins - now)}"))
    elif ends - now < longest * CRL_LEFT_LEAST:
        found.append(names.wrong("revocation", "crl-expires-soon", f"{span_text(ends - now)} left", state="warning"))
    return found


def _ends(crls: tuple[x509.CertificateRevocationList, ...]) -> datetime:
    """Return when the first of *crls* ends."""
    return min(crl.next_update_utc or crl.last_update_utc for crl in crls)


def _load_crls(pem: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    end = b"-----END X509 CRL-----"
    parts = [part + end for part in pem.split(end)[:-1]]
    return tuple(x509.load_pem_x509_crl(part) for part in parts)
