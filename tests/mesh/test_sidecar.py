"""One sidecar's life: certificates that change, draining, dying and coming back, spans."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from blazen_mesh.render import replace_file
from blazen_mesh.sidecar import StartError

pytestmark = pytest.mark.envoy


async def until(condition: Callable[[], Any], secs: float = 10.0) -> None:
    """Poll *condition*, an async function, until it gives something true."""
    async with asyncio.timeout(secs):
        while not await condition():  # noqa: ASYNC110 - the other end has to be asked
            await asyncio.sleep(0.02)


async def test_new_certificate_is_taken_up(mesh: Any, certificates: Any) -> None:
    """A swapped identity is served within a second, and calls go on."""
    admin = mesh.sidecars["analyst"].admin
    (before,) = await admin.certificates()
    await mesh.call("intake", "analyst")
    fresh = certificates.issue("analyst")

    async def swapped() -> bool:
        (now,) = await admin.certificates()
        return int(now["serial_number"], 16) == fresh.certificate.serial_number != int(before["serial_number"], 16)

    await until(swapped, secs=3)
    assert await mesh.sidecars["analyst"].admin.unready() is None
    assert await mesh.call("intake", "analyst", channel=mesh.channel("intake", "analyst")) == b"hello"


async def test_certificate_that_comes_late(start_mesh: Any, certificates: Any) -> None:
    """Without a certificate the sidecar says LIVE to anybody and is not ready for us; once issued, it serves."""
    late = certificates.directory / "nodes" / "analyst"
    late.mkdir(parents=True)
    mesh = await start_mesh(identities={"analyst": late}, sidecars=["intake"])
    sidecar = await mesh.start_sidecar("analyst", ready=False)
    with pytest.raises(StartError, match="no certificate"):
        await sidecar.wait_ready(1.0)
    for _ in range(2):  # the second one: what came late is watched like any other
        fresh = certificates.issue("analyst").certificate.serial_number

        async def served(serial: int = fresh) -> bool:
            return serial in [int(leaf["serial_number"], 16) for leaf in await sidecar.admin.certificates()]

        await until(served, secs=5)
        await sidecar.wait_ready(1.0)
        assert await mesh.call("intake", "analyst") == b"hello"


async def test_proof_is_read_again(mesh: Any) -> None:
    """A new proof in the file is what the peer gets, without a restart."""
    fresh = secrets.token_urlsafe(32)
    replace_file(mesh.proof_file("analyst"), fresh.encode(), 0o600)

    async def arrived() -> bool:
        await mesh.call("intake", "analyst")
        return mesh.peers["analyst"].calls[-1].values("x-blazen-sidecar-proof") == [fresh]

    await until(arrived, secs=5)


async def test_no_proof_no_call(start_mesh: Any) -> None:
    """An ingress without its proof is not ready, and refuses calls rather than passing them on without."""
    mesh = await start_mesh(sidecars=["intake"])
    sidecar = await mesh.start_sidecar("analyst", proof=False, ready=False)
    with pytest.raises(StartError, match="could not read sidecar-proof"):
        await sidecar.wait_ready(1.0)
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.call("intake", "analyst", timeout=3)
    assert mesh.peers["analyst"].calls == []


async def test_draining_loses_no_call(mesh: Any) -> None:
    """A draining sidecar carries the call in flight to its end, and knows when it is idle."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    call = asyncio.create_task(mesh.call("intake", "analyst"))
    await begun.wait()
    sidecar = mesh.sidecars["analyst"]
    await sidecar.begin_drain()
    assert not await sidecar.wait_idle(0.3)
    go_on.set()
    assert await call == b"hello"
    assert await sidecar.wait_idle(5)
    assert await sidecar.stop()


async def test_killed_and_started_again(mesh: Any) -> None:
    """A sidecar that was killed starts again over its old admin socket, and callers reach it through theirs."""
    await mesh.call("intake", "analyst")
    sidecar = mesh.sidecars["analyst"]
    sidecar.child.send(signal.SIGKILL)
    await sidecar.child.wait()
    assert sidecar.admin.socket_path.exists()
    await mesh.start_sidecar("analyst")
    assert await mesh.call("intake", "analyst") == b"hello"


async def test_connections_have_an_age(start_mesh: Any) -> None:
    """Between sidecars no connection outlives its age, and no call is lost by that."""
    mesh = await start_mesh(extra={"connection_age_secs": 1})
    channel = mesh.channel("intake", "analyst")
    calls, end = 0, time.monotonic() + 3.5
    while time.monotonic() < end:
        await mesh.call("intake", "analyst", channel=channel)
        calls += 1
    entries = await mesh.wait_log("analyst", count=calls, log="call", grpc_status="OK")
    assert len({entry["connection_id"] for entry in entries}) >= 3
    assert len(mesh.peers["analyst"].calls) == calls


@pytest.mark.slow
async def test_age_does_not_cut_a_call(start_mesh: Any) -> None:
    """A call that outlives its connection's age, and the time Envoy gives a draining one, is answered."""
    mesh = await start_mesh(extra={"connection_age_secs": 1})

    async def slowly(request: bytes) -> bytes:
        await asyncio.sleep(9)
        return request

    mesh.peers["analyst"].answer = slowly
    assert await mesh.call("intake", "analyst", timeout=30) == b"hello"
    assert len(mesh.peers["analyst"].calls) == 1


async def test_admin_socket_is_private(mesh: Any) -> None:
    """Only the sidecar's own user may reach the admin interface."""
    assert os.stat(mesh.sidecars["analyst"].admin.socket_path).st_mode & 0o777 == 0o600  # noqa: PTH116 - not in a coroutine
