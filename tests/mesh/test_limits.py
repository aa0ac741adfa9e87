"""What a sidecar is bounded by, and callees that are dialled by name; against real sidecars."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

pytestmark = pytest.mark.envoy
WAIT_SECS = 30.0


async def ended(call: Any) -> grpc.StatusCode:
    """Return how *call* ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_full_heap_refuses_calls(start_mesh: Any) -> None:
    """A sidecar near its memory's limit refuses new calls and goes on living; Envoy alone knows no such limit."""

    def small(documents: dict[str, Any]) -> None:
        for monitor in documents["envoy.json"]["overload_manager"]["resource_monitors"]:
            if monitor["name"].endswith("fixed_heap"):
                monitor["typed_config"]["max_heap_size_bytes"] = 1024 * 1024

    mesh = await start_mesh(sidecars=["analyst"])
    sidecar = await mesh.start_sidecar("intake", alter=small, ready=False)
    async with asyncio.timeout(WAIT_SECS):
        while await ended(mesh.call("intake", "analyst", timeout=2)) is grpc.StatusCode.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert sidecar.child.returncode is None
    assert mesh.sidecars["analyst"].child.returncode is None


async def test_connections_are_counted(start_mesh: Any) -> None:
    """Beyond the number of connections that a sidecar takes, a further one is closed; the admin interface stays."""

    def few(documents: dict[str, Any]) -> None:
        for monitor in documents["envoy.json"]["overload_manager"]["resource_monitors"]:
            monitor["typed_config"].pop("max_active_downstream_connections", None)
            if monitor["name"].endswith("global_downstream_max_connections"):
                monitor["typed_config"]["max_active_downstream_connections"] = 3

    mesh = await start_mesh(sidecars=["analyst"])
    await mesh.start_sidecar("intake", alter=few)
    for _ in range(3):
        assert await mesh.call("intake", "analyst", channel=mesh.channel("intake", "analyst")) == b"hello"
    assert await ended(mesh.call("intake", "analyst", channel=mesh.channel("intake", "analyst"), timeout=2)) is not (
        grpc.StatusCode.OK
    )
    assert await mesh.sidecars["intake"].admin.unready() is None


async def test_headers_are_bounded(mesh: Any) -> None:
    """A call with more or larger headers than a sidecar holds is refused there; the peer does not hear of it."""
    many = [(f"x-header-{number}", "x") for number in range(120)]
    large = [("x-large", "x" * 61 * 1024)]
    for headers in (many, large):
        assert await ended(mesh.call("intake", "analyst", metadata=headers)) is not grpc.StatusCode.OK
    assert mesh.peers["analyst"].calls == []
    assert await mesh.call("intake", "analyst") == b"hello"


def named(ports: Callable[[], int]) -> dict[str, Any]:
    """Return the peers of a mesh in which analyst's sidecar is dialled by name, so that it is watched."""
    port = ports()
    return {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"localhost:{port}", "bind": f"127.0.0.1:{port}", "listen": f"127.0.0.1:{ports()}"},
    }


@pytest.mark.parametrize("data_class", [pytest.param(None, id="no-classes"), pytest.param("personal", id="classes")])
async def test_by_name(start_mesh: Any, ports: Callable[[], int], data_class: str | None) -> None:
    """A callee dialled by name is found and its health looked at; started late, it is served soon, and its absence is told."""
    extra: dict[str, Any] = {"peers": named(ports)}
    if data_class:
        flow = {"from": "intake", "to": "analyst", "workflows": ["work"], "data": [data_class], "why": "test"}
        extra |= {"data": [{"name": data_class, "why": "test"}], "flows": [flow]}
        extra["peers"]["intake"]["egress"]["analyst"] = {data_class: ports()}
    mesh = await start_mesh(sidecars=["intake"], extra=extra)
    channel = mesh.channel("intake", "analyst", data_class)
    assert await ended(mesh.call("intake", "analyst", channel=channel)) is grpc.StatusCode.UNAVAILABLE
    # The real reason, not that no host is healthy.
    assert "refused" in (await mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    await mesh.start_sidecar("analyst")
    assert await mesh.call("intake", "analyst", channel=channel) == b"hello"
    admin = mesh.sidecars["intake"].admin
    async with asyncio.timeout(WAIT_SECS):
        while not any((await admin.stats(r"^cluster\.egress.*\.health_check\.success$")).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_by_name_and_denied(start_mesh: Any, ports: Callable[[], int]) -> None:
    """Where health checks are denied like any call, the caller hears of the denial, not of a host that is out."""
    peers = named(ports)
    mesh = await start_mesh(flows=(), stand_ins=True, sidecars=["analyst"], extra={"peers": without_ways(peers)})
    stray = await start_mesh(stand_ins=False, sidecars=["intake"], extra={"peers": peers})
    for _ in range(8):
        assert await ended(stray.call("intake", "analyst")) is grpc.StatusCode.PERMISSION_DENIED
    assert mesh.peers["analyst"].calls == []


def without_ways(peers: dict[str, Any]) -> dict[str, Any]:
    """Return *peers* with no egress ports."""
    return {node: {key: value for key, value in peer.items() if key != "egress"} for node, peer in peers.items()}


async def test_deadlines_eject_nobody(start_mesh: Any, ports: Callable[[], int]) -> None:
    """Calls that run into their own deadlines say nothing of a replica: it stays in the choice."""
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": [f"127.0.0.1:{ports()}", f"127.0.0.1:{ports()}"]},
    }
    mesh = await start_mesh(stand_ins=False, sidecars=[], extra={"peers": peers})

    async def hang(_: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    await asyncio.gather(mesh.start_peer("analyst", hang), mesh.start_peer("analyst", hang, replica=1))
    await asyncio.gather(mesh.start_sidecar("intake"), mesh.start_sidecar("analyst"))
    codes = await asyncio.gather(*(ended(mesh.call("intake", "analyst", timeout=0.3)) for _ in range(20)))
    assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
    found = await mesh.sidecars["analyst"].admin.stats(r"outlier_detection\.ejections_active$")
    assert set(found.values()) == {0}


def watches(pid: int) -> int:
    """Return how many inotify instances a process has, of the 128 that Linux gives a user by default."""
    return sum("inotify" in str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())


async def test_ways_cost_no_watches(start_mesh: Any) -> None:
    """However many peers and ways there are, Envoy watches the same few files: without a watch to get it would end."""
    small = await start_mesh(("intake", "analyst"), (("intake", "analyst"),), stand_ins=False, sidecars=["intake"])
    few = watches(small.sidecars["intake"].child.pid)
    await small.sidecars["intake"].stop()  # it would take up the files of the next one
    nodes = ["intake", *(f"peer-{number}" for number in range(40))]
    flows = [pair for node in nodes[1:] for pair in (("intake", node), (node, "intake"))]
    identities = dict.fromkeys(nodes[1:], small.identities["analyst"])
    large = await start_mesh(nodes, flows, identities=identities, stand_ins=False, sidecars=["intake"])
    assert watches(large.sidecars["intake"].child.pid) == few <= 12
