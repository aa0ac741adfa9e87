"""Whether a plain-text peer serves, by its own word: the standard gRPC health service."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health_pb2

from blazen_mesh.address import Address

__all__ = ["wait_peer_ready"]

ATTEMPT_SECS = 1.0
POLL_SECS = 0.05


async def wait_peer_ready(address: Address, within_secs: float) -> bool:
    """Wait until the gRPC server on *address* says SERVING, or has no health service; return False after *within_secs*."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_secs):
            while not await _serves(str(address)):  # noqa: ASYNC110 - the peer has to be asked
                await asyncio.sleep(POLL_SECS)
        return True
    return False


async def _serves(target: str) -> bool:
    # A channel of its own for each attempt: an old one waits longer and longer between its connects.
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await check(health_pb2.HealthCheckRequest(), timeout=ATTEMPT_SECS)
        except grpc.aio.AioRpcError as error:
            return bool(error.code() is grpc.StatusCode.UNIMPLEMENTED)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
