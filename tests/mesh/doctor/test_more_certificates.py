"""Names that only a region's own authority may issue, lists that do not cover an issuer, servers that are no sidecar."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority, LeafRequest, build_leaf
from blazen_certs.issuing import load_issuing_key
from blazen_mesh.doctor import Report
from blazen_peer.identity import PeerId

pytestmark = pytest.mark.envoy
HOP = "intake -> analyst"
REGIONS = {"regions": ["eu", "us"]}


def problems(report: Report, subject: str = HOP) -> list[tuple[str, str | None]]:
    """Return what is wrong with *subject*: what was looked at, and the cause."""
    return [(finding.check, finding.cause) for finding in report.problems if finding.subject == subject]


def minted_by(authority: Authority, region: str, peer: PeerId, home: Path) -> Path:
    """Write an identity of *peer* that *region*'s authority has signed, whatever its own checks say of that."""
    issuer = authority.trust().issuer(region)
    key = ec.generate_private_key(ec.SECP256R1())
    request = LeafRequest(peer, (), timedelta(hours=1))
    serial = x509.random_serial_number()
    builder = build_leaf(request, key.public_key(), issuer=issuer.certificate, serial=serial, now=datetime.now(UTC))
    leaf = builder.sign(load_issuing_key(issuer), hashes.SHA256())
    shutil.copytree(authority.issue("bystander", region=region).path / "current", home / "v1")
    pem = serialization.Encoding.PEM
    (home / "v1" / "tls.crt").write_bytes(leaf.public_bytes(pem) + issuer.certificate.public_bytes(pem))
    (home / "v1" / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (home / "current").symlink_to("v1")
    return home


def two_regions(ports: Any) -> dict[str, Any]:
    """Return a mesh file with intake in eu and analyst in us."""
    peers = {
        "intake": {"region": "eu", "sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}"},
        "analyst": {"region": "us", "sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}"},
    }
    peers["intake"]["egress"] = {"analyst": ports()}
    return {**REGIONS, "peers": peers}


@pytest.fixture
def authority(short_dir: Path) -> Authority:
    """An authority of two regions."""
    return Authority.create(short_dir / "regional", "mesh.test", regions=("eu", "us"))


def of_their_regions(authority: Authority) -> dict[str, Path]:
    """Return an identity of each node, as its own region's authority has signed it."""
    return {node: authority.issue(node, region=region).path for node, region in (("intake", "eu"), ("analyst", "us"))}


async def test_two_regions(start_pair: Any, examine: Any, authority: Authority, ports: Any) -> None:
    """Identities of two regions, each of its own authority, are fine."""
    identities = {
        "intake": authority.issue("intake", region="eu").path,
        "analyst": authority.issue("analyst", region="us").path,
    }
    report = await examine(await start_pair(identities=identities, extra=two_regions(ports)))
    assert [finding for finding in report.findings if finding.state != "fine"] == []


@pytest.mark.parametrize("both", [True, False], ids=["both-logs", "this-end-only"])
async def test_callee_of_the_wrong_region(
    start_pair: Any, examine: Any, authority: Authority, ports: Any, tmp_path: Path, both: bool
) -> None:
    """The authority of eu has signed a name of us: the caller refuses the callee, by the name constraint."""
    forged = minted_by(authority, "eu", PeerId("us.mesh.test", "analyst"), tmp_path)
    identities = {"intake": authority.issue("intake", region="eu").path, "analyst": forged}
    report = await examine(await start_pair(identities=identities, extra=two_regions(ports)), at=None if both else ["intake"])
    assert problems(report) == [("tls", "callee-forbidden-name")]


async def test_caller_of_the_wrong_region(
    start_pair: Any, examine: Any, authority: Authority, ports: Any, tmp_path: Path
) -> None:
    """The authority of us has signed a name of eu: the callee refuses the caller, and its log says why."""
    forged = minted_by(authority, "us", PeerId("eu.mesh.test", "intake"), tmp_path)
    identities = {"intake": forged, "analyst": authority.issue("analyst", region="us").path}
    report = await examine(await start_pair(identities=identities, extra=two_regions(ports)))
    assert problems(report) == [("tls", "caller-forbidden-name")]


async def test_list_that_does_not_cover_the_issuer(start_pair: Any, examine: Any, authority: Authority, ports: Any) -> None:
    """The callee has no list of the caller's region: it refuses that region's nodes."""
    identities = {
        "intake": authority.issue("intake", region="eu").path,
        "analyst": authority.issue("analyst", region="us").path,
    }
    current = identities["analyst"] / "current"
    only_us = authority.trust().issuer("us").crl
    (current / "crl.pem").write_bytes(only_us.public_bytes(serialization.Encoding.PEM))
    report = await examine(await start_pair(identities=identities, extra=two_regions(ports)))
    assert problems(report) == [("tls", "callee-crl-missing")]


@contextlib.asynccontextmanager
async def tls_server(mesh: Any, *, alpn: bool = True, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> AsyncIterator[None]:
    """Have a TLS server with analyst's certificate where its sidecar should be; after the handshake it says nothing."""
    current = mesh.identities["analyst"] / "current"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(current / "tls.crt", current / "tls.key")
    context.maximum_version = newest
    if alpn:
        context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", mesh.definition.peers["analyst"].sidecar.port)) as server:

        def serve() -> None:
            # In a thread, since asyncio's server drops the alert of a handshake that fails.
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
                    if not alpn:
                        secure.sendall(b"hello")
                    while secure.recv(1024):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        pytest.param({"alpn": False}, "alpn", id="no-http-2"),
        pytest.param({"newest": ssl.TLSVersion.TLSv1_2}, "tls-version", id="tls-1.2"),
        pytest.param({}, "no-answer", id="silent"),
    ],
)
async def test_server_that_is_no_sidecar(start_pair: Any, examine: Any, options: dict[str, Any], cause: str) -> None:
    """TLS with the right certificate, by a server that cannot be a sidecar."""
    mesh = await start_pair(sidecars=["intake"])
    async with tls_server(mesh, **options):
        assert problems(await examine(mesh, at=["intake"], timeout_secs=1.0)) == [("tls", cause)]


async def test_identity_that_is_not_there(start_pair: Any, examine: Any) -> None:
    """Without the caller's certificate the way is gone as far as it goes, and the rest is not claimed."""
    mesh = await start_pair()
    (mesh.identities["intake"] / "current").unlink()
    report = await examine(mesh)
    assert problems(report, "intake")[0] == ("identity", "identity-missing")
    assert [finding.state for finding in report.findings if (finding.subject, finding.check) == (HOP, "tls")] == ["unseen"]


async def test_plain_text_caller_is_told_of(start_pair: Any, examine: Any) -> None:
    """Somebody who speaks plain text to the ingress stands in its log."""
    mesh = await start_pair()
    async with grpc.aio.insecure_channel(str(mesh.definition.peers["analyst"].sidecar)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/x/Y")(b"", timeout=2)
    await mesh.wait_log("analyst", log="connection")
    report = await examine(mesh, at=["analyst"])
    assert {finding.cause for finding in report.problems} == {"caller-plain-text"}
