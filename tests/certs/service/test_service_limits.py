"""The bucket of tokens: a burst at once, then so many a second, each caller for itself, in bounded memory."""

from __future__ import annotations

import pytest

from blazen_certs.service_limits import RateLimit


def test_a_burst_then_the_rate() -> None:
    """Three at once, then one every two seconds."""
    limit = RateLimit(burst=3, per_sec=0.5)
    assert [limit.wait_secs("a", now=10.0) for _ in range(4)] == [0, 0, 0, 2.0]
    assert limit.wait_secs("a", now=11.0) == pytest.approx(1.0)
    assert limit.wait_secs("a", now=12.0) == 0
    assert limit.wait_secs("a", now=12.0) == pytest.approx(2.0)


def test_the_bucket_does_not_overflow() -> None:
    """After an hour of silence it is the burst again, not more."""
    limit = RateLimit(burst=2, per_sec=1)
    limit.wait_secs("a", now=0.0)
    assert [limit.wait_secs("a", now=3600.0) for _ in range(3)] == [0, 0, 1.0]


def test_callers_do_not_share() -> None:
    """One that asks too often takes nothing from another."""
    limit = RateLimit(burst=1, per_sec=1)
    assert [limit.wait_secs(caller, now=0.0) for caller in ("a", "a", "b")] == [0, 1.0, 0]


def test_memory_is_bounded() -> None:
    """The caller that has been quiet longest is forgotten first."""
    limit = RateLimit(burst=1, per_sec=0.001, max_callers=2)
    for caller in ("a", "b", "a", "c"):
        limit.wait_secs(caller, now=0.0)
    assert limit.wait_secs("a", now=0.0) > 0
    assert limit.wait_secs("b", now=0.0) == 0
