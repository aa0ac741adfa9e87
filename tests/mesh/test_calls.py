"""Calls through two real sidecars: what arrives, and what holds on the way."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.envoy


async def test_call_passes_with_identity_and_proof(mesh: Any) -> None:
    """A call arrives once, with the caller's certified name and the sidecar's proof, each exactly once."""
    assert await mesh.call("intake", "analyst", b"hello") == b"hello"
    (call,) = mesh.peers["analyst"].calls
    (identity,) = call.values("x-forwarded-client-cert")
    assert re.fullmatch(r"By=spiffe://mesh\.test/peer/analyst;Hash=[0-9a-f]{64};URI=spiffe://mesh\.test/peer/intake", identity)
    assert call.values("x-blazen-sidecar-proof") == [mesh.proof_file("analyst").read_text()]


async def test_both_hops_log_the_call_and_no_token(mesh: Any) -> None:
    """Each sidecar writes one line for a call: the method, gRPC status, TLS version and both names; never the token."""
    await mesh.call("intake", "analyst", metadata=[("authorization", "Bearer canary-5f1d"), ("x-request-id", "req-1")])
    (out,) = await mesh.wait_log("intake", log="call")
    (into,) = await mesh.wait_log("analyst", log="call")
    assert out["upstream_uri"] == "spiffe://mesh.test/peer/analyst"
    assert into["peer_uri"] == "spiffe://mesh.test/peer/intake"
    assert (out["upstream_tls_version"], into["tls_version"]) == ("TLSv1.3", "TLSv1.3")
    assert (out["grpc_status"], into["grpc_status"]) == ("OK", "OK")
    assert (out["request_id"], into["request_id"]) == ("req-1", "req-1")
    assert "canary-5f1d" not in "".join(mesh.lines["intake"] + mesh.lines["analyst"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://mesh.test/peer/analyst", id="identity"),
        pytest.param("x-blazen-sidecar-proof", "forged", id="proof"),
        pytest.param("x-envoy-retry-grpc-on", "unavailable", id="retries"),
        pytest.param("x-envoy-upstream-rq-timeout-ms", "1", id="timeout"),
    ],
)
async def test_forged_header_never_arrives(mesh: Any, name: str, value: str) -> None:
    """What only sidecars may say is taken off a caller, though it be sent twice, and does nothing."""

    async def after_a_while(request: bytes) -> bytes:
        await asyncio.sleep(0.2)
        return request

    mesh.peers["analyst"].answer = after_a_while
    await mesh.call("intake", "analyst", metadata=[(name, value), (name, value)])
    (call,) = mesh.peers["analyst"].calls
    assert value not in call.values(name)
    assert len(call.values(name)) <= 1
    assert call.values("x-blazen-sidecar-proof") == [mesh.proof_file("analyst").read_text()]


async def test_callers_sidecar_cannot_forge_either(mesh: Any) -> None:
    """A caller that speaks TLS itself, in place of its sidecar, forges no name, no proof and no timeout at the ingress."""
    current = mesh.identities["intake"] / "current"
    files = [(current / name).read_bytes() for name in ("bundle.crt", "tls.key", "tls.crt")]
    options = [("grpc.ssl_target_name_override", "analyst.mesh.test")]
    forged = [
        ("x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://mesh.test/peer/analyst"),
        ("x-blazen-sidecar-proof", "forged"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
    ]
    address = str(mesh.definition.peers["analyst"].sidecar)
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options) as channel:
        assert await mesh.call("intake", "analyst", metadata=forged * 2, channel=channel) == b"hello"
    (call,) = mesh.peers["analyst"].calls
    (identity,) = call.values("x-forwarded-client-cert")
    assert identity.endswith(";URI=spiffe://mesh.test/peer/intake")
    assert "peer/analyst" not in identity.partition(";Hash=")[2]
    assert call.values("x-blazen-sidecar-proof") == [mesh.proof_file("analyst").read_text()]


async def test_duplicate_authorization_arrives_joined(mesh: Any) -> None:
    """Two ``authorization`` headers arrive as something that the gate can tell from one."""
    await mesh.call("intake", "analyst", metadata=[("authorization", "Bearer one"), ("authorization", "Bearer two")])
    (call,) = mesh.peers["analyst"].calls
    assert call.values("authorization") in (["Bearer one,Bearer two"], ["Bearer one", "Bearer two"])


async def test_large_message_streams_through(mesh: Any) -> None:
    """64 MiB pass both ways, though a sidecar holds 1 MiB at most."""
    payload = bytes(64 * 1024 * 1024)
    assert len(await mesh.call("intake", "analyst", payload, timeout=60)) == len(payload)


async def test_many_calls_wait_on_one_connection(mesh: Any) -> None:
    """1,500 calls of one channel are all with the peer at once before the first is answered; each gets its own answer."""
    total = 1500
    all_there = asyncio.Event()

    async def wait_for_all(request: bytes) -> bytes:
        if len(mesh.peers["analyst"].calls) == total:
            all_there.set()
        await all_there.wait()
        return request

    mesh.peers["analyst"].answer = wait_for_all
    channel = mesh.channel("intake", "analyst")
    requests = [str(number).encode() for number in range(total)]
    answers = await asyncio.gather(
        *(mesh.call("intake", "analyst", request, channel=channel, timeout=60) for request in requests)
    )
    assert answers == requests
    logged = await mesh.wait_log("intake", count=total, log="call", grpc_status="OK")
    assert len({entry["connection_id"] for entry in logged}) == 1


async def test_health_check_reaches_the_peer(mesh: Any) -> None:
    """The standard health RPC travels like any call: SERVING with a peer, UNAVAILABLE without."""
    stub = health_pb2_grpc.HealthStub(mesh.channel("intake", "analyst"))
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await mesh.peers["analyst"].server.stop(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_node_called_n(start_mesh: Any) -> None:
    """Names that YAML takes for truth values or numbers are names."""
    mesh = await start_mesh(("n", "1e3"), (("n", "1e3"),))
    assert await mesh.call("n", "1e3") == b"hello"


async def test_token_injection_overwrites(start_mesh: Any) -> None:
    """An injecting egress port sends the node's token, whatever the caller sent and however often."""
    mesh = await start_mesh(inject=[("intake", "analyst")], token="a-token\n")
    token = "a-token"
    await mesh.call("intake", "analyst")
    await mesh.call("intake", "analyst", metadata=[("authorization", "Bearer a"), ("authorization", "Bearer b")])
    assert [call.values("authorization") for call in mesh.peers["analyst"].calls] == [[f"Bearer {token}"]] * 2
