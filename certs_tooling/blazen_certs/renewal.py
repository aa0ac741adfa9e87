"""When to renew, as pure rules: a certificate alone says when its renewal is due."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509

from blazen_certs.profile import BACKDATING, DEFAULT_LEAF_LIFETIME

__all__ = ["asked_lifetime", "is_due", "issued_at", "renewal_time", "retry_delay"]

_RENEW_AT = 2 / 3  # of its life
_JITTER = 0.10  # nodes that were issued together do not come back together
_JITTER_STEPS = 1 << 32
_FIRST_RETRY, _LAST_RETRY = timedelta(seconds=10), timedelta(minutes=5)


def issued_at(certificate: x509.Certificate) -> datetime:
    """Return when *certificate* was made: two minutes after its start, for one of ours."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + BACKDATING if end - start > BACKDATING else start


def renewal_time(certificate: x509.Certificate) -> datetime:
    """Return when *certificate* is due: at two thirds of its life, up to 10 % earlier.

    How much earlier follows from its serial number, which is random: whoever asks, and however often, gets the same answer.
    """
    start = issued_at(certificate)
    early = _JITTER * (certificate.serial_number % _JITTER_STEPS) / _JITTER_STEPS
    return start + (certificate.not_valid_after_utc - start) * (_RENEW_AT * (1 - early))


def is_due(certificate: x509.Certificate, *, now: datetime) -> bool:
    """Return whether *certificate* should be renewed at *now*."""
    return now >= renewal_time(certificate)


def asked_lifetime(certificate: x509.Certificate, issuer: x509.Certificate | None) -> timedelta:
    """Return the lifetime that *certificate* was asked for; the default one where its issuing CA's end cut it short."""
    if issuer is None or certificate.not_valid_after_utc >= issuer.not_valid_after_utc:
        return DEFAULT_LEAF_LIFETIME
    return certificate.not_valid_after_utc - issued_at(certificate)


def retry_delay(failures: int) -> timedelta:
    """Return how long to wait after the *failures*-th failure in a row: 10 s, doubled each time, at most 5 minutes."""
    return min(_FIRST_RETRY * (1 << min(max(failures, 1) - 1, 10)), _LAST_RETRY)
