"""Revocation lists: pure builders and rules, with the time as an argument.

One list per issuing CA. The signed list is itself the record of what that CA revoked: it holds no more, and needs no more,
because it dies with its CA after 90 days.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509

from blazen_certs.facts import time_text
from blazen_certs.profile import BACKDATING, check_time

__all__ = [
    "CRL_LIFETIME",
    "CRL_RESIGN",
    "build_crl",
    "crl_is_due",
    "crl_number",
    "is_revoked",
    "list_of",
    "list_problem",
    "lists_gone_back",
    "revoked_serials",
]

CRL_LIFETIME = timedelta(hours=24)
CRL_RESIGN = timedelta(hours=6)


def build_crl(
    issuer: x509.Certificate, revoked: Mapping[int, datetime], *, number: int, now: datetime
) -> x509.CertificateRevocationListBuilder:
    """Return the unsigned list of *issuer*, for its own key to sign (RFC 5280, section 5).

    Args:
        issuer: The issuing CA's certificate.
        revoked: Serial numbers, and since when each is revoked.
        number: The list's own; each later list of this CA has a higher one.
        now: Current time, timezone-aware. The list starts two minutes earlier, for skewed clocks, and ends after 24 hours.

    Raises:
        ValidationError: *now* has no time zone.
    """
    now = check_time(now)
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - BACKDATING)
        .next_update(now + CRL_LIFETIME)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
    )
    for serial, since in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(entry)
    return builder


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Return the list's number, 0 where it says none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def revoked_serials(crl: x509.CertificateRevocationList) -> dict[int, datetime]:
    """Return the serial numbers on the list, and since when each is revoked."""
    return {entry.serial_number: entry.revocation_date_utc for entry in crl}


def is_revoked(serial: int, crl: x509.CertificateRevocationList) -> bool:
    """Return whether *serial* is on the list."""
    return crl.get_revoked_certificate_by_serial_number(serial) is not None


def crl_is_due(crl: x509.CertificateRevocationList, *, now: datetime) -> bool:
    """Return whether the list must be signed again: it is six hours old, or not of the present."""
    signed = crl.last_update_utc + BACKDATING
    return not crl.last_update_utc <= now < signed + CRL_RESIGN


def list_of(issuer: x509.Certificate, lists: list[x509.CertificateRevocationList]) -> x509.CertificateRevocationList | None:
    """Return the newest list of *issuer* among *lists*; None where there is none."""
    own = [crl for crl in lists if crl.issuer == issuer.subject]
    return max(own, key=crl_number, default=None)


def lists_gone_back(
    lists: list[x509.CertificateRevocationList], held: list[x509.CertificateRevocationList]
) -> list[tuple[x509.CertificateRevocationList, x509.CertificateRevocationList]]:
    """Return each of *lists* that is older than the same CA's in *held*, and that one.

    Older is one with a lower number, another one with the same number, and one that lacks a serial number: no list of ours ever
    loses any. So does a store that was restored from a backup, and signed on, come to light.
    """
    found = []
    for crl in lists:
        for before in held:
            if crl.issuer != before.issuer or crl == before:
                continue
            if crl_number(crl) <= crl_number(before) or revoked_serials(before).keys() - revoked_serials(crl).keys():
                found.append((crl, before))
    return found


def list_problem(crl: x509.CertificateRevocationList, issuer: x509.Certificate, *, at: datetime) -> str | None:
    """Return what is wrong with *issuer*'s list at the moment *at*: its signature or its dates; None where nothing is."""
    public_key = issuer.public_key()
    try:
        signed = crl.is_signature_valid(public_key)  # type: ignore[arg-type]  # a key that cannot sign raises TypeError
    except (TypeError, ValueError):
        signed = False
    if not signed:
        return "it is not signed by its CA"
    if at < crl.last_update_utc:
        return f"it starts {time_text(crl.last_update_utc)}, and before that everybody is refused"
    if crl.next_update_utc is None or at > crl.next_update_utc:
        end = "never said its end" if crl.next_update_utc is None else f"ended {time_text(crl.next_update_utc)}"
        return f"it {end}, and since then everybody is refused"
    return None
