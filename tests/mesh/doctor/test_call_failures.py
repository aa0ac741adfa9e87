"""The failure dictionary, from the handshake on: policy, token, peer, clock, time limits, and what the logs alone tell."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from blazen_mesh.child import Child
from blazen_mesh.doctor import Finding, Report
from blazen_mesh.render import ensure_secret
from blazen_peer.policy import METHODS

pytestmark = pytest.mark.envoy
HOP = "intake -> analyst"
STAND_IN = Path(__file__).parents[1] / "stand_in.py"
WAIT_SECS = 30.0
OTHER_TOKEN = "another-token-that-the-peer-does-not-have-01"


def only_problem(report: Report, subject: str = HOP) -> Finding:
    """Return the one problem of *subject*."""
    found = [finding for finding in report.problems if finding.subject == subject]
    assert len(found) == 1, "\n".join(map(str, report.findings))
    return found[0]


def said(finding: Finding) -> tuple[str, str | None]:
    """Return what was looked at, and which cause was named."""
    return finding.check, finding.cause


async def echo(request: bytes) -> bytes:
    """Answer with the request."""
    return request


async def test_policy_denies(start_pair: Any, examine: Any) -> None:
    """The callee's sidecar was rendered before the flow existed."""
    nodes = ("intake", "analyst", "archive")
    old = await start_pair(nodes, (("archive", "analyst"),), sidecars=["analyst"], serve=["analyst"])
    dial = {"analyst": old.definition.peers["analyst"].sidecar}
    mesh = await start_pair(nodes, (("intake", "analyst"),), sidecars=["intake"], dial=dial, serve=["intake"])
    finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("policy", "policy-denies")
    assert "render analyst anew" in finding.fix


async def test_peer_behind_the_ingress_is_down(start_pair: Any, examine: Any) -> None:
    """The callee's sidecar serves, and nothing listens behind it: seen from the caller, and from the callee's machine."""
    mesh = await start_pair(serve=["intake"])
    report = await examine(mesh)
    assert said(only_problem(report)) == ("peer", "peer-down")
    assert "start its peer" in only_problem(report).fix
    assert said(only_problem(report, "analyst")) == ("peer", "peer-down")
    assert said(only_problem(await examine(mesh, at=["intake"]))) == ("peer", "peer-down")


async def test_peer_does_not_serve(start_pair: Any, examine: Any) -> None:
    """The peer is there and says NOT_SERVING, as one that drains."""
    mesh = await start_pair(serve=["intake"])
    server, health = grpc.aio.server(), HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(mesh.listen("analyst"))
    await server.start()
    await health.enter_graceful_shutdown()
    finding = only_problem(await examine(mesh, at=["intake"]))
    await server.stop(0)
    assert said(finding) == ("peer", "peer-not-serving")
    assert "drains" in finding.fix


@pytest.mark.parametrize(
    ("token", "cause", "fix"),
    [
        pytest.param({"BLAZEN_PEER_TOKEN": OTHER_TOKEN}, "bad-token", "the same token", id="another"),
        pytest.param({}, "no-token", "BLAZEN_PEER_TOKEN_FILE", id="none"),
    ],
)
async def test_bad_token(start_pair: Any, examine: Any, token: dict[str, str], cause: str, fix: str) -> None:
    """The way is fine; the peer does not take the token, or there is none to give."""
    mesh = await start_pair()
    finding = only_problem(await examine(mesh, token=token))
    assert said(finding) == ("token", cause)
    assert fix in finding.fix
    assert OTHER_TOKEN not in str(finding)


async def test_wrong_injected_token(start_pair: Any, examine: Any) -> None:
    """The sidecar itself adds a token that the peer does not take; the environment's good one does not hide it."""
    mesh = await start_pair(inject=[("intake", "analyst")], injected=OTHER_TOKEN)
    assert said(only_problem(await examine(mesh))) == ("token", "bad-token")


async def test_wrong_proof(start_pair: Any, examine: Any, tmp_path: Path) -> None:
    """The peer was given another proof than its sidecar's, so it believes no caller's name."""
    ensure_secret(tmp_path / "proof")
    finding = only_problem(await examine(await start_pair(proofs={"analyst": tmp_path / "proof"})))
    assert said(finding) == ("token", "peer-refuses")
    assert "--sidecar-proof-file" in finding.fix


async def test_clock_skew(start_pair: Any, examine: Any) -> None:
    """This machine's clock is a minute behind the callee's: its answer's date tells."""
    mesh = await start_pair()
    report = await examine(mesh, now=lambda: datetime.now(UTC) - timedelta(minutes=1))
    finding = only_problem(report)
    assert said(finding) == ("clock", "clock-skew")
    assert re.search(r"analyst's is (59|60|61) s ahead", finding.detail)
    assert "NTP" in finding.fix


async def slow(_: bytes) -> bytes:
    """Answer later than anybody waits."""
    await asyncio.sleep(30)
    return b""


async def test_callers_deadline(start_pair: Any, examine: Any) -> None:
    """A call that its own deadline ended stands in the log; once the like of it went well, it is but a warning."""
    mesh = await start_pair(serve=["intake"])
    peer = await mesh.start_peer("analyst", slow)
    async with asyncio.timeout(WAIT_SECS):
        # Whether the sidecar or the caller ends it is a race, and only the sidecar writes why.
        while not mesh.log("intake", grpc_status="DeadlineExceeded"):
            with pytest.raises(grpc.aio.AioRpcError):
                await mesh.call("intake", "analyst", timeout=0.1)
            await mesh.wait_log("intake", log="call")
    finding = only_problem(await examine(mesh))
    assert said(finding) == ("log", "deadline")
    assert "timeout_secs" in finding.fix
    peer.answer = echo
    good = len(mesh.log("intake", grpc_status="OK"))
    await mesh.call("intake", "analyst")
    await mesh.wait_log("intake", good + 1, grpc_status="OK")
    report = await examine(mesh)
    assert report.problems == ()
    assert [finding.cause for finding in report.findings if finding.state == "warning"] == ["deadline"]


def routes_in(document: Any) -> Iterator[dict[str, Any]]:
    """Yield every route that stands somewhere in *document*."""
    if isinstance(document, dict):
        yield from document.get("routes", ())
    for inner in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from routes_in(inner)


async def test_time_limit_of_a_sidecar(start_pair: Any, examine: Any) -> None:
    """A sidecar that somebody has given a time limit of its own ends a call before its deadline."""
    mesh = await start_pair(serve=["intake"], sidecars=["analyst"])
    await mesh.start_peer("analyst", slow)

    def limited(documents: dict[str, Any]) -> None:
        for route in routes_in(documents["lds.json"]):
            route["route"] = {"cluster": route["route"]["cluster"], "timeout": "0.2s"}

    await mesh.start_sidecar("intake", alter=limited)
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.call("intake", "analyst")
    await mesh.wait_log("intake", log="call")
    finding = only_problem(await examine(mesh))
    assert said(finding) == ("log", "route-timeout")
    assert "render both sidecars" in finding.fix


async def test_peer_that_died_during_a_call(start_pair: Any, examine: Any) -> None:
    """The peer ended in the middle of a call: the callee's sidecar saw its connection break, and a peer is back now."""
    mesh = await start_pair(serve=["intake"])
    argv = [sys.executable, str(STAND_IN), "--listen", mesh.listen("analyst"), "--node-id", "analyst"]
    lines: asyncio.Queue[str] = asyncio.Queue()
    peer = await Child.start("analyst", argv, on_line=lambda _, line: lines.put_nowait(line))
    async with asyncio.timeout(WAIT_SECS):
        while "serves" not in await lines.get():
            pass
        call = asyncio.create_task(mesh.call("intake", "analyst", b"60", timeout=60))
        while "call begins" not in await lines.get():
            pass
    await peer.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await mesh.wait_log("intake", log="call", grpc_status="Unavailable")
    await mesh.wait_log("analyst", log="call", grpc_status="Unavailable")
    await mesh.start_peer("analyst")
    finding = only_problem(await examine(mesh))
    assert said(finding) == ("log", "peer-died")
    assert "may have run" in finding.fix


async def test_peer_that_does_not_answer(start_pair: Any, examine: Any) -> None:
    """Somebody listens where the peer should, and says nothing."""
    mesh = await start_pair(serve=["intake"])
    host, _, port = mesh.listen("analyst").rpartition(":")
    with socket.create_server((host, int(port))):
        report = await examine(mesh, timeout_secs=1.0)
    assert said(only_problem(report)) == ("peer", "no-answer")
    assert said(only_problem(report, "analyst")) == ("peer", "no-answer")


async def test_limit_that_was_reached(start_pair: Any, examine: Any) -> None:
    """The callee's sidecar takes one call a second from a caller: more of them are refused, and the log says by what."""
    mesh = await start_pair(serve=["intake"], extra={"calls_per_sec": 1})
    await mesh.start_peer("analyst")
    async with asyncio.timeout(WAIT_SECS):
        while not mesh.log("analyst", grpc_status="ResourceExhausted"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await mesh.call("intake", "analyst")
            await asyncio.sleep(0)
    report = await examine(mesh, since=timedelta(hours=1))
    assert {finding.cause for finding in report.problems} == {"overloaded"}


async def test_no_lane(start_pair: Any, examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that was rendered before there were lanes lets none through: calls go alone, and the doctor says so."""
    monkeypatch.setattr("blazen_mesh.rbac.METHODS", tuple(method for method in METHODS if not method.endswith("/Lane")))
    mesh = await start_pair()
    report = await examine(mesh)
    assert report.problems == ()
    [finding] = [finding for finding in report.findings if finding.check == "lane"]
    assert (finding.state, *said(finding)) == ("warning", "lane", "no-lane")
    assert "there is no lane to be had" in finding.detail
    monkeypatch.undo()
    await mesh.sidecars["analyst"].stop()
    await mesh.start_sidecar("analyst")
    report = await examine(mesh)
    assert [finding.state for finding in report.findings if finding.check == "lane"] == ["fine"]


async def test_unknown_peer(start_pair: Any, examine: Any) -> None:
    """What is no gRPC call finds no way out of the egress port; nothing but the log tells."""
    mesh = await start_pair()
    host, _, port = mesh.egress("intake", "analyst").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    # RFC 9113: preface, settings, and on stream 1 `POST /` for the authority "a", without gRPC's content type.
    block = bytes([0x83, 0x86, 0x84, 0x41, 0x01]) + b"a"
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    writer.write(bytes([0, 0, len(block), 1, 0x05, 0, 0, 0, 1]) + block)
    await mesh.wait_log("intake", log="call", flags="NR")
    writer.close()
    finding = only_problem(await examine(mesh))
    assert said(finding) == ("log", "unknown-peer")
    assert "flow" in finding.fix


async def test_hidden_reason_is_joined(start_pair: Any, examine: Any, certificates: Any) -> None:
    """A call failed without a word, and the callee's log knows why; mended since, it is a warning with the cause."""
    past = datetime.now(UTC) - timedelta(hours=2)
    certificates.issue("intake", now=past, lifetime=timedelta(hours=1))
    mesh = await start_pair(sidecars=["analyst"], identities={"intake": certificates.directory / "nodes" / "intake"})
    sidecar = await mesh.start_sidecar("intake", ready=False)
    await until_called(mesh)
    certificates.issue("intake")
    await sidecar.wait_ready(WAIT_SECS)
    report = await examine(mesh)
    assert report.problems == ()
    refused = {entry["from_address"] for entry in mesh.log("analyst", log="connection") if entry["failure"]}
    assert refused & {entry["upstream_local"] for entry in mesh.log("intake", log="call")}
    (finding,) = [finding for finding in report.findings if finding.state == "warning"]
    assert said(finding) == ("log", "caller-expired")
    assert finding.subject == HOP
    assert "certificate has expired" in finding.detail
    alone = await examine(mesh, at=["intake"])
    assert [finding.cause for finding in alone.findings if finding.state == "warning"] == ["caller-refused"]


async def until_called(mesh: Any) -> None:
    """Call until a call has come as far as the callee's sidecar, which refuses it."""
    async with asyncio.timeout(WAIT_SECS):
        while not mesh.log("analyst", log="connection"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await mesh.call("intake", "analyst")
    await mesh.wait_log("intake", log="call")


async def test_seen_from_the_callee_alone(start_pair: Any, examine: Any) -> None:
    """With the callee's files only, the caller's side cannot be seen, and it is said where it can."""
    mesh = await start_pair()
    report = await examine(mesh, at=["analyst"])
    assert report.problems == ()
    unseen = {finding.subject: finding.fix for finding in report.findings if finding.state == "unseen"}
    assert set(unseen) == {"intake", HOP}
    assert "run there: blazen-mesh doctor --node intake" in unseen["intake"]
    assert "intake's machine" in unseen[HOP]


async def test_seen_from_the_caller_alone(start_pair: Any, examine: Any) -> None:
    """With the caller's files only, every station of the hop is still walked; the callee's own state is not."""
    mesh = await start_pair()
    report = await examine(mesh, at=["intake"], node="intake")
    assert [finding.state for finding in report.findings if finding.subject == HOP] == ["fine"] * 10
    assert {finding.subject for finding in report.findings} == {"intake", HOP}


async def test_nothing_here(start_pair: Any, examine: Any) -> None:
    """On a machine without files of the mesh nothing is claimed to be fine."""
    report = await examine(await start_pair(), at=[])
    assert {finding.state for finding in report.findings} == {"unseen"}
