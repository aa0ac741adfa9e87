"""Revocation, lists that end, secrets that a sidecar refuses, configurations that are behind, and data classes."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority
from blazen_certs.upkeep import revoke_node
from blazen_mesh.child import Child
from blazen_mesh.doctor import Finding, Report
from blazen_mesh.mesh import parse_mesh
from blazen_mesh.ready import readiness

pytestmark = pytest.mark.envoy
HOP = "intake -> analyst"
WAIT_SECS = 30.0


def problems(report: Report, subject: str = HOP) -> list[tuple[str, str | None]]:
    """Return what is wrong with *subject*: what was looked at, and the cause."""
    return [(finding.check, finding.cause) for finding in report.problems if finding.subject == subject]


def finding(report: Report, cause: str, subject: str = HOP) -> Finding:
    """Return the finding of *cause*."""
    return next(one for one in report.findings if (one.cause, one.subject) == (cause, subject))


async def taken_up(mesh: Any, node: str, since: int) -> None:
    """Wait until *node*'s sidecar has taken up a bundle or a list since it had taken up *since* of them."""
    async with asyncio.timeout(WAIT_SECS):
        while await updates(mesh, node) == since:  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(0.05)


async def updates(mesh: Any, node: str) -> int:
    """Return how often *node*'s sidecar has taken up a bundle."""
    return sum((await mesh.sidecars[node].admin.stats(r"^sds\.bundle\.update_success$")).values())


@pytest.mark.parametrize("both", [True, False], ids=["both-logs", "this-end-only"])
async def test_revoked_caller(start_pair: Any, examine: Any, certificates: Authority, both: bool) -> None:
    """The caller's certificate is revoked: its own list says so, and the callee's sidecar refuses it for that reason."""
    mesh = await start_pair()
    before = await updates(mesh, "analyst")
    revoke_node(certificates, "intake", now=datetime.now(UTC))
    await taken_up(mesh, "analyst", before)
    report = await examine(mesh, at=None if both else ["intake"])
    assert problems(report, "intake") == [("identity", "certificate-revoked")]
    assert ("tls", "caller-revoked") in problems(report)
    words = "certificate revoked" if both else "SSLV3_ALERT_CERTIFICATE_REVOKED"
    assert words in finding(report, "caller-revoked").detail
    assert "blazen-certs issue intake" in finding(report, "caller-revoked").fix


async def test_revoked_callee(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """The callee's certificate is revoked: the caller's own list tells."""
    mesh = await start_pair()
    revoke_node(certificates, "analyst", now=datetime.now(UTC))
    report = await examine(mesh, at=["intake"])
    assert problems(report) == [("tls", "callee-revoked")]
    assert "blazen-certs issue analyst" in finding(report, "callee-revoked").fix


@pytest.mark.parametrize("both", [True, False], ids=["both-logs", "this-end-only"])
async def test_expired_list(start_pair: Any, examine: Any, short_dir: Path, both: bool) -> None:
    """The callee's revocation list has ended, so it refuses everybody. From the other end alone only the refusal is seen."""
    past = datetime.now(UTC) - timedelta(days=3)
    authority = Authority.create(short_dir / "old", "mesh.test", now=past)
    analyst = authority.issue("analyst", now=past, lifetime=timedelta(days=10)).path
    mesh = await start_pair(identities={"analyst": analyst, "intake": authority.issue("intake").path})
    report = await examine(mesh, at=None if both else ["intake"])
    if both:
        assert ("revocation", "crl-expired") in problems(report, "analyst")
        assert problems(report) == [("tls", "callee-crl-expired")]
        assert "blazen-certs crl" in finding(report, "callee-crl-expired").fix
    else:
        assert problems(report) == [("tls", "caller-refused")]
        assert "on analyst's machine: blazen-mesh doctor --node analyst" in finding(report, "caller-refused").fix


async def test_expired_list_of_the_caller(start_pair: Any, examine: Any, short_dir: Path) -> None:
    """The caller's own list has ended: its sidecar refuses the callee, whose certificate is good."""
    past = datetime.now(UTC) - timedelta(days=3)
    authority = Authority.create(short_dir / "old", "mesh.test", now=past)
    intake = authority.issue("intake", now=past, lifetime=timedelta(days=10)).path
    mesh = await start_pair(identities={"intake": intake, "analyst": authority.issue("analyst").path})
    report = await examine(mesh, at=["intake"])
    assert problems(report) == [("tls", "caller-crl-expired")]
    assert ("revocation", "crl-expired") in problems(report, "intake")


async def test_callee_of_the_future(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """The callee's certificate begins in an hour: one of the clocks is wrong."""
    later = certificates.issue("analyst", now=datetime.now(UTC) + timedelta(hours=1)).path
    report = await examine(await start_pair(identities={"analyst": later}), at=["intake"])
    assert ("tls", "callee-not-yet-valid") in problems(report)
    assert "NTP" in finding(report, "callee-not-yet-valid").fix


async def test_refused_secret(start_pair: Any, examine: Any) -> None:
    """A new version with a key that is not the certificate's: the sidecar refuses it and goes on with the former."""
    mesh = await start_pair()
    home = mesh.identities["analyst"]
    shutil.copytree(home / "current", home / "v90")
    (home / "v90" / "tls.key").write_bytes((mesh.identities["intake"] / "current" / "tls.key").read_bytes())
    (home / "next").symlink_to("v90")
    (home / "next").rename(home / "current")
    async with asyncio.timeout(WAIT_SECS):
        while not await mesh.sidecars["analyst"].admin.refused_secrets():  # noqa: ASYNC110 - another process knows
            await asyncio.sleep(0.05)
    report = await examine(mesh)
    assert problems(report, "analyst") == [("identity", "identity-broken"), ("sidecar", "rejected-secret")]
    assert "never put the old files back" in finding(report, "rejected-secret", "analyst").fix
    assert problems(report) == []


async def test_certificate_that_ends_soon(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """A leaf in the last sixth of its life was not renewed in time: a warning, since all still works."""
    begun = datetime.now(UTC) - timedelta(hours=11)
    mesh = await start_pair(identities={"intake": certificates.issue("intake", now=begun, lifetime=timedelta(hours=12)).path})
    report = await examine(mesh)
    assert report.problems == ()
    assert finding(report, "certificate-expires-soon", "intake").state == "warning"


def table(ports: Any, *pairs: tuple[str, str], classes: Sequence[str] = (), **flow: Any) -> dict[str, Any]:
    """Return a mesh file of intake and analyst with a flow, of all *classes*, for each of *pairs*; *flow* is added to each."""
    addresses = {node: {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}"} for node in ("intake", "analyst")}
    ways = {pair: {name: ports() for name in classes} if classes else ports() for pair in pairs}
    egress = {node: {b: ways[a, b] for a, b in pairs if a == node} for node in addresses}
    peers = {node: {**addresses[node], "egress": egress[node]} for node in addresses}
    named = {"workflows": ["work"], "why": "the test says so", **({"data": list(classes)} if classes else {}), **flow}
    flows = [{"from": a, "to": b, **named} for a, b in pairs]
    data = {"data": [{"name": name, "why": "the test says so"} for name in classes]} if classes else {}
    return {"trust_domain": "mesh.test", "peers": peers, "flows": flows, **data}


def without(document: dict[str, Any], caller: str) -> dict[str, Any]:
    """Return a mesh file without *caller*'s flows and ports."""
    peers = {node: {**peer, "egress": {}} if node == caller else peer for node, peer in document["peers"].items()}
    return {**document, "peers": peers, "flows": [flow for flow in document["flows"] if flow["from"] != caller]}


async def test_configuration_that_is_behind(start_pair: Any, examine: Any, ports: Any) -> None:
    """The mesh file has a flow that the sidecars were not rendered with: what they lack is named on both machines."""
    newer = table(ports, ("intake", "analyst"), ("analyst", "intake"))
    mesh = await start_pair(extra=without(newer, "analyst"))
    mesh.definition = parse_mesh(newer)
    report = await examine(mesh)
    assert problems(report, "analyst") == problems(report, "intake") == [("configuration", "stale-configuration")]
    assert "it lacks egress intake on port" in finding(report, "stale-configuration", "analyst").detail
    assert "render intake anew" in finding(report, "stale-configuration", "intake").fix
    assert ("port", "egress-port-closed") in problems(report, "analyst -> intake")
    assert problems(report) == [("enforced", "stale-policy")]


async def test_configuration_that_is_too_wide(start_pair: Any, examine: Any, ports: Any) -> None:
    """The mesh file no longer has a flow that the sidecars still let through: that is found too."""
    wider = table(ports, ("intake", "analyst"), ("analyst", "intake"))
    mesh = await start_pair(extra=wider)
    mesh.definition = parse_mesh(without(wider, "analyst"))
    report = await examine(mesh)
    assert "it still has egress intake on port" in finding(report, "stale-configuration", "analyst").detail
    assert "other flows" in finding(report, "stale-configuration", "intake").detail


async def test_each_data_class_is_a_hop(start_pair: Any, examine: Any, ports: Any) -> None:
    """Every data class has a port, and is walked by itself."""
    mesh = await start_pair(extra=table(ports, ("intake", "analyst"), classes=("personal", "internal")))
    report = await examine(mesh)
    assert report.problems == ()
    for name in ("personal", "internal"):
        assert [one.state for one in report.findings if one.subject == f"{HOP} ({name})"] == ["fine"] * 10


async def test_policy_denies_a_class(start_pair: Any, examine: Any, ports: Any) -> None:
    """The callee's sidecar was rendered before a data class was added to the flow: that class alone is refused there."""
    newer = table(ports, ("intake", "analyst"), classes=("personal", "internal"))
    older = {**newer, "flows": [{**flow, "data": ["personal"]} for flow in newer["flows"]]}
    older["peers"] = {**newer["peers"], "intake": {**newer["peers"]["intake"]}}
    older["peers"]["intake"]["egress"] = {"analyst": {"personal": newer["peers"]["intake"]["egress"]["analyst"]["personal"]}}
    mesh = await start_pair(extra=older, sidecars=["analyst"])
    mesh.definition = parse_mesh(newer)
    await mesh.start_sidecar("intake")
    report = await examine(mesh, at=["intake"])
    assert problems(report, f"{HOP} (internal)") == [("policy", "policy-denies")]
    assert problems(report, f"{HOP} (personal)") == [("enforced", "stale-policy")]


async def test_peer_without_policy(start_pair: Any, examine: Any) -> None:
    """A peer that was not given its policy enforces none: a warning, since the sidecars still do."""
    report = await examine(await start_pair(enforce=False), at=["intake"])
    assert report.problems == ()
    assert finding(report, "no-policy").state == "warning"


async def test_policy_that_cannot_be_read(start_pair: Any, examine: Any) -> None:
    """A policy file that is none any more leaves the former in force, and the caller's machine learns of it."""
    mesh = await start_pair()
    (mesh.root / "analyst" / "policy.json").write_text("{")
    report = await examine(mesh, at=["intake"])
    assert problems(report) == [("enforced", "policy-not-read")]
    assert "render analyst anew" in finding(report, "policy-not-read").fix


async def test_policy_that_is_behind(start_pair: Any, examine: Any, ports: Any) -> None:
    """The mesh file lets a workflow through that the peer's policy does not have: seen from the caller's machine."""
    newer = table(ports, ("intake", "analyst"), workflows=["work", "play"])
    older = {**newer, "flows": [{**flow, "workflows": ["work"]} for flow in newer["flows"]]}
    mesh = await start_pair(extra=older)
    mesh.definition = parse_mesh(newer)
    report = await examine(mesh, at=["intake"])
    assert problems(report) == [("enforced", "stale-policy")]
    assert problems(report, "intake") == [("configuration", "stale-configuration")]


async def test_exception_that_has_ended(start_pair: Any, examine: Any, ports: Any) -> None:
    """A flow whose last day is over is not walked, and its end is a warning."""
    ended = table(ports, ("intake", "analyst"), ("analyst", "intake"))
    ended["flows"][1]["until"] = datetime.now(UTC).date() - timedelta(days=1)
    mesh = await start_pair(extra=ended)
    report = await examine(mesh, at=["intake"])
    assert finding(report, "flow-ended", "analyst -> intake").state == "warning"
    assert {one.subject for one in report.findings if one.state == "fine"} == {"intake", HOP}


@pytest.fixture
async def supervised(start_pair: Any) -> AsyncIterator[Any]:
    """A mesh whose intake is run by `blazen-mesh sidecar`; ``mesh.file`` is its mesh file."""
    mesh = await start_pair(sidecars=["analyst"])
    mesh.file = mesh.write_toml()
    said: list[str] = []
    argv = ["sidecar", "--node", "intake", "--mesh", str(mesh.file), "--identity-dir", str(mesh.identities["intake"])]
    argv = [sys.executable, "-m", "blazen_mesh", *argv, "--config-dir", str(mesh.root / "intake"), "--drain-secs", "1"]
    child = await Child.start("intake", argv, on_line=lambda _, line: said.append(line))
    try:
        async with asyncio.timeout(WAIT_SECS):
            while not (await asyncio.to_thread(readiness, mesh.root / "intake"))["ready"]:
                assert child.returncode is None, said
                await asyncio.sleep(0.1)
        yield mesh
    finally:
        await child.stop(WAIT_SECS)


async def test_supervisor(supervised: Any, examine: Any) -> None:
    """The supervisor's word and its generation are shown; a mesh file that it cannot use makes it discontent."""
    report = await examine(supervised)
    assert report.problems == ()
    (fine,) = [one for one in report.findings if one.check == "supervisor"]
    assert "generation" in fine.detail
    supervised.file.write_text("no mesh file")
    async with asyncio.timeout(WAIT_SECS):
        while not (await asyncio.to_thread(readiness, supervised.root / "intake"))["degraded"]:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.1)
    report = await examine(supervised)
    assert problems(report, "intake") == [("supervisor", "supervisor")]
    assert "mesh.toml" in finding(report, "supervisor", "intake").detail
    assert problems(report) == []
