"""A node is revoked while it works: what of it goes on, how long, and what of it was still executed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from blazen_certs.upkeep import revoke_node
from blazen_peer import Context, Event, StartEvent, StopEvent, TransportError

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call
AGE_SECS = 6
BITES_SECS = 2.0
NODES = ("intake", "archive", "analyst")
FLOWS = (("intake", "analyst"), ("archive", "analyst"))


def straight_in(mesh: Any, caller: str, callee: str) -> grpc.aio.Channel:
    """A new TLS connection to *callee*'s ingress with *caller*'s certificate, past that one's own sidecar."""
    current = mesh.identities[caller] / "current"
    files = [(current / name).read_bytes() for name in ("bundle.crt", "tls.key", "tls.crt")]
    options = [("grpc.ssl_target_name_override", f"{callee}.mesh.test"), ("grpc.use_local_subchannel_pool", 1)]
    address = str(mesh.definition.peers[callee].sidecar)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options)


async def until_refused(call: Callable[[], Any]) -> tuple[int, float]:
    """Make calls until one is refused; return how many were answered, and when (monotonic) the last of them was."""
    answered, last = 0, time.monotonic()
    while True:
        try:
            await call()
        except TransportError:
            return answered, last
        answered, last = answered + 1, time.monotonic()
        await asyncio.sleep(0.02)


async def test_revoked_node(start_remote: Any, certificates: Any) -> None:
    """Refused on new connections within 2 s, on its old one and in its open stream within the connection age. Every call that
    was answered ran once, none that was refused ran at all, and another node's calls never fail."""
    remote = await start_remote(nodes=NODES, flows=FLOWS, extra={"connection_age_secs": AGE_SECS})
    mesh, begun = remote.mesh, remote.begun

    @remote.registry.step("demo::old")
    async def old(event: StartEvent, ctx: Context) -> StopEvent:
        begun[ctx.step_id] += 1
        return StopEvent(result=event.data)

    @remote.registry.step("demo::honest")
    async def honest(event: StartEvent, ctx: Context) -> StopEvent:
        begun[ctx.step_id] += 1
        return StopEvent(result=event.data)

    @remote.registry.step("demo::ticks")
    async def ticks(event: StartEvent, ctx: Context) -> StopEvent:
        begun[ctx.step_id] += 1
        while not remote.release.is_set():
            ctx.emit(Event.dynamic("demo::Tick", 0))
            await asyncio.sleep(0.05)
        return StopEvent(result=None)

    client = await remote.connect()
    other = await remote.connect("archive", address=f"http://{mesh.egress('archive', 'analyst')}")
    over = asyncio.Event()

    async def honest_calls() -> int:
        answered = 0
        while not over.is_set():
            await other.run_remote_workflow("honest", ["demo::honest"], "1", 20)
            answered += 1
        return answered

    async def stream_ends() -> float:
        last = time.monotonic()
        async with aclosing(client.stream_remote_workflow("ticks", ["demo::ticks"], "null", 120)) as stream:
            with suppress(TransportError):
                while await anext(stream):
                    last = time.monotonic()
        return last

    async def on_a_new_connection() -> None:
        request = remote.message("demo::echo", 1)
        async with straight_in(mesh, "intake", "analyst") as channel:
            await remote.invoke(request, [remote.bearer(remote.jwt())], channel=channel)

    async def on_the_old_one() -> None:
        await client.run_remote_workflow("old", ["demo::old"], "1", 20)

    honest_task = asyncio.create_task(honest_calls())
    stream_task = asyncio.create_task(stream_ends())
    await on_a_new_connection()
    await on_the_old_one()
    revoked = time.monotonic()
    await asyncio.to_thread(revoke_node, certificates, "intake", now=datetime.now(UTC))
    async with asyncio.timeout(5 * AGE_SECS):
        (new, new_last), (old_ones, old_last), stream_last = await asyncio.gather(
            until_refused(on_a_new_connection), until_refused(on_the_old_one), stream_task
        )
    assert new_last - revoked < BITES_SECS
    assert old_last - revoked < AGE_SECS
    assert stream_last - revoked < AGE_SECS
    for call in (on_a_new_connection, on_the_old_one):
        for _ in range(3):
            with pytest.raises(TransportError):
                await call()
    over.set()
    answered = await honest_task
    assert begun == {"demo::echo": 1 + new, "demo::old": 1 + old_ones, "demo::honest": answered, "demo::ticks": 1}
    assert answered > 10
    assert any("revoked" in str(entry["failure"]) for entry in mesh.log("analyst", log="connection"))
