"""Traps 16 and 23: who is let in when rules are few, and names that a reader takes for something else.

Also what a changed mesh file does to sidecars that run: at once, for open connections too, and without losing a call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.discovery import PublishError, deliver, objections, publish, versions
from blazen_mesh.mesh import load_mesh, parse_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import render_node

pytestmark = pytest.mark.envoy
Refused = Callable[..., Awaitable[grpc.aio.AioRpcError]]
MESH = Path(__file__).parents[3] / "envoy" / "mesh.toml"
NODES = ("intake", "analyst", "archive")


async def test_trap_16_a_known_node_without_a_flow(start_mesh: Any, refused: Refused) -> None:
    """A node of the mesh that no flow lets in gets PERMISSION_DENIED, and its attempt stands in the callee's log."""
    mesh = await start_mesh(NODES, (("intake", "analyst"), ("archive", "intake")), sidecars=["analyst"])
    # Archive's sidecar is told that it may call analyst; analyst's own is not.
    dial = {"analyst": mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(NODES, (("archive", "analyst"),), stand_ins=False, sidecars=["archive"], dial=dial)
    assert (await refused(stray, "archive")).code() is grpc.StatusCode.PERMISSION_DENIED
    (entry,) = await mesh.wait_log("analyst", log="call")
    assert (entry["peer_uri"], entry["details"]) == (
        "spiffe://mesh.test/peer/archive",
        "rbac_access_denied_matched_policy[none]",
    )
    assert mesh.peers["analyst"].calls == []


@pytest.mark.parametrize("alters", [pytest.param(False, id="empty-rules"), pytest.param(True, id="no-rules")])
async def test_trap_16_no_flows_mean_nobody(start_mesh: Any, refused: Refused, alters: bool) -> None:
    """A node without callers denies all, by rules that are there and empty; without any, Envoy would let everybody in."""

    def without_rules(documents: dict[str, Any]) -> None:
        for listener in documents["lds.json"]["resources"]:
            for each in listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]:
                each["typed_config"].pop("rules", None)

    mesh = await start_mesh(("intake", "analyst"), (("analyst", "intake"),), sidecars=[])
    await mesh.start_sidecar("analyst", alter=without_rules if alters else None)
    dial = {"analyst": mesh.definition.peers["analyst"].sidecar}
    stray = await start_mesh(stand_ins=False, sidecars=["intake"], dial=dial)
    if alters:
        assert await stray.call("intake", "analyst") == b"hello"
        return
    assert (await refused(stray)).code() is grpc.StatusCode.PERMISSION_DENIED
    assert mesh.peers["analyst"].calls == []


@pytest.mark.parametrize(
    ("method", "code"),
    [
        pytest.param("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "PERMISSION_DENIED", id="reflection"),
        pytest.param("/blazen.peer.v1.BlazenPeer/Other", "PERMISSION_DENIED", id="unknown-method"),
        pytest.param("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow/", "PERMISSION_DENIED", id="one-slash-more"),
        pytest.param("/blazen.peer.v1.BlazenPeer/../blazen.peer.v1.BlazenPeer/InvokeSubWorkflow", "OK", id="normalized"),
        pytest.param("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow", "OK", id="invoke"),
    ],
)
async def test_trap_16_methods_are_named(mesh: Any, method: str, code: str) -> None:
    """A flow opens the methods of a peer, each by its path, and nothing else."""
    got = "OK"
    try:
        await mesh.channel("intake", "analyst").unary_unary(method)(b"x", timeout=10)
    except grpc.aio.AioRpcError as error:
        got = error.code().name
    assert got == code
    assert len(mesh.peers["analyst"].calls) == (code == "OK")


async def test_trap_23_names_that_yaml_takes_for_values(start_mesh: Any) -> None:
    """Names that YAML takes for truth values or numbers are names: what is rendered is JSON."""
    mesh = await start_mesh(("n", "1e3"), (("n", "1e3"),))
    assert await mesh.call("n", "1e3") == b"hello"
    for name, text in render_node(mesh.definition, "n", mesh.paths("n")).items():
        assert json.loads(text), name


async def test_a_narrowed_policy_bites_open_connections(mesh: Any, put_in_place: Any, refused: Refused) -> None:
    """Once a flow is gone, the next call of an open connection is denied; the call in flight on it is answered."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes) -> bytes:
        if request == b"slow":
            begun.set()
            await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    channel = mesh.channel("intake", "analyst")
    slow = asyncio.create_task(mesh.call("intake", "analyst", b"slow", channel=channel, timeout=60))
    await begun.wait()
    await put_in_place(mesh, "analyst", mesh.definition.model_copy(update={"flows": ()}))
    assert (await refused(mesh, channel=channel)).code() is grpc.StatusCode.PERMISSION_DENIED
    await put_in_place(mesh, "analyst", mesh.definition)
    assert await mesh.call("intake", "analyst", channel=channel) == b"hello"
    go_on.set()
    assert await slow == b"slow"
    entries = await mesh.wait_log("analyst", count=3, log="call")
    assert len({entry["connection_id"] for entry in entries}) == 1


async def test_a_new_peer_needs_no_restart(start_mesh: Any, put_in_place: Any, ports: Callable[[], int]) -> None:
    """A peer and flows that come later are served by the sidecars that run, while calls go on."""
    mesh = await start_mesh(NODES, (("intake", "analyst"),), sidecars=["intake", "analyst"])
    wider = json.loads(json.dumps(mesh.table, default=str))
    wider["peers"]["intake"]["egress"]["archive"] = ports()
    wider["flows"].append({"from": "intake", "to": "archive", "workflows": ["work"], "why": "new"})
    mesh.definition = parse_mesh(wider)
    before = {node: sidecar.child.pid for node, sidecar in mesh.sidecars.items()}
    done = asyncio.Event()
    channel = mesh.channel("intake", "analyst")

    async def keep_calling() -> int:
        calls = 0
        while not done.is_set():
            await mesh.call("intake", "analyst", channel=channel)
            calls += 1
        return calls

    calling = asyncio.create_task(keep_calling())
    await mesh.start_sidecar("archive")
    for node in ("intake", "analyst"):
        assert not (await put_in_place(mesh, node, mesh.definition)).restart
    assert await mesh.call("intake", "archive") == b"hello"
    done.set()
    assert await calling > 0
    assert {node: mesh.sidecars[node].child.pid for node in before} == before


async def test_a_way_that_goes_ends_no_call(mesh: Any, put_in_place: Any) -> None:
    """A call in flight is answered though its port, its cluster and its ingress's names change; the port is closed."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    channel = mesh.channel("intake", "analyst")
    slow = asyncio.create_task(mesh.call("intake", "analyst", channel=channel, timeout=60))
    await begun.wait()
    await put_in_place(mesh, "analyst", mesh.definition.model_copy(update={"connection_age_secs": 1800}))
    done = await put_in_place(mesh, "intake", mesh.definition.model_copy(update={"flows": ()}))
    assert {"cds.json", "lds.json"} <= set(done.changed)
    host, port = mesh.egress("intake", "analyst").split(":")

    async def closed() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    async with asyncio.timeout(30):
        while not await closed():  # noqa: ASYNC110 - the port has to be tried
            await asyncio.sleep(0.05)
    # Longer than Envoy's drain of a second, in which it would end what it took away.
    await asyncio.sleep(1.5)
    go_on.set()
    assert await slow == b"hello"


async def test_what_envoy_refuses_is_not_put_in_place(mesh: Any, envoy: Any) -> None:
    """Shown to Envoy first; where nobody asks it and it refuses, what was there before is put back; it serves throughout."""
    home, admin = mesh.root / "analyst", mesh.sidecars["analyst"].admin
    files = render_node(mesh.definition, "analyst", mesh.paths("analyst"))
    bad = {**files, "lds.json": files["lds.json"].replace('"codec_type"', '"no_such_field"')}
    assert "no_such_field" in "".join(objections(bad, envoy))
    with pytest.raises(PublishError, match="no_such_field"):
        publish(bad, home, envoy=envoy)
    with pytest.raises(PublishError, match="no_such_field"):
        await deliver(bad, home, admin, envoy=envoy)
    document = json.loads(files["lds.json"])  # a port that somebody has: only the Envoy that binds can tell
    document["resources"][0]["address"]["socket_address"]["port_value"] = mesh.definition.peers["analyst"].listen.port
    taken = {**files, "lds.json": json.dumps({**document, "version_info": "taken"})}
    with pytest.raises(PublishError, match=r"listener_manager\.lds"):
        await deliver(taken, home, admin, envoy=envoy)
    assert (home / "lds.json").read_text() == files["lds.json"]
    assert (await versions(admin))["listener_manager.lds"] == json.loads(files["lds.json"])["version_info"]
    assert await mesh.call("intake", "analyst") == b"hello"


def test_the_same_again_changes_nothing(short_dir: Any) -> None:
    """What is in place already is not moved again, and what is no longer named goes."""
    mesh_files = render_node(load_mesh(MESH), "intake", NodePaths("/i", "/c", "/a", "/p"))
    first = publish(mesh_files, short_dir, envoy=None)
    assert set(first.changed) == set(mesh_files)
    assert first.restart
    times = {name: (short_dir / name).stat().st_mtime_ns for name in mesh_files}
    assert publish(mesh_files, short_dir, envoy=None).changed == ()
    assert {name: (short_dir / name).stat().st_mtime_ns for name in mesh_files} == times
    fewer = {name: text for name, text in mesh_files.items() if name != "sds/leaf.json"}
    assert publish(fewer, short_dir, envoy=None).changed == ("sds/leaf.json",)
    assert not (short_dir / "sds" / "leaf.json").exists()


async def test_regions_have_trust_domains_of_their_own(start_mesh: Any, ports: Callable[[], int], short_dir: Any) -> None:
    """Between regions each side pins the other's name with its region; within the mesh nothing else changes."""
    authority = Authority.create(short_dir / "regional", "mesh.test", regions=["eu", "us"])
    regions = {"intake": "eu", "analyst": "us"}
    identities = {node: authority.issue(node, region=region).path for node, region in regions.items()}
    peers: dict[str, Any] = {
        node: {"region": region, "sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}"}
        for node, region in regions.items()
    }
    peers["intake"]["egress"] = {"analyst": ports()}
    extra = {"regions": ["eu", "us"], "peers": peers}
    mesh = await start_mesh(identities=identities, extra=extra)
    assert await mesh.call("intake", "analyst") == b"hello"
    (call,) = mesh.peers["analyst"].calls
    (identity,) = call.values("x-forwarded-client-cert")
    assert str(identity).endswith(";URI=spiffe://eu.mesh.test/peer/intake")
    (entry,) = await mesh.wait_log("intake", log="call")
    assert entry["upstream_uri"] == "spiffe://us.mesh.test/peer/analyst"
