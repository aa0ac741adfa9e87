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
