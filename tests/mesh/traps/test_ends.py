"""Traps 8 and 13: connections that outlive their certificates, and what an end does to calls in flight."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from blazen_certs.upkeep import revoke_node

pytestmark = pytest.mark.envoy
WAIT_SECS = 30.0
BITES_SECS = 2.0


async def refused_from_now_on(call: Callable[[], Any], within_secs: float) -> float:
    """Make calls until one is refused, see that three more are, and return the seconds until the first."""
    begun = time.monotonic()
    while True:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            break
        assert time.monotonic() - begun < WAIT_SECS
        await asyncio.sleep(0.02)
    took = time.monotonic() - begun
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            await call()
    assert took < within_secs
    return took


@pytest.mark.parametrize("age_secs", [pytest.param(4, id="bounded"), pytest.param(3600, id="an-hour")])
async def test_trap_08_revocation_and_open_connections(
    start_mesh: Any, certificates: Any, direct: Callable[..., grpc.aio.Channel], age_secs: int
) -> None:
    """A revocation bites new connections within two seconds. The open one is served until the connection age ends it."""
    mesh = await start_mesh(extra={"connection_age_secs": age_secs})
    open_one = mesh.channel("intake", "analyst")  # and behind it, one of intake's sidecar to analyst's
    await mesh.call("intake", "analyst", channel=open_one)
    await asyncio.to_thread(revoke_node, certificates, "intake", now=datetime.now(UTC))

    async def on_a_new_one() -> None:
        async with direct(mesh, "intake", "analyst") as channel:
            await mesh.call("intake", "analyst", channel=channel)

    async def on_the_open_one() -> None:
        await mesh.call("intake", "analyst", channel=open_one)

    await refused_from_now_on(on_a_new_one, BITES_SECS)
    if age_secs == 4:
        await refused_from_now_on(on_the_open_one, age_secs)
    else:
        await on_the_open_one()


@pytest.mark.parametrize("in_order", [pytest.param(True, id="our-order"), pytest.param(False, id="sigterm-at-once")])
async def test_trap_13_sigterm_drops_calls_in_flight(mesh: Any, in_order: bool) -> None:
    """SIGTERM ends Envoy at once, with whatever is in flight. Drained first, it answers, and refuses only what comes later."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    call = asyncio.create_task(mesh.call("intake", "analyst", timeout=20))
    await begun.wait()
    sidecar = mesh.sidecars["analyst"]
    if in_order:
        draining = asyncio.create_task(sidecar.drain(WAIT_SECS))
        await asyncio.wait([draining], timeout=0.3)
        assert not draining.done()
        go_on.set()
        assert await call == b"hello"
        assert await draining
        assert await sidecar.stop()
    else:
        sidecar.child.send(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(mesh.peers["analyst"].calls) == 1
