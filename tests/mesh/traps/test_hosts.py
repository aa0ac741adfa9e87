"""Traps 14 and 19: ports that are shared in silence, and hosts that get calls though they are gone.

Also how many calls one caller may make, and who gets them where there are several.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blazen_mesh.sidecar import StartError
from blazen_peer.errors import OverloadedError
from blazen_peer.transport.lane_errors import NobodyListensError
from blazen_peer.transport.lane_told import not_opened
from blazen_peer.transport.status import raised_by

pytestmark = pytest.mark.envoy
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ID, REPLICA = "blazen-invocation-id", "x-blazen-replica"
SERVICE = "blazen.peer.v1.BlazenPeer"
INVOKE = f"/{SERVICE}/InvokeSubWorkflow"
HEALTHY = r"^cluster\.peer\.membership_healthy$"
WAIT_SECS = 30.0


async def both(mesh: Any, **options: Any) -> Any:
    """Start the two sidecars of *mesh*, and return it."""
    await asyncio.gather(mesh.start_sidecar("intake"), mesh.start_sidecar("analyst", **options))
    return mesh


async def counts(mesh: Any, calls: int, *ids: str) -> Counter[str]:
    """Make *calls* calls, one after another (with *ids* over and over), and return how many each replica got."""
    before = {name: len(peer.calls) for name, peer in mesh.peers.items()}
    channel = mesh.channel("intake", "analyst")
    for number in range(calls):
        metadata = [(ID, ids[number % len(ids)])] if ids else []
        await mesh.call("intake", "analyst", channel=channel, metadata=metadata)
    return Counter({name: len(peer.calls) - before[name] for name, peer in mesh.peers.items()})


async def until_only(mesh: Any, name: str) -> None:
    """Wait until ten calls in a row go to the replica *name*."""
    async with asyncio.timeout(WAIT_SECS):
        while (await counts(mesh, 10))[name] < 10:  # noqa: ASYNC110 - only calls show it
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("shares", [pytest.param(False, id="as-rendered"), pytest.param(True, id="reuse-port-on")])
async def test_trap_14_a_port_has_one_owner(start_mesh: Any, shares: bool) -> None:
    """A second sidecar on a port that is taken does not start, and says why; Envoy's default would share it in silence."""
    mesh = await start_mesh(("analyst", "archive"), (), sidecars=[])
    port = mesh.definition.peers["analyst"].sidecar.port

    def same_port(documents: dict[str, Any]) -> None:
        for listener in documents["lds.json"]["resources"]:
            listener["address"]["socket_address"]["port_value"] = port
            if shares:
                listener.pop("enable_reuse_port")

    await mesh.start_sidecar("analyst", alter=same_port)
    if shares:
        await mesh.start_sidecar("archive", alter=same_port)
        return
    with pytest.raises(StartError, match="ddress already in use"):
        await mesh.start_sidecar("archive", alter=same_port)


async def test_trap_19_spread_and_kept(replicated: Any) -> None:
    """Calls without an invocation id are spread over the replicas; one with an id goes where that id went before."""
    mesh = await both(await replicated())
    spread = await counts(mesh, 60)
    assert min(spread["analyst"], spread["analyst 1"]) > 10
    taken = [await counts(mesh, 3, f"run-{number}") for number in range(24)]
    assert all(sorted(each.values()) == [0, 3] for each in taken)
    assert len({each["analyst"] for each in taken}) == 2


async def test_trap_19_a_replica_that_is_gone(replicated: Any) -> None:
    """No call is lost when a replica is gone, and those with its ids go to the other."""
    mesh = await both(await replicated())
    await counts(mesh, 10)
    await mesh.peers.pop("analyst 1").server.stop(0)
    assert (await counts(mesh, 60))["analyst"] == 60
    assert (await counts(mesh, 24, *(f"run-{number}" for number in range(12))))["analyst"] == 24


def envoys_own(documents: dict[str, Any]) -> None:
    """Take the numbers of ejection and panic away: Envoy's own hold."""
    for cluster in documents["cds.json"]["resources"]:
        if cluster["name"] == "peer":
            cluster["outlier_detection"]["max_ejection_percent"] = 10
            cluster["common_lb_config"]["healthy_panic_threshold"] = {"value": 51}


@pytest.mark.parametrize("alters", [pytest.param(False, id="as-rendered"), pytest.param(True, id="panic-at-half")])
async def test_trap_19_one_bad_replica_of_two(replicated: Any, alters: bool) -> None:
    """A replica that answers UNAVAILABLE again and again is left alone, one of two though it is; panic would go on with it."""
    mesh = await both(await replicated(), alter=envoys_own if alters else None)
    mesh.peers["analyst 1"].refuses = grpc.StatusCode.UNAVAILABLE
    failures = []
    for _ in range(60):
        try:
            await mesh.call("intake", "analyst")
        except grpc.aio.AioRpcError as error:
            failures.append(error.code())
    assert set(failures) == {grpc.StatusCode.UNAVAILABLE}
    assert (len(failures) == 3) is not alters


async def test_trap_19_health_is_looked_at(replicated: Any) -> None:
    """A replica that says NOT_SERVING gets no more new calls in time; when none serves, calls are tried all the same."""
    mesh = await both(await replicated())
    await mesh.peers["analyst 1"].health.set("", NOT_SERVING)
    await until_only(mesh, "analyst")
    await mesh.peers["analyst 1"].health.set("", SERVING)
    await mesh.peers["analyst"].health.set("", NOT_SERVING)
    await until_only(mesh, "analyst 1")
    await mesh.peers["analyst 1"].health.set("", NOT_SERVING)
    admin = mesh.sidecars["analyst"].admin
    async with asyncio.timeout(WAIT_SECS):
        while (await admin.stats(HEALTHY))["cluster.peer.membership_healthy"]:  # noqa: ASYNC110 - Envoy has to be asked
            await asyncio.sleep(0.1)
    spread = await counts(mesh, 40)
    assert min(spread["analyst"], spread["analyst 1"]) > 5


async def answered_by(mesh: Any, replica: str | None, number: int) -> tuple[str, str | None]:
    """Make a call with an id of its own, to *replica* where one is given; return who answered, and the name it has by now."""
    before = {name: len(peer.calls) for name, peer in mesh.peers.items()}
    metadata = [(ID, f"run-{number}"), *([(REPLICA, replica)] if replica else [])]
    call = mesh.channel("intake", "analyst").unary_unary(INVOKE)(b"hello", metadata=metadata, timeout=10)
    assert await call == b"hello"
    (who,) = (name for name, peer in mesh.peers.items() if len(peer.calls) > before[name])
    told = dict(await call.initial_metadata()).get(REPLICA)
    return who, told if isinstance(told, str) else None


@pytest.mark.parametrize("unix", [pytest.param(False, id="ports"), pytest.param(True, id="unix-sockets")])
async def test_a_replica_that_is_named(start_mesh: Any, ports: Callable[[], int], short_dir: Any, unix: bool) -> None:
    """Answers name their replica. A call that brings the name goes there, drain as it may, though the sidecar be a new one;
    when that replica is gone another one answers at once, and is named. Any other name is as none."""
    listens = [f"unix:{short_dir}/one", f"unix:{short_dir}/two"] if unix else [f"127.0.0.1:{ports()}" for _ in range(2)]
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": listens},
    }
    mesh = await start_mesh(stand_ins=False, sidecars=[], extra={"peers": peers})
    await asyncio.gather(mesh.start_peer("analyst"), mesh.start_peer("analyst", replica=1))
    await both(mesh)
    names = dict([await answered_by(mesh, None, number) for number in range(24)])
    assert set(names) == {"analyst", "analyst 1"}
    assert None not in names.values()

    async def always(replica: str | None, who: tuple[str, str | None]) -> None:
        assert {await answered_by(mesh, replica, number) for number in range(12)} == {who}

    await always(names["analyst 1"], ("analyst 1", None))  # the one that was asked for is not named again
    await mesh.peers["analyst 1"].health.set("", NOT_SERVING)
    await until_only(mesh, "analyst")
    await always(names["analyst 1"], ("analyst 1", None))
    await mesh.sidecars["analyst"].stop()
    await mesh.start_sidecar("analyst")
    await always(names["analyst 1"], ("analyst 1", None))
    await until_only(mesh, "analyst")
    await always("no-such-name", ("analyst", names["analyst"]))
    await mesh.peers["analyst 1"].server.stop(0)
    await always(names["analyst 1"], ("analyst", names["analyst"]))


@pytest.mark.parametrize("unix", [pytest.param(False, id="port"), pytest.param(True, id="unix-socket")])
async def test_a_peer_that_is_gone_and_a_sidecar_that_is(
    start_mesh: Any, ports: Callable[[], int], short_dir: Any, unix: bool
) -> None:
    """The answer to a stream says whether nobody listens in the peer's place, or the peer's sidecar cannot be reached."""
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"unix:{short_dir}/one" if unix else f"127.0.0.1:{ports()}"},
    }
    mesh = await both(await start_mesh(stand_ins=False, sidecars=[], extra={"peers": peers}))
    await mesh.start_peer("analyst")
    assert await mesh.call("intake", "analyst") == b"hello"
    ends = []
    for end in (mesh.peers["analyst"].server.stop(0), mesh.sidecars["analyst"].stop()):
        await end
        call = mesh.channel("intake", "analyst").unary_stream(f"/{SERVICE}/StreamSubWorkflowEvents")(b"hello", timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        failure = not_opened(caught.value)
        assert isinstance(failure, NobodyListensError), failure
        ends.append(failure.by_sidecar)
    assert ends == [True, False]


async def test_a_draining_sidecar_fails_its_health_checks(mesh: Any) -> None:
    """A sidecar that is to be left alone says so to health checks by itself, while calls go on."""
    stub = health_pb2_grpc.HealthStub(mesh.channel("intake", "analyst"))
    assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING
    await mesh.sidecars["analyst"].admin.post("/healthcheck/fail")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await mesh.call("intake", "analyst") == b"hello"


async def test_unix_sockets(start_mesh: Any, ports: Callable[[], int], short_dir: Any) -> None:
    """A peer may listen on a Unix socket, and its replica on another."""
    peers = {
        "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
        "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": [f"unix:{short_dir}/one", f"unix:{short_dir}/two"]},
    }
    mesh = await start_mesh(stand_ins=False, sidecars=[], extra={"peers": peers})
    await asyncio.gather(mesh.start_peer("analyst"), mesh.start_peer("analyst", replica=1))
    await both(mesh)
    assert min((await counts(mesh, 40)).values()) > 5


async def test_a_caller_over_its_rate(start_mesh: Any) -> None:
    """What a caller makes beyond its rate is RESOURCE_EXHAUSTED, with the time to wait; another caller is not touched."""
    nodes, flows = ("intake", "archive", "analyst"), (("intake", "analyst"), ("archive", "analyst"))
    mesh = await start_mesh(nodes, flows, extra={"calls_per_sec": 5})
    channel = mesh.channel("intake", "analyst")
    ended = await asyncio.gather(*(mesh.call("intake", "analyst", channel=channel) for _ in range(40)), return_exceptions=True)
    errors = [raised_by(error) for error in ended if isinstance(error, grpc.aio.AioRpcError)]
    assert 20 < len(errors) <= 35
    assert {(type(error), getattr(error, "retry_after_secs", None)) for error in errors} == {(OverloadedError, 1.0)}
    assert len(mesh.peers["analyst"].calls) == 40 - len(errors)
    assert await mesh.call("archive", "analyst") == b"hello"
