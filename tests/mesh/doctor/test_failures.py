"""The failure dictionary: each failure made for real, and the cause and the fix that the doctor names for it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.doctor import Finding, Report
from blazen_mesh.sidecar import StartError

pytestmark = pytest.mark.envoy
HOP = "intake -> analyst"
WAIT_SECS = 30.0


def only_problem(report: Report, subject: str = HOP) -> Finding:
    """Return the one problem of *subject*."""
    found = [finding for finding in report.problems if finding.subject == subject]
    assert len(found) == 1, "\n".join(map(str, report.findings))
    return found[0]


def said(finding: Finding) -> tuple[str, str | None]:
    """Return what was looked at, and which cause was named."""
    return finding.check, finding.cause


async def refused(mesh: Any, *status: str, **options: Any) -> None:
    """Make a call from intake to analyst that fails with one of *status*."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst", **options)
    assert caught.value.code().name in status


@contextlib.asynccontextmanager
async def listener(port: int, answer: bytes) -> AsyncIterator[None]:
    """Have something on *port* that is no sidecar: it says *answer* and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield


async def start_unready(mesh: Any, node: str) -> None:
    """Start *node*'s sidecar though its certificate makes it unready, and wait until its egress port listens."""
    sidecar = await mesh.start_sidecar(node, ready=False)
    with contextlib.suppress(StartError):
        await sidecar.wait_ready(1.0)
    host, _, port = mesh.egress("intake", "analyst").rpartition(":")
    async with asyncio.timeout(WAIT_SECS):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            await asyncio.sleep(0.02)


# -- the way there


async def test_remote_sidecar_down(start_pair: Any, examine: Any) -> None:
    """Nobody listens where the callee's sidecar should."""
    mesh = await start_pair(sidecars=["intake"])
    finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("tcp", "remote-sidecar-down")
    assert "analyst's machine: start its sidecar" in finding.fix
    assert "refused" in finding.detail


async def test_own_sidecar_down(start_pair: Any, examine: Any) -> None:
    """Nobody listens on the egress port, and the admin interface is silent: the caller's own sidecar is down."""
    mesh = await start_pair()
    await mesh.sidecars.pop("intake").stop()
    report = await examine(mesh)
    assert said(only_problem(report)) == ("port", "egress-port-closed")
    finding = only_problem(report, "intake")
    assert said(finding) == ("sidecar", "sidecar-down")
    assert "start it" in finding.fix


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["http-1", "closes"])
async def test_plain_text(start_pair: Any, examine: Any, answer: bytes) -> None:
    """What listens where the callee's sidecar should be does not speak TLS."""
    mesh = await start_pair(sidecars=["intake"])
    async with listener(mesh.definition.peers["analyst"].sidecar.port, answer):
        finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("tls", "plain-text")
    assert "not the peer's own port" in finding.fix


async def test_plain_text_peer(start_pair: Any, examine: Any, ports: Any) -> None:
    """The mesh file names the peer's own plain-text port as its sidecar."""
    port = ports()
    mesh = await start_pair(sidecars=["intake"], dial={"analyst": f"127.0.0.1:{port}"}, serve=["intake"])
    mesh.definition = mesh.definition.model_copy(deep=True)
    peer = grpc.aio.server()
    peer.add_insecure_port(f"127.0.0.1:{port}")
    await peer.start()
    finding = only_problem(await examine(mesh, at=["intake"]))
    await peer.stop(0)
    assert said(finding) == ("tls", "plain-text")


async def test_name_that_does_not_resolve(start_pair: Any, examine: Any) -> None:
    """The name of the callee's sidecar is unknown."""
    mesh = await start_pair(sidecars=["intake"], dial={"analyst": "analyst.invalid:15002"})
    finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("dns", "dns")
    assert "analyst.invalid" in finding.detail
    assert "peers.analyst.sidecar" in finding.fix


async def test_silent_address(start_pair: Any, examine: Any, ports: Any) -> None:
    """Packets to the callee's sidecar vanish: here, a listener whose backlog is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", ports()))
        full.listen(0)
        host, port = full.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((host, port))
        mesh = await start_pair(sidecars=["intake"], dial={"analyst": f"{host}:{port}"})
        finding = only_problem(await examine(mesh, at=["intake"], timeout_secs=0.5))
        for filler in fillers:
            filler.close()
    assert said(finding) == ("tcp", "remote-unreachable")
    assert "firewalls" in finding.fix


# -- certificates


async def test_wrong_server_identity(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """Where the callee should be, another node of the same authority answers."""
    mesh = await start_pair(nodes=("intake", "analyst", "archive"), identities={"analyst": certificates.issue("archive").path})
    report = await examine(mesh)
    finding = only_problem(report)
    assert said(finding) == ("tls", "callee-wrong-name")
    assert "it names spiffe://mesh.test/peer/archive, not spiffe://mesh.test/peer/analyst" in finding.detail
    assert "issue analyst its own" in finding.fix
    assert only_problem(report, "analyst").cause == "identity-of-another"


async def test_server_of_another_authority(start_pair: Any, examine: Any, short_dir: Path) -> None:
    """The callee's certificate is of an authority that the caller does not trust."""
    other = Authority.create(short_dir / "other", "mesh.test").issue("analyst").path
    mesh = await start_pair(identities={"analyst": other})
    report = await examine(mesh, at=["intake"])
    finding = next(finding for finding in report.problems if finding.subject == HOP)
    assert said(finding) == ("tls", "callee-unknown-authority")
    assert "issue analyst from the authority in intake's bundle" in finding.fix


async def test_expired_server(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """The callee's certificate has expired."""
    past = datetime.now(UTC) - timedelta(hours=2)
    expired = certificates.issue("analyst", now=past, lifetime=timedelta(hours=1)).path
    mesh = await start_pair(sidecars=["intake"], identities={"analyst": expired})
    await start_unready(mesh, "analyst")
    finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("tls", "callee-expired")
    assert "blazen-certs" in finding.fix


def expired(certificates: Authority, _: Path) -> Path:
    """Return an identity of intake that ended an hour ago."""
    past = datetime.now(UTC) - timedelta(hours=2)
    return certificates.issue("intake", now=past, lifetime=timedelta(hours=1)).path


def of_another_authority(certificates: Authority, scratch: Path) -> Path:
    """Return intake's identity as another CA made it, trusting the right one, so that only the other end can refuse."""
    path = Authority.create(scratch / "other", "mesh.test").issue("intake").path
    return trusting(path, certificates)


def trusting(path: Path, certificates: Authority) -> Path:
    """Give the identity at *path* the bundle and the revocation lists of *certificates*, as they are now."""
    theirs = certificates.issue("bystander").path / "current"
    for name in ("bundle.crt", "crl.pem"):
        (path / "current" / name).write_bytes((theirs / name).read_bytes())
    return path


def not_yet_valid(certificates: Authority, _: Path) -> Path:
    """Return an identity of intake that begins in an hour, as an authority makes it whose clock is ahead."""
    return trusting(certificates.issue("intake", now=datetime.now(UTC) + timedelta(hours=1)).path, certificates)


OUR_CERTIFICATE = [
    pytest.param(expired, "caller-expired", "certificate has expired", id="expired"),
    pytest.param(of_another_authority, "caller-unknown-authority", "unable to get local issuer", id="unknown-authority"),
    pytest.param(not_yet_valid, "caller-not-yet-valid", "certificate is not yet valid", id="not-yet-valid"),
]


@pytest.mark.parametrize("both", [True, False], ids=["both-logs", "this-end-only"])
@pytest.mark.parametrize(("identity", "cause", "reason"), OUR_CERTIFICATE)
async def test_our_certificate(
    start_pair: Any, examine: Any, certificates: Authority, short_dir: Path, identity: Any, cause: str, reason: str, both: bool
) -> None:
    """The callee refuses our certificate. Its own log gives the exact reason; from this end alone, alert and files name it."""
    mesh = await start_pair(sidecars=["analyst"], identities={"intake": identity(certificates, short_dir)})
    await start_unready(mesh, "intake")
    report = await examine(mesh, at=None if both else ["intake"])
    finding = only_problem(report)
    assert said(finding) == ("tls", cause)
    assert reason in finding.detail if both else "its log has the reason" in finding.detail
    own = [one.cause for one in report.problems if one.subject == "intake" and one.check == "identity"]
    assert own == [cause.replace("caller-", "certificate-")]


async def test_unknown_name(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """The callee's sidecar was rendered from a mesh file that does not have the caller."""
    old = await start_pair(("analyst", "archive"), (("archive", "analyst"),), sidecars=["analyst"], serve=["analyst"])
    dial = {"analyst": old.definition.peers["analyst"].sidecar}
    mesh = await start_pair(sidecars=["intake"], dial=dial, serve=["intake"])
    finding = only_problem(await examine(mesh, at=["intake"]))
    assert said(finding) == ("tls", "caller-unknown-name")
    assert "render analyst anew" in finding.fix


async def test_callers_without_certificate_are_named(start_pair: Any, examine: Any) -> None:
    """Somebody who showed no certificate, and somebody who spoke plain text, stand in the callee's log with their addresses."""
    mesh = await start_pair()
    address = mesh.definition.peers["analyst"].sidecar
    context = ssl.create_default_context(cafile=mesh.identities["intake"] / "current" / "bundle.crt")
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
        writer.write(b"hello")
        await reader.read(1)
        writer.close()
    await mesh.wait_log("analyst", log="connection")
    report = await examine(mesh, at=["analyst"])
    assert [said(finding) for finding in report.problems] == [("log", "caller-missing")]
    finding = report.problems[0]
    assert finding.subject.startswith("127.0.0.1:")
    assert "PEER DID NOT RETURN A CERTIFICATE" in finding.detail


async def test_sidecar_serves_an_old_certificate(start_pair: Any, examine: Any, certificates: Authority) -> None:
    """A certificate that was not moved into place in one step is on disk and not in the sidecar."""
    mesh = await start_pair()
    shutil.copytree(certificates.directory, mesh.root / "copy", symlinks=True)
    newer = Authority.open(mesh.root / "copy").issue("analyst").path / "current"
    for name in ("tls.crt", "tls.key"):
        (mesh.identities["analyst"] / "current" / name).write_bytes((newer / name).read_bytes())
    report = await examine(mesh)
    finding = only_problem(report, "analyst")
    assert said(finding) == ("sidecar", "old-certificate")
    assert "restart the sidecar of analyst" in finding.fix
