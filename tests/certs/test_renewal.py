"""When renewal is due: laws, whatever the certificate's dates and serial number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from blazen_certs import LeafRequest, build_leaf, build_root
from blazen_certs.profile import MAX_LEAF_LIFETIME, build_issuing
from blazen_certs.renewal import asked_lifetime, is_due, issued_at, renewal_time, retry_delay
from blazen_peer.identity import PeerId

MADE = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ec.derive_private_key(7, ec.SECP256R1())
LIFETIMES = st.integers(60, int(MAX_LEAF_LIFETIME.total_seconds())).map(lambda secs: timedelta(seconds=secs))
SERIALS = st.integers(1, 2**159 - 1)
AGES = st.integers(0, 90 * 86400 - 1).map(lambda secs: timedelta(seconds=secs))


@cache
def issuing() -> x509.Certificate:
    """An issuing CA, made on the first of January; that its root's key is its own does not matter here."""
    root = build_root("mesh.test", KEY.public_key(), serial=1, now=MADE).sign(KEY, hashes.SHA256())
    builder = build_issuing("mesh", KEY.public_key(), root=root, trust_domain="mesh.test", serial=2, now=MADE)
    return builder.sign(KEY, hashes.SHA256())


def leaf(lifetime: timedelta, serial: int = 1, *, now: datetime = MADE) -> x509.Certificate:
    request = LeafRequest(PeerId("mesh.test", "analyst"), lifetime=lifetime)
    return build_leaf(request, KEY.public_key(), issuer=issuing(), serial=serial, now=now).sign(KEY, hashes.SHA256())


@given(lifetime=LIFETIMES, serial=SERIALS)
def test_due_at_two_thirds_and_up_to_a_tenth_earlier(lifetime: timedelta, serial: int) -> None:
    """Whatever the lifetime, down to a minute, and whatever the serial number: between 60 % and 66.7 % of the life."""
    made = leaf(lifetime, serial)
    life = made.not_valid_after_utc - MADE
    assert life * 0.5999 <= renewal_time(made) - MADE <= life * 0.6667
    assert not is_due(made, now=MADE)
    assert is_due(made, now=made.not_valid_after_utc)


def test_jitter_spreads_and_stays() -> None:
    """A hundred certificates that were made together are due at many times; each always at the same."""
    times = [renewal_time(leaf(timedelta(hours=24), serial)) for serial in range(1, 2**32, 2**32 // 100)]
    assert len(set(times)) > 90
    assert max(times) - min(times) > timedelta(hours=1.5)
    assert times[7] == renewal_time(leaf(timedelta(hours=24), 1 + 7 * (2**32 // 100)))


@given(lifetime=LIFETIMES, age=AGES)
def test_no_leaf_outlives_its_issuing_ca(lifetime: timedelta, age: timedelta) -> None:
    """At whatever moment of its issuing CA's life, and for however long it is asked: it ends with the CA at the latest."""
    made = leaf(lifetime, now=MADE + age)
    ca = issuing()
    assert ca.not_valid_before_utc <= made.not_valid_before_utc <= made.not_valid_after_utc <= ca.not_valid_after_utc
    assert made.not_valid_after_utc <= MADE + age + lifetime


@given(lifetime=LIFETIMES)
def test_asked_lifetime_is_what_was_asked(lifetime: timedelta) -> None:
    """A renewal asks for what the first certificate was asked for, and not for the rest that a CA's end left of it."""
    made = leaf(lifetime)
    cut_short = made.not_valid_after_utc == issuing().not_valid_after_utc
    assert asked_lifetime(made, issuing()) == (timedelta(hours=24) if cut_short else lifetime)
    last = leaf(lifetime, now=issuing().not_valid_after_utc - timedelta(seconds=30))
    assert asked_lifetime(last, issuing()) == timedelta(hours=24)


def test_life_begins_when_it_was_made() -> None:
    """The two minutes before, for skewed clocks, are no part of the life: one of a minute would be due at once."""
    assert issued_at(leaf(timedelta(minutes=1))) == MADE


@pytest.mark.parametrize(("failures", "secs"), [(1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (7, 300), (10**6, 300)])
def test_retries_are_ten_seconds_to_five_minutes_apart(failures: int, secs: int) -> None:
    """Doubled with each failure, and never beyond five minutes."""
    assert retry_delay(failures) == timedelta(seconds=secs)
