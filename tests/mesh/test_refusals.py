"""Who does not get in, against real sidecars; the peer never hears of any of them."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.sidecar import StartError

pytestmark = pytest.mark.envoy
STAND_IN = Path(__file__).with_name("stand_in.py")


async def refusal(mesh: Any, caller: str = "intake", callee: str = "analyst") -> grpc.aio.AioRpcError:
    """Make a call that must fail, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call(caller, callee)
    return caught.value


async def handshake(mesh: Any, context: ssl.SSLContext, node: str = "analyst") -> str:
    """Open TLS to *node*'s ingress, write, and return what broke the connection; fail where nothing did."""
    address = mesh.definition.peers[node].sidecar
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    async with asyncio.timeout(5):
        try:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            answer = await reader.read(1)
        except (ssl.SSLError, ConnectionError) as error:
            return str(error)
    writer.close()
    pytest.fail(f"the handshake passed and the other end sent {answer!r}")


def trusting(certificates: Any) -> ssl.SSLContext:
    """Return a client context that trusts the mesh's CA and shows nothing itself."""
    bundle = certificates.issue("bystander").bundle_path
    return ssl.create_default_context(cafile=str(bundle))


async def test_no_client_certificate(mesh: Any, certificates: Any) -> None:
    """Without a client certificate the handshake fails, and the listener's log says why."""
    await handshake(mesh, trusting(certificates))
    (entry,) = await mesh.wait_log("analyst", log="connection")
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in entry["failure"]
    assert mesh.peers["analyst"].calls == []


async def test_older_tls(mesh: Any, certificates: Any) -> None:
    """TLS 1.2 is refused, with the best of certificates."""
    context = trusting(certificates)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    current = mesh.identities["intake"] / "current"
    context.load_cert_chain(current / "tls.crt", current / "tls.key")
    assert "version" in (await handshake(mesh, context)).lower()
    (entry,) = await mesh.wait_log("analyst", log="connection")
    assert "UNSUPPORTED_PROTOCOL" in entry["failure"]


async def test_plain_text_to_the_ingress(mesh: Any) -> None:
    """A caller in plain text gets nowhere."""
    async with grpc.aio.insecure_channel(str(mesh.definition.peers["analyst"].sidecar)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.call("intake", "analyst", channel=channel, timeout=2)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert mesh.peers["analyst"].calls == []


async def test_caller_of_another_authority(start_mesh: Any, certificates: Any, short_dir: Path) -> None:
    """A certificate of another CA with the right name in it is refused; each end would be enough to refuse."""
    identity = Authority.create(short_dir / "other", "mesh.test").issue("intake").path
    # It trusts the mesh's CA, so that only analyst's sidecar can be what refuses.
    other = certificates.issue("x").path
    for name in ("bundle.crt", "crl.pem"):
        (identity / "current" / name).write_bytes((other / "current" / name).read_bytes())
    mesh = await start_mesh(identities={"intake": identity})
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await mesh.wait_log("analyst", log="connection"))[0]["failure"].find("CERTIFICATE_VERIFY_FAILED") > 0
    assert mesh.peers["analyst"].calls == []


async def test_server_of_another_authority(start_mesh: Any, certificates: Any, short_dir: Path) -> None:
    """A server whose certificate another CA issued is refused by the caller's sidecar, which says so in its log."""
    other = Authority.create(short_dir / "other", "mesh.test")
    mesh = await start_mesh(identities={"analyst": other.issue("analyst").path})
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in (await mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    assert mesh.peers["analyst"].calls == []


async def test_server_with_another_name(start_mesh: Any, certificates: Any) -> None:
    """A server of the same CA with another node's name is refused: the callee's own name is pinned."""
    mesh = await start_mesh(
        ("intake", "analyst", "archive"),
        identities={"analyst": certificates.issue("archive").path},
        sidecars=["intake", "analyst"],
    )
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "SAN_matcher" in (await mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    assert mesh.peers["analyst"].calls == []


async def test_expired_caller(start_mesh: Any, certificates: Any) -> None:
    """An expired certificate is refused, and the ingress listener's log says that it expired."""
    past = datetime.now(UTC) - timedelta(hours=2)
    identity = certificates.issue("intake", now=past, lifetime=timedelta(hours=1)).path
    mesh = await start_mesh(identities={"intake": identity}, sidecars=["analyst"])
    sidecar = await mesh.start_sidecar("intake", ready=False)
    with pytest.raises(StartError, match="expired"):
        await sidecar.wait_ready(2.0)
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "EXPIRED" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"].upper()
    assert mesh.peers["analyst"].calls == []


async def test_known_node_without_a_flow(start_mesh: Any, certificates: Any) -> None:
    """A node of the mesh that no flow lets in gets PERMISSION_DENIED, and its attempt stands in the callee's log."""
    nodes = ("intake", "analyst", "archive")
    mesh = await start_mesh(nodes, (("intake", "analyst"), ("archive", "intake")), sidecars=["analyst"])
    # Archive's sidecar is told that it may call analyst; analyst's own is not.
    dial = {"analyst": mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(nodes, (("archive", "analyst"),), stand_ins=False, sidecars=["archive"], dial=dial)
    assert (await refusal(stray, "archive")).code() is grpc.StatusCode.PERMISSION_DENIED
    (entry,) = await mesh.wait_log("analyst", log="call")
    assert (entry["peer_uri"], entry["details"]) == (
        "spiffe://mesh.test/peer/archive",
        "rbac_access_denied_matched_policy[none]",
    )
    assert mesh.peers["analyst"].calls == []


async def test_nobody_may_call(start_mesh: Any) -> None:
    """A node without callers denies all: no flows must not mean everyone."""
    mesh = await start_mesh(("intake", "analyst"), (("analyst", "intake"),), sidecars=["analyst"])
    dial = {"analyst": mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(stand_ins=False, sidecars=["intake"], dial=dial)
    assert (await refusal(stray)).code() is grpc.StatusCode.PERMISSION_DENIED
    assert mesh.peers["analyst"].calls == []


async def test_unknown_name_of_the_right_authority(mesh: Any, certificates: Any) -> None:
    """A name that the mesh file does not hold fails the handshake, though the CA is right."""
    context = trusting(certificates)
    current = certificates.issue("bystander").path / "current"
    context.load_cert_chain(current / "tls.crt", current / "tls.key")
    await handshake(mesh, context)
    assert "SAN_matcher" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"]


async def test_remote_sidecar_down(start_mesh: Any) -> None:
    """Without the callee's sidecar the caller gets UNAVAILABLE at once, not at its deadline."""
    mesh = await start_mesh(sidecars=["intake"])
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "URX" in (await mesh.wait_log("intake", log="call"))[0]["flags"]
