"""Traps 3, 4, 10, 15 and 17: what a handshake demands, and where its failure is told."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.discovery import objections
from blazen_mesh.render import render_node
from blazen_mesh.sidecar import StartError
from blazen_mesh.tls import downstream

pytestmark = pytest.mark.envoy
Walk = Callable[[Any], Iterator[dict[str, Any]]]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def context_of(identity: Path | None, bundle: Path) -> ssl.SSLContext:
    """Return a client context that trusts *bundle* and shows *identity*."""
    context = ssl.create_default_context(cafile=str(bundle))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if identity:
        context.load_cert_chain(identity / "current" / "tls.crt", identity / "current" / "tls.key")
    return context


def greet(
    mesh: Any, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """Speak TLS to analyst's ingress and wait for its first words; return the session, and whether it was an old one.

    Raises:
        OSError: The handshake is refused.
    """
    address = mesh.definition.peers["analyst"].sidecar
    with (
        socket.create_connection((address.host, address.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="analyst.mesh.test", session=session) as tls,
    ):
        tls.sendall(PREFACE)
        assert tls.recv(1)
        return tls.session, tls.session_reused


async def refused(mesh: Any, context: ssl.SSLContext) -> str:
    """Return how analyst's ingress refuses a handshake; fail where it does not."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - TLS alerts and resets are both
        await asyncio.to_thread(greet, mesh, context)
    return str(caught.value)


@pytest.fixture
def bundle(certificates: Authority) -> Path:
    """The mesh's trust bundle."""
    return Path(certificates.issue("bystander").bundle_path)


async def test_trap_03_older_tls_is_refused(mesh: Any, bundle: Path) -> None:
    """TLS 1.2 is refused, with the best of certificates."""
    context = context_of(mesh.identities["intake"], bundle)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "version" in (await refused(mesh, context)).lower()
    (entry,) = await mesh.wait_log("analyst", log="connection")
    assert "UNSUPPORTED_PROTOCOL" in entry["failure"]


async def test_trap_03_a_minimum_alone_breaks_the_way_out(start_mesh: Any, walk: Walk) -> None:
    """With no maximum beside the minimum of 1.3, Envoy's own 1.2 as a client ends every call."""

    def minimum_alone(documents: dict[str, Any]) -> None:
        for item in walk(documents["cds.json"]):
            item.get("tls_params", {}).pop("tls_maximum_protocol_version", None)

    mesh = await start_mesh(sidecars=["analyst"])
    await mesh.start_sidecar("intake", alter=minimum_alone)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst")
    assert "upstream connect error" in str(caught.value.details())


async def test_trap_04_secrets_from_files_need_a_node(mesh: Any, envoy: Path) -> None:
    """Without ``node.id`` and ``node.cluster`` Envoy takes no secret from a file; each sidecar has its own."""
    files = render_node(mesh.definition, "intake", mesh.paths("intake"))
    assert '"id": "intake"' in files["envoy.json"]
    nameless = files["envoy.json"].replace('"id": "intake"', '"id": ""')
    assert "node" in "".join(objections({**files, "envoy.json": nameless}, envoy))


@pytest.mark.parametrize("alters", [pytest.param(False, id="as-rendered"), pytest.param(True, id="resumption-on")])
async def test_trap_10_no_session_is_resumed(start_mesh: Any, bundle: Path, walk: Walk, alters: bool) -> None:
    """A second connection makes a whole handshake, certificate and all; with resumption on it would not."""

    def on(documents: dict[str, Any]) -> None:
        for item in walk(documents["lds.json"]):
            for name in ("disable_stateless_session_resumption", "disable_stateful_session_resumption"):
                item.pop(name, None)

    mesh = await start_mesh(sidecars=["intake"])
    await mesh.start_sidecar("analyst", alter=on if alters else None)
    context = context_of(mesh.identities["intake"], bundle)
    session, _ = await asyncio.to_thread(greet, mesh, context)
    _, reused = await asyncio.to_thread(greet, mesh, context, session)
    assert bool(reused) is alters
    for _ in range(10):  # each of a new connection, by principal
        await mesh.call("intake", "analyst")
    stats = await mesh.sidecars["intake"].admin.stats(r"ssl\.session_reused$")
    assert set(stats.values()) == {0}


async def test_trap_15_the_reason_is_in_the_listeners_log(start_mesh: Any, certificates: Any, short_dir: Path) -> None:
    """TLS 1.3 tells a refused caller nothing; the ingress's connection log says why, and whose connection it was."""
    identity = Authority.create(short_dir / "other", "mesh.test").issue("intake").path
    # It trusts the mesh's CA, so that only analyst's sidecar can be what refuses.
    (identity / "current" / "bundle.crt").write_bytes(certificates.issue("x").bundle_path.read_bytes())
    (identity / "current" / "crl.pem").write_bytes((certificates.issue("x").path / "current" / "crl.pem").read_bytes())
    mesh = await start_mesh(identities={"intake": identity})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    (call,) = await mesh.wait_log("intake", log="call")
    assert "CERTIFICATE" not in str(call["upstream_failure"])
    assert "CERTIFICATE_VERIFY_FAILED" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"]
    assert mesh.log("analyst", log="call") == []
    assert mesh.peers["analyst"].calls == []


async def test_trap_15_no_client_certificate(mesh: Any, bundle: Path) -> None:
    """Without a client certificate the handshake fails, and the listener's log says why."""
    await refused(mesh, context_of(None, bundle))
    (entry,) = await mesh.wait_log("analyst", log="connection")
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in entry["failure"]
    assert mesh.peers["analyst"].calls == []


async def test_trap_17_a_name_that_is_not_in_the_mesh(mesh: Any, certificates: Any, bundle: Path) -> None:
    """A name that the mesh file does not hold fails the handshake, though the CA is right."""
    await refused(mesh, context_of(certificates.issue("bystander").path, bundle))
    assert "SAN_matcher" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"]


async def test_trap_17_names_in_two_places_are_joined_with_or(
    start_mesh: Any, certificates: Any, bundle: Path, walk: Walk
) -> None:
    """Were names in the secret too, either place would be enough: so they are in the context alone."""

    def in_the_secret_too(documents: dict[str, Any]) -> None:
        (secret,) = documents["sds/bundle.json"]["resources"]
        name = {"san_type": "URI", "matcher": {"exact": "spiffe://mesh.test/peer/bystander"}}
        secret["validation_context"]["match_typed_subject_alt_names"] = [name]

    mesh = await start_mesh(sidecars=[])
    rendered = render_node(mesh.definition, "analyst", mesh.paths("analyst"))
    assert "match_typed_subject_alt_names" not in rendered["sds/bundle.json"]
    await mesh.start_sidecar("analyst", alter=in_the_secret_too)
    await asyncio.to_thread(greet, mesh, context_of(certificates.issue("bystander").path, bundle))


async def test_trap_17_a_right_name_of_a_wrong_authority(mesh: Any, bundle: Path, short_dir: Path) -> None:
    """The name alone opens nothing: its certificate must be of the mesh's own CA."""
    await refused(mesh, context_of(Authority.create(short_dir / "other", "mesh.test").issue("intake").path, bundle))
    assert "CERTIFICATE_VERIFY_FAILED" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"]


async def test_trap_17_without_a_trusted_ca_nothing_is_served(start_mesh: Any) -> None:
    """A trust bundle without a CA would mean no check; beside pinned names Envoy takes none, and we are not ready."""

    def no_ca(documents: dict[str, Any]) -> None:
        (secret,) = documents["sds/bundle.json"]["resources"]
        secret["validation_context"] = {}

    mesh = await start_mesh(sidecars=[])
    sidecar = await mesh.start_sidecar("analyst", alter=no_ca, ready=False)
    with pytest.raises(StartError, match="not ready"):
        await sidecar.wait_ready(2.0)


async def test_trap_17_another_nodes_server(start_mesh: Any, certificates: Any) -> None:
    """A server of the same CA with another node's name is refused: the callee's own name is pinned."""
    mesh = await start_mesh(
        ("intake", "analyst", "archive"),
        identities={"analyst": certificates.issue("archive").path},
        sidecars=["intake", "analyst"],
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "SAN_matcher" in (await mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    assert mesh.peers["analyst"].calls == []


async def test_trap_17_no_name_to_pin(mesh: Any) -> None:
    """To pin nothing is refused when rendering: to Envoy it would mean any name."""
    with pytest.raises(ValueError, match="no name to pin"):
        downstream([], mesh.paths("analyst"))
