"""The bucket of a caller: one second's calls at most, filled evenly."""

from __future__ import annotations

import logging

import pytest

from blazen_peer.transport.call_rate import MAX_BUCKETS, CallRate

TAKES = [
    pytest.param(5, [(0, 3, 3), (0, 3, 2), (0, 1, 0)], id="a-burst-of-one-second"),
    pytest.param(5, [(0, 9, 5), (0.2, 9, 1), (0.2, 9, 0), (1.2, 9, 5)], id="filled-evenly"),
    pytest.param(5, [(0, 5, 5), (60, 9, 5)], id="never-more-than-one-second"),
    pytest.param(10, [(0, 10, 10), (0.05, 1, 0), (0.1, 1, 1)], id="part-of-a-call-is-none"),
    pytest.param(1, [(0, 4096, 1), (0.5, 1, 0), (1, 1, 1)], id="one"),
    pytest.param(None, [(0, 4096, 4096), (0, 4096, 4096)], id="no-rate"),
]


@pytest.mark.parametrize(("per_sec", "takes"), TAKES)
def test_take(per_sec: int | None, takes: list[tuple[float, int, int]]) -> None:
    """What may go on, of what comes when."""
    now = 0.0
    rate = CallRate(lambda: per_sec, lambda: now)
    for at, count, granted in takes:
        now = at
        assert rate.take("a", count) == granted
        assert rate.take("b", 1) in (0, 1)  # another bucket


def test_the_rate_changes() -> None:
    """A rate that is lowered holds at once; one that is raised fills faster."""
    now, per_sec = 0.0, 100
    rate = CallRate(lambda: per_sec, lambda: now)
    assert rate.take("a", 10) == 10
    per_sec = 5
    assert rate.take("a", 90) == 5
    per_sec, now = 100, 0.5
    assert rate.take("a", 90) == 50


def test_bounded() -> None:
    """Of callers that come and go no more is kept than of those of the last second."""
    now = 0.0
    rate = CallRate(lambda: 5, lambda: now)
    for number in range(10 * MAX_BUCKETS):
        now = number / MAX_BUCKETS
        assert rate.take(f"caller {number}", 9) == 5
        assert len(rate._buckets) <= 2 * MAX_BUCKETS


def test_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Who is over its rate is named in the log once a second, not for each call."""
    now = 0.0
    rate = CallRate(lambda: 1, lambda: now)
    with caplog.at_level(logging.WARNING):
        for number in range(25):
            now = number / 10
            rate.take("spiffe://mesh.test/peer/a", 9)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["spiffe://mesh.test/peer/a makes more than 1 calls a second by lanes: those beyond are refused"] * 3
