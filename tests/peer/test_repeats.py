"""When a client may repeat a call: how often, after how long, and to which process."""

from __future__ import annotations

import pytest

from blazen_peer.errors import OtherProcessError, TlsError, TransportError
from blazen_peer.repeats import Repeats

BROKE, REFUSED = TransportError("broke off"), TransportError("refused", may_have_run=False)
OTHER = OtherProcessError("another process answers", "b" * 32)


def delays(repeats: Repeats, *errors: TransportError) -> list[float | None]:
    return [repeats.delay_secs(error, 1.0) for error in errors]


CASES = [
    pytest.param(0, "a", [BROKE], [None], True, id="none-unless-asked"),
    pytest.param(0, "a", [REFUSED], [None], False, id="none-unless-asked-and-nothing-ran"),
    pytest.param(3, "a", [BROKE] * 4, [0.1, 0.2, 0.4, None], True, id="as-often-as-asked"),
    pytest.param(3, None, [REFUSED] * 4, [0.1, 0.2, 0.4, None], False, id="what-never-started-anywhere"),
    pytest.param(3, None, [BROKE], [None], True, id="what-may-have-started-not-at-a-peer-that-does-not-tell"),
    pytest.param(3, "a", [TlsError("no")], [None], False, id="a-certificate-gets-no-better"),
    pytest.param(3, "a", [OTHER, BROKE], [0.0, 0.2], True, id="another-process-may-have-what-never-started"),
    pytest.param(3, "a", [BROKE, OTHER], [0.1, None], True, id="and-not-what-may-have"),
    pytest.param(3, "a", [BROKE, REFUSED, OTHER], [0.1, 0.2, None], True, id="nor-later"),
    pytest.param(9, "a", [BROKE] * 8, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], True, id="not-ever-longer"),
]


@pytest.mark.parametrize(("retries", "instance_id", "errors", "expected", "may_have_run"), CASES)
def test_delays(
    retries: int, instance_id: str | None, errors: list[TransportError], expected: list[float | None], may_have_run: bool
) -> None:
    """Each failure leads to a wait of its length, or to an end that says of all attempts whether one may have run."""
    repeats = Repeats(retries, instance_id)
    assert delays(repeats, *errors) == pytest.approx(expected)
    final = repeats.final(errors[-1])
    assert final.may_have_run is may_have_run
    assert not isinstance(final, OtherProcessError)


def test_spread() -> None:
    """Chance takes up to half of a wait away, and adds nothing."""
    assert Repeats(1, "a").delay_secs(BROKE, 0.0) == pytest.approx(0.05)
    assert Repeats(1, "a").delay_secs(BROKE, 1.0) == pytest.approx(0.1)


def test_another_process_is_adopted() -> None:
    """A process that took the old one's place gets what never started, and is then the one that may repeat it."""
    repeats = Repeats(2, "a" * 32)
    assert repeats.delay_secs(OTHER, 0) == 0
    assert repeats.instance_id == "b" * 32


def test_progress() -> None:
    """A stream that was heard again may be lost as often again; and what was heard has run."""
    repeats = Repeats(1, "a")
    assert delays(repeats, BROKE) == pytest.approx([0.1])
    repeats.progressed()
    assert delays(repeats, REFUSED, REFUSED) == [pytest.approx(0.1), None]
    assert repeats.final(REFUSED).may_have_run is True
