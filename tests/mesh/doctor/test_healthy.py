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
        *("port", "tcp", "tls", "clock", "policy", "peer", "call", "token", "enforced", "lane")
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


async def test_sidecar_by_name(start_pair: Any, examine: Any, ports: Any) -> None:
    """A name is looked up, and the addresses that sidecars would dial are gone to."""
    mesh = await start_pair(dial={"analyst": f"localhost:{ports()}"})
    report = await examine(mesh)
    assert report.problems == ()
    checks = [finding.check for finding in report.findings if finding.subject == "intake -> analyst"]
    assert checks == ["port", "dns", "tcp", "tls", "clock", "policy", "peer", "call", "token", "enforced", "lane"]


async def test_several_replicas(start_pair: Any, examine: Any, ports: Any) -> None:
    """Each replica of a peer is asked by itself, and the one that is down is named, though calls still go well."""
    listens = [f"127.0.0.1:{ports()}", f"127.0.0.1:{ports()}"]
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": listens},
    }
    report = await examine(await start_pair(extra={"peers": peers}))
    assert [(finding.subject, finding.cause) for finding in report.problems] == [("analyst", "peer-down")]
    assert listens[1] in report.problems[0].detail
