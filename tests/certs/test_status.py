"""How a store stands: one condition for each node and CA, and an exit code that a timer can go by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority
from blazen_certs.issued import note_shown
from blazen_certs.issuing_renewal import keep_issuing
from blazen_certs.renewal import renewal_time
from blazen_certs.rotation import advance_rotation
from blazen_certs.status import read_status
from blazen_certs.upkeep import keep_lists, keep_nodes, local_nodes, revoke_node

HOUR = timedelta(hours=1)
Change = Callable[[Authority, datetime], object]


def lists_later(authority: Authority, now: datetime) -> None:
    keep_lists(authority, now=now + 30 * HOUR)


@pytest.mark.parametrize(
    ("change", "after", "condition", "ok"),
    [
        pytest.param(lambda a, n: None, 0 * HOUR, "ok", True, id="ok"),
        pytest.param(lambda a, n: None, 17 * HOUR, "due", False, id="due"),
        pytest.param(lambda a, n: None, 25 * HOUR, "expired", False, id="expired"),
        pytest.param(lambda a, n: revoke_node(a, "analyst", now=n), 0 * HOUR, "revoked", True, id="revoked"),
        pytest.param(
            lambda a, n: (a.directory / "nodes/analyst/v1/tls.crt").write_text("x"), 0 * HOUR, "broken", False, id="broken"
        ),
        pytest.param(lambda a, n: shutil.rmtree(a.directory / "nodes/analyst/v1"), 0 * HOUR, "broken", False, id="no-files"),
        pytest.param(lambda a, n: (a.directory / "nodes/analyst/v1/crl.pem").unlink(), 0 * HOUR, "ok", True, id="no-lists"),
    ],
)
def test_condition_of_a_node(
    authority: Authority, now: datetime, change: Change, after: timedelta, condition: str, ok: bool
) -> None:
    """Each condition is found, and only those that somebody must do something about make the whole not ok."""
    authority.issue("analyst", now=now)
    change(authority, now)
    found = read_status(authority.directory, now=now + after)
    assert [node["condition"] for node in found["nodes"]] == [condition]
    assert found["ok"] is ok


def test_lists_that_ended_are_due(authority: Authority, now: datetime) -> None:
    """A certificate that is good beside lists that ended is trouble all the same: its sidecar refuses everybody."""
    authority.issue("analyst", now=now, lifetime=timedelta(days=9))
    lists_later(authority, now)
    found = read_status(authority.directory, now=now + 30 * HOUR)
    assert [node["condition"] for node in found["nodes"]] == ["due"]
    keep_nodes(authority, local_nodes(authority), now=now + 30 * HOUR)
    assert read_status(authority.directory, now=now + 30 * HOUR)["ok"]


def test_what_is_shown_of_a_node(authority: Authority, now: datetime) -> None:
    """Serial, end, seconds left, renewal, root generation, the age of its lists."""
    issued = authority.issue("analyst", now=now)
    (node,) = read_status(authority.directory, now=now + HOUR)["nodes"]
    assert node["serial"] == f"{issued.certificate.serial_number:x}"
    assert node["seconds_left"] == 23 * 3600
    assert datetime.fromisoformat(node["renewal"]) == renewal_time(issued.certificate).replace(microsecond=0)
    assert (node["root_generation"], node["here"], node["revoked"]) == (1, True, None)
    assert node["lists_age_seconds"] == 3600 + 120  # the list too starts two minutes early


def test_node_elsewhere_is_shown_by_what_it_showed(authority: Authority, now: datetime) -> None:
    """A node of another machine is known by its certificate, and by when it last asked."""
    signed = authority.sign("far", authority.issue("near", now=now).certificate.public_key(), now=now)
    far = read_status(authority.directory, now=now)["nodes"][0]
    assert (far["node"], far["here"], far["seen"], far["condition"]) == ("far", False, None, "ok")
    note_shown(authority.directory, "far", signed.certificate, signed.bundle_pem, signed.crl_pem, now=now)
    assert read_status(authority.directory, now=now)["nodes"][0]["seen"] == "2026-01-15T12:00:00Z"


def test_issuing_cas_and_rotation_are_shown(authority: Authority, now: datetime) -> None:
    """Coming, current and retired issuing CAs, and the phase of a root's replacement."""
    keep_issuing(authority, now=now, force=True)
    conditions = [item["condition"] for item in read_status(authority.directory, now=now)["issuing"]]
    assert conditions == ["retired", "ok"]  # there is no node that would have to know it first
    advance_rotation(authority, now=now)
    found = read_status(authority.directory, now=now)
    assert [item["condition"] for item in found["issuing"]] == ["retired", "ok", "coming"]
    assert (found["rotation"]["phase"], [root["generation"] for root in found["roots"]]) == ("trust-both", [1, 2])
    assert read_status(authority.directory, now=now + timedelta(days=70))["issuing"][1]["condition"] == "expired"


def test_issuing_ca_that_is_due_is_trouble(authority: Authority, now: datetime) -> None:
    """At two thirds of its life an issuing CA is due, though its nodes are fine."""
    keep_lists(authority, now=now + timedelta(days=61))
    found = read_status(authority.directory, now=now + timedelta(days=61))
    assert ([item["condition"] for item in found["issuing"]], found["ok"]) == (["due"], False)


def test_machine_of_a_node_alone(authority: Authority, now: datetime, tmp_path: Path) -> None:
    """Where there is no authority, what is there is shown: the node."""
    issued = authority.issue("analyst", now=now)
    shutil.copytree(issued.path, tmp_path / "alone/nodes/analyst", symlinks=True)
    found = read_status(tmp_path / "alone", now=now)
    assert (found["roots"], found["rotation"], [node["condition"] for node in found["nodes"]]) == ([], None, ["ok"])


def test_command(run: Callable[..., Any]) -> None:
    """People see a table, scripts an object; exit code 1 when something is due; nothing at all is wrong use."""
    assert run("status").code == 2
    run("init", "--trust-domain", "mesh.test")
    run("issue", "analyst")
    shown = run("status")
    assert (shown.code, shown.err) == (0, "")
    for text in ("analyst", "ok", "23 h 59 min", "issuing mesh", "here"):
        assert text in shown.out
    run("issue", "gpu", "--lifetime-hours", "0.0001")
    found = run("status", "--json")
    assert found.code == 1
    assert {node["node"]: node["condition"] for node in json.loads(found.out)["nodes"]} in (
        {"analyst": "ok", "gpu": "due"},
        {"analyst": "ok", "gpu": "expired"},
    )
