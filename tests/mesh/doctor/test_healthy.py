"""A mesh in good health: everything is looked at and all of it is fine."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.envoy


async def test_all_fine(start_pair: Any, examine: Any) -> None:
    """Nothing is found in a healthy mesh, and every station of the hop has been visited."""
    mesh = await start_pair()
    report = await examine(mesh)
    assert [finding for finding in report.findings if finding.state != "fine"] == []
    assert [finding.check for finding in report.findings if finding.subject == "intake -> analyst"] == [
        *("port", "tcp", "tls", "clock", "policy", "peer", "call", "token")
    ]
    for node in ("intake", "analyst"):
        assert [finding.check for finding in report.findings if finding.subject == node] == [
            *("identity", "sidecar", "configuration", "peer")
        ]
    assert report.as_object()["ok"]


async def test_of_one_node(start_pair: Any, examine: Any) -> None:
    """``node`` leaves out the hops that neither begin nor end there."""
    flows = (("intake", "analyst"), ("analyst", "archive"), ("archive", "intake"))
    nodes = ("intake", "analyst", "archive")
    mesh = await start_pair(nodes=nodes, flows=flows, serve=nodes)
    report = await examine(mesh, node="archive")
    assert {finding.subject for finding in report.findings} == {*nodes, "analyst -> archive", "archive -> intake"}
    assert report.problems == ()
