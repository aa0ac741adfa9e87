"""Retry arithmetic: how long to wait, and when to give up."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.engine.retry import Retry
from blazen_peer.errors import OverloadedError, TransportError, ValidationError

BACKOFFS = [
    pytest.param(Retry(delay_secs=0.1, jitter=0), [0.1, 0.2, 0.4, 0.8], id="doubles"),
    pytest.param(Retry(delay_secs=1, factor=3, max_delay_secs=10, jitter=0), [1, 3, 9, 10, 10], id="up-to-the-longest"),
    pytest.param(Retry(delay_secs=5, max_delay_secs=2, jitter=0), [2, 2], id="longest-below-the-first"),
    pytest.param(Retry(delay_secs=0.5, factor=1, jitter=0), [0.5, 0.5, 0.5], id="constant"),
    pytest.param(Retry(delay_secs=0, jitter=0), [0, 0], id="at-once"),
    pytest.param(Retry(max_delay_secs=0, jitter=0), [0, 0], id="never-longer-than-nothing"),
]


@pytest.mark.parametrize(("retry", "waits"), BACKOFFS)
def test_backoff(retry: Retry, waits: list[float]) -> None:
    """Each wait is the last one times the factor, up to the longest."""
    assert [retry.backoff_secs(n, 0.3) for n in range(1, len(waits) + 1)] == pytest.approx(waits)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 1.0), (0.5, 0.75), (0.999, 0.5005)])
def test_jitter(chance: float, share: float) -> None:
    """A random share of up to the jitter is taken off the wait."""
    assert Retry(delay_secs=2, jitter=0.5).backoff_secs(1, chance) == pytest.approx(2 * share)


@given(
    st.floats(0, 1e300),
    st.floats(1, 1e300),
    st.floats(0, 1e300),
    st.floats(0, 1),
    st.integers(1, 10**9),
    st.floats(0, 1, exclude_max=True),
)
def test_backoff_is_bounded(delay: float, factor: float, most: float, jitter: float, failures: int, chance: float) -> None:
    """Whatever the numbers and however many failures: a wait is finite, not below 0 and not above the longest."""
    retry = Retry(delay_secs=delay, factor=factor, max_delay_secs=most, jitter=jitter)
    wait_secs = retry.backoff_secs(failures, chance)
    assert math.isfinite(wait_secs)
    assert 0 <= wait_secs <= most * (1 + 1e-9)


FAST = Retry(attempts=3, delay_secs=1, jitter=0)
WAITS: list[Any] = [
    pytest.param(FAST, ValueError(), 1, None, 1, id="first-failure"),
    pytest.param(FAST, ValueError(), 2, None, 2, id="second-failure"),
    pytest.param(FAST, ValueError(), 3, None, None, id="all-used"),
    pytest.param(Retry(attempts=1), ValueError(), 1, None, None, id="one-execution"),
    pytest.param(Retry(on=TransportError), ValueError(), 1, None, None, id="another-error"),
    pytest.param(
        Retry(on=(KeyError, TransportError), delay_secs=1, jitter=0), TransportError("x"), 1, None, 1, id="that-error"
    ),
    pytest.param(Retry(on=OSError, delay_secs=1, jitter=0), ConnectionError(), 1, None, 1, id="its-subclass"),
    pytest.param(FAST, TimeoutError(), 1, None, 1, id="timeout"),
    pytest.param(FAST, asyncio.CancelledError(), 1, None, None, id="cancelled"),
    pytest.param(FAST, SystemExit(), 1, None, None, id="exit"),
    pytest.param(FAST, ValueError(), 1, 1.01, 1, id="time-enough"),
    pytest.param(FAST, ValueError(), 1, 1.0, None, id="no-time-left-for-it"),
    pytest.param(FAST, OverloadedError("x", 7.0), 1, None, 7, id="asked-for-longer"),
    pytest.param(FAST, OverloadedError("x", 0.1), 1, None, 1, id="asked-for-shorter"),
    pytest.param(FAST, OverloadedError("x"), 1, None, 1, id="asked-for-nothing"),
    pytest.param(FAST, OverloadedError("x", 7.0), 1, 5.0, None, id="asked-for-more-than-is-left"),
]


@pytest.mark.parametrize(("retry", "error", "failures", "left", "wait_secs"), WAITS)
def test_wait(retry: Retry, error: BaseException, failures: int, left: float | None, wait_secs: float | None) -> None:
    """Another execution comes after a wait, or not at all."""
    assert retry.wait_secs(error, failures, chance=0.5, time_left_secs=left) == wait_secs


REFUSED: list[Any] = [
    pytest.param({"attempts": 0}, "attempts=0", id="no-attempts"),
    pytest.param({"attempts": 1.5}, "attempts=1.5", id="half-an-attempt"),
    pytest.param({"delay_secs": -1}, "delay_secs=-1", id="delay"),
    pytest.param({"delay_secs": math.inf}, "delay_secs=inf", id="for-ever"),
    pytest.param({"max_delay_secs": math.nan}, "max_delay_secs=nan", id="nan"),
    pytest.param({"factor": 0.5}, "factor=0.5", id="shrinking"),
    pytest.param({"jitter": 1.1}, "jitter=1.1", id="jitter"),
    pytest.param({"on": ()}, r"on=\(\)", id="no-errors"),
    pytest.param({"on": asyncio.CancelledError}, "exception classes", id="cancellation"),
    pytest.param({"on": "ValueError"}, "exception classes", id="a-name"),
]


@pytest.mark.parametrize(("values", "why"), REFUSED)
def test_refused(values: dict[str, Any], why: str) -> None:
    """A policy that means nothing is refused when it is made."""
    with pytest.raises(ValidationError, match=why):
        Retry(**values)
