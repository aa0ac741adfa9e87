"""What a node's own files say, at any time: a table, with real certificates and no sidecar."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority
from blazen_certs.upkeep import revoke_node
from blazen_mesh.doctor.findings import Names
from blazen_mesh.doctor.identity import examine_identity, span_text
from blazen_mesh.doctor.places import NodeFiles
from blazen_peer.identity import PeerId

ISSUED = datetime(2026, 11, 23, 12, tzinfo=UTC)
INTAKE = PeerId("mesh.test", "intake")


def nothing(_: Authority, __: Path) -> None:
    """Leave the identity as it is."""


def revoked(authority: Authority, _: Path) -> None:
    """Put intake on the list."""
    revoke_node(authority, "intake", now=ISSUED + timedelta(minutes=1))


def without(name: str) -> Callable[[Authority, Path], None]:
    """Take a file away."""
    return lambda _, current: (current / name).unlink()


def with_others(*names: str) -> Callable[[Authority, Path], None]:
    """Put in the files of another authority's identity."""

    def change(_: Authority, current: Path) -> None:
        other = Authority.create(current.parents[3] / "other", "mesh.test", now=ISSUED).issue("intake", now=ISSUED)
        for name in names:
            (current / name).write_bytes((other.path / "current" / name).read_bytes())

    return change


def garbage(_: Authority, current: Path) -> None:
    """Write what is no certificate."""
    (current / "tls.crt").write_text("no certificate")


HOUR, DAY = timedelta(hours=1), timedelta(hours=24)
CASES = [
    pytest.param(nothing, HOUR, [], id="fine"),
    pytest.param(nothing, 21 * HOUR, ["certificate-expires-soon", "crl-expires-soon"], id="ends-soon"),
    pytest.param(nothing, 25 * HOUR, ["certificate-expired", "crl-expired"], id="ended"),
    pytest.param(nothing, -HOUR, ["certificate-not-yet-valid", "crl-not-yet-valid"], id="clock-behind"),
    pytest.param(revoked, HOUR, ["certificate-revoked"], id="revoked"),
    pytest.param(without("tls.crt"), HOUR, ["identity-missing"], id="no-certificate"),
    pytest.param(without("tls.key"), HOUR, ["identity-missing"], id="no-key"),
    pytest.param(without("bundle.crt"), HOUR, ["identity-missing"], id="no-bundle"),
    pytest.param(without("crl.pem"), HOUR, ["crl-missing"], id="no-list"),
    pytest.param(garbage, HOUR, ["identity-broken"], id="garbage"),
    pytest.param(with_others("tls.key"), HOUR, ["identity-broken"], id="other-key"),
    pytest.param(with_others("bundle.crt"), HOUR, ["certificate-unknown-authority"], id="other-bundle"),
    pytest.param(with_others("crl.pem"), HOUR, ["crl-missing"], id="other-list"),
]


def examined(authority: Authority, after: timedelta, expected: PeerId = INTAKE) -> tuple[list[Any], Any]:
    """Return what is found of intake's identity, that much later."""
    home = authority.directory / "nodes" / "intake"
    files = NodeFiles("intake", home, home, home / "admin.sock", wants_crl=True, token_file=None, log=None)
    return examine_identity(Names("intake", "intake"), files, expected, ISSUED + after)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued intake."""
    found = Authority.create(tmp_path / "certs", "mesh.test", now=ISSUED)
    found.issue("intake", now=ISSUED)
    return found


@pytest.mark.parametrize(("change", "after", "causes"), CASES)
def test_identity(authority: Authority, change: Callable[[Authority, Path], None], after: timedelta, causes: list[str]) -> None:
    """Each fault of the files has its cause, and a sound identity none."""
    change(authority, authority.directory / "nodes" / "intake" / "current")
    found, _ = examined(authority, after)
    assert [finding.cause for finding in found if finding.cause] == causes
    assert found[0].state == ("fine" if not causes else "warning" if "soon" in causes[0] else "problem")


def test_identity_of_another(authority: Authority) -> None:
    """The name must be the node's, and its trust domain the mesh's."""
    for expected in (PeerId("mesh.test", "analyst"), PeerId("eu.mesh.test", "intake")):
        found, identity = examined(authority, HOUR, expected)
        assert [finding.cause for finding in found] == ["identity-of-another"]
        assert identity is not None


@pytest.mark.parametrize(
    ("span", "text"),
    [
        pytest.param(timedelta(seconds=59), "59 s", id="seconds"),
        pytest.param(timedelta(seconds=-90), "90 s", id="past"),
        pytest.param(timedelta(minutes=5), "5 min", id="minutes"),
        pytest.param(timedelta(hours=47), "47 h", id="hours"),
        pytest.param(timedelta(days=3), "3 d", id="days"),
    ],
)
def test_span(span: timedelta, text: str) -> None:
    """Spans are written in their largest fitting unit."""
    assert span_text(span) == text
