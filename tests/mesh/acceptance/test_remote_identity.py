"""Who gets in by the certificate, and what a caller cannot forge. The server demands identity unless a test says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_peer import PermissionDeniedError, TlsError, TransportError

pytestmark = pytest.mark.envoy
both_ways = pytest.mark.usefixtures("way")  # where a call is made at all: that a handshake fails is of neither way
FORGED_IDENTITY = (
    "x-forwarded-client-cert",
    f"By=spiffe://mesh.test/peer/analyst;Hash={'0' * 64};URI=spiffe://mesh.test/peer/archive",
)
FORGED_PROOF = ("x-blazen-sidecar-proof", "a-proof-that-the-caller-has-made-up-0123456789")

FORGERIES = [
    pytest.param([], id="nothing-forged"),
    pytest.param([FORGED_IDENTITY], id="identity"),
    pytest.param([FORGED_PROOF], id="proof"),
    pytest.param([FORGED_IDENTITY, FORGED_PROOF], id="identity-and-proof"),
    pytest.param([FORGED_IDENTITY, FORGED_IDENTITY, FORGED_PROOF, FORGED_PROOF], id="both-twice"),
]


@both_ways
@pytest.mark.parametrize("forged", FORGERIES)
async def test_past_the_sidecar(remote: Any, forged: list[tuple[str, str]]) -> None:
    """Straight to the peer's port with a good token: PERMISSION_DENIED whatever is forged, and nothing is executed."""
    for authorization in (remote.bearer(), remote.bearer(remote.jwt()), remote.bearer(remote.jwt("archive"))):
        with pytest.raises(PermissionDeniedError) as caught:
            await remote.invoke(remote.message("demo::caller"), [authorization, *forged], past_sidecar=True)
        assert caught.value.__cause__.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not remote.begun


@both_ways
async def test_only_the_proof_is_missing_there(remote: Any) -> None:
    """What the forgers lack is the sidecar's secret alone: with it the same header counts, so their refusal rests on it."""
    proof = ("x-blazen-sidecar-proof", remote.mesh.proof_file("analyst").read_text())
    headers = [remote.bearer(), FORGED_IDENTITY, proof]
    answer = await remote.invoke(remote.message("demo::caller"), headers, past_sidecar=True)
    assert answer.result_json == b'"spiffe://mesh.test/peer/archive"'


@both_ways
async def test_real_client_past_the_sidecar(remote: Any) -> None:
    """Our own client straight on the peer's port connects, since health passes, and is refused at its first call."""
    client = await remote.connect(address=remote.straight)
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("echo", ["demo::echo"], "null")
    assert not remote.begun


@both_ways
@pytest.mark.parametrize("forged", FORGERIES[1:])
async def test_forged_through_the_sidecar(remote: Any, forged: list[tuple[str, str]]) -> None:
    """Forged headers through the sidecar are replaced: the step sees the true name, and the token must be of that node."""
    answer = await remote.invoke(remote.message("demo::caller"), [remote.bearer(remote.jwt()), *forged])
    assert answer.result_json == b'"spiffe://mesh.test/peer/intake"'
    with pytest.raises(PermissionDeniedError):
        await remote.invoke(remote.message("demo::caller"), [remote.bearer(remote.jwt("archive")), *forged])
    assert remote.begun == {"demo::caller": 1}


@both_ways
async def test_without_require_identity_a_name_is_only_claimed(start_remote: Any) -> None:
    """A server that does not demand identity serves local callers, as what their token claims and never as a proven name;
    a forged proof is refused all the same."""
    remote = await start_remote(server={"require_identity": False})
    request, jwt = remote.message("demo::caller"), remote.bearer(remote.jwt())
    answer = await remote.invoke(request, [jwt, FORGED_IDENTITY], past_sidecar=True)
    assert answer.result_json == b'"claimed:intake"'
    assert (await remote.invoke(request, [remote.bearer()], past_sidecar=True)).result_json == b'"anonymous"'
    assert (await remote.invoke(request, [jwt])).result_json == b'"spiffe://mesh.test/peer/intake"'
    with pytest.raises(PermissionDeniedError):
        await remote.invoke(request, [jwt, FORGED_PROOF], past_sidecar=True)
    assert remote.begun == {"demo::caller": 3}


@both_ways
async def test_require_identity_of_the_command(start_remote: Any, start_process: Any) -> None:
    """``blazen-peer serve --require-identity`` refuses a call past the sidecar and serves one through it."""
    remote = await start_remote(serve=False)
    peer = await start_process(remote.mesh, "analyst", "--require-identity")
    request, jwt = remote.message("demo::strict", {"count": 3}), remote.bearer(remote.jwt())
    for forged in ([], [FORGED_IDENTITY], [FORGED_IDENTITY, FORGED_PROOF]):
        with pytest.raises(PermissionDeniedError):
            await remote.invoke(request, [jwt, *forged], past_sidecar=True)
    assert peer.executions("demo::strict") == 0
    assert (await remote.invoke(request, [jwt])).result_json == b"3"
    assert peer.executions("demo::strict") == 1


def tls_channel(remote: Any, *, certificate: bool) -> grpc.aio.Channel:
    """Return a channel straight to analyst's ingress over TLS, with intake's certificate or none."""
    home = remote.mesh.identities["intake"] / "current"
    shown = [(home / name).read_bytes() for name in ("tls.key", "tls.crt")] if certificate else []
    credentials = grpc.ssl_channel_credentials((home / "bundle.crt").read_bytes(), *shown)
    address = str(remote.mesh.definition.peers["analyst"].sidecar)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "analyst.mesh.test")])


@both_ways
@pytest.mark.parametrize("forged", FORGERIES)
async def test_forged_by_one_who_holds_a_certificate(remote: Any, forged: list[tuple[str, str]]) -> None:
    """Whoever has intake's key and needs no sidecar can forge no more: the ingress itself replaces every such header."""
    async with tls_channel(remote, certificate=True) as channel:
        headers = [remote.bearer(remote.jwt()), *forged]
        answer = await remote.invoke(remote.message("demo::caller"), headers, channel=channel)
    assert answer.result_json == b'"spiffe://mesh.test/peer/intake"'
    assert remote.begun == {"demo::caller": 1}


async def test_no_client_certificate(remote: Any) -> None:
    """With the right token and no client certificate the handshake is refused, and nothing is executed."""
    async with tls_channel(remote, certificate=False) as channel:
        with pytest.raises(TransportError):
            await remote.invoke(remote.message("demo::echo", 1), [remote.bearer(remote.jwt())], channel=channel)
    entries = await remote.mesh.wait_log("analyst", log="connection")
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in entries[0]["failure"]
    assert not remote.begun


Identity = Callable[[Authority, Path], Path]


def of_another_authority(certificates: Authority, scratch: Path) -> Path:
    """Return intake's identity as another CA made it, trusting the right one, so that only the other end can refuse."""
    path = Authority.create(scratch / "other", "mesh.test").issue("intake").path
    bystander = certificates.issue("bystander").path
    for name in ("bundle.crt", "crl.pem"):
        (path / "current" / name).write_bytes((bystander / "current" / name).read_bytes())
    return path


def expired(certificates: Authority, _: Path) -> Path:
    """Return an identity of intake that ended an hour ago."""
    past = datetime.now(UTC) - timedelta(hours=2)
    return certificates.issue("intake", now=past, lifetime=timedelta(hours=1)).path


async def listening(address: str) -> None:
    """Wait until something accepts connections at *address*: a sidecar without a live certificate is never ready."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("identity", "failure"),
    [
        pytest.param(of_another_authority, "CERTIFICATE_VERIFY_FAILED", id="other-ca"),
        pytest.param(expired, "certificate_has_expired", id="expired"),
    ],
)
async def test_bad_certificate(
    start_remote: Any, certificates: Authority, short_dir: Path, identity: Identity, failure: str
) -> None:
    """A sidecar with a certificate of another CA, or an expired one, cannot connect its peer; nothing is executed."""
    remote = await start_remote(identities={"intake": identity(certificates, short_dir)}, sidecars=["analyst"])
    await remote.mesh.start_sidecar("intake", ready=False)
    await listening(remote.mesh.egress("intake", "analyst"))
    with pytest.raises(TransportError):
        await remote.connect()
    with pytest.raises(TransportError):
        await remote.invoke(remote.message("demo::echo", 1), [remote.bearer(remote.jwt())])
    assert failure in (await remote.mesh.wait_log("analyst", log="connection"))[0]["failure"]
    assert not remote.begun


async def test_callee_of_another_authority(start_remote: Any, certificates: Authority, short_dir: Path) -> None:
    """A caller whose sidecar does not trust the other end is told, from connect on, that nothing was sent; nothing ran."""
    other = Authority.create(short_dir / "other", "mesh.test").issue("analyst").path
    remote = await start_remote(identities={"analyst": other})
    for attempt in (remote.connect(), remote.invoke(remote.message("demo::echo", 1), [remote.bearer(remote.jwt())])):
        with pytest.raises(TlsError) as caught:
            await attempt
        assert caught.value.may_have_run is False
    assert "CERTIFICATE_VERIFY_FAILED" in (await remote.mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    assert not remote.begun


@both_ways
async def test_node_without_a_flow(start_remote: Any, start_mesh: Any) -> None:
    """A node of the right CA that no flow lets in gets PermissionDeniedError, from connect on; nothing is executed."""
    nodes = ("intake", "analyst", "archive")
    remote = await start_remote(
        nodes=nodes, flows=(("intake", "analyst"), ("archive", "intake")), sidecars=["intake", "analyst"]
    )
    # Archive's sidecar is told that it may call analyst; analyst's own is not.
    dial = {"analyst": remote.mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(nodes, (("archive", "analyst"),), stand_ins=False, sidecars=["archive"], dial=dial)
    with pytest.raises(PermissionDeniedError):
        await remote.connect("archive", address=f"http://{stray.egress('archive', 'analyst')}")
    async with grpc.aio.insecure_channel(stray.egress("archive", "analyst")) as channel:
        for authorization in (remote.bearer(), remote.bearer(remote.jwt("archive"))):
            with pytest.raises(PermissionDeniedError):
                await remote.invoke(remote.message("demo::echo", 1), [authorization], channel=channel)
    assert not remote.begun
    assert (await (await remote.connect()).run_remote_workflow("echo", ["demo::echo"], "1")).result == 1
