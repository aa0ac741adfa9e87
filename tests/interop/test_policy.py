"""The real Blazen's client, which sends no metadata, against a peer with a policy: held to the flows and its port's class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import Workflow
from tests.interop.conftest import FLOW, TOKEN, OurPeer
from tests.mesh.conftest import free_port

pytestmark = [pytest.mark.interop, pytest.mark.envoy, pytest.mark.timeout(120, func_only=True)]

CLASSES = ("personal", "internal")
REFUSED = "The caller does not have permission to execute the specified operation"


@pytest.fixture
async def guarded(start_mesh: Any, wheel: Any) -> AsyncIterator[tuple[OurPeer, Callable[[str], str]]]:
    """Our peer with the policy that the mesh renders, and intake's ports to it, which inject the token."""
    peers = {node: {"sidecar": f"127.0.0.1:{free_port()}", "listen": f"127.0.0.1:{free_port()}"} for node in FLOW}
    ports = {name: {"port": free_port(), "inject_token": True} for name in CLASSES}
    caller, callee = FLOW
    flow = {"from": caller, "to": callee, "workflows": ["analyze-pipeline", "keep"], "data": list(CLASSES), "why": "a test"}
    extra: dict[str, Any] = {
        "data": [{"name": name, "why": "a test"} for name in CLASSES],
        "peers": {caller: {**peers[caller], "egress": {callee: ports}}, callee: peers[callee]},
        "flows": [flow],
    }
    mesh = await start_mesh(flows=(), stand_ins=False, token=TOKEN, extra=extra)
    peer = OurPeer()
    registry = peer.registry
    registry.register_workflow(Workflow("keep", ["interop::keep"], registry=registry, data_class="internal"))
    policy = Path(mesh.paths(callee).config_dir) / "policy.json"
    server = peer.server(token=TOKEN, sidecar_proof_file=mesh.proof_file(callee), policy=policy)
    async with server.serving(mesh.listen(callee)):
        yield peer, lambda name: f"http://{mesh.egress(caller, callee, name)}"


def call(workflow: str, steps: list[str], **document: Any) -> dict[str, Any]:
    return {"workflow_name": workflow, "step_ids": steps, "input": document, "timeout_secs": 10}


async def test_flows_and_classes(wheel_client: Any, guarded: Any) -> None:
    """What a flow names runs through the port of a class that is strict enough; the rest is refused, and not executed."""
    peer, port = guarded
    personal, internal = await wheel_client(port("personal")), await wheel_client(port("internal"))
    steps = ["interop::analyze", "interop::summarize"]
    [answer] = await personal.ask([call("analyze-pipeline", steps, document="a b")])
    assert answer["result"] == {"words": 2}
    for client, asked in (
        (internal, call("analyze-pipeline", steps, document="a b")),  # declares nothing: the strictest class alone
        (personal, call("analyze-pipeline", ["interop::echo"])),
        (personal, call("echo", ["interop::echo"])),
    ):
        [refused] = await client.ask([asked])
        assert REFUSED in refused["failed"]["text"]
    assert peer.begun == {"interop::analyze": 1, "interop::summarize": 1}


async def test_refs(wheel_client: Any, guarded: Any) -> None:
    """A ref of a run with personal data is there through the port for personal data, and not through the laxer one."""
    _, port = guarded
    personal, internal = await wheel_client(port("personal")), await wheel_client(port("internal"))
    [answer] = await personal.ask([call("keep", [], text="x")])
    [uuid] = answer["refs"]
    [refused] = await internal.ask([{"deref": uuid}])
    assert f"session ref {uuid} not found" in refused["failed"]["text"]
    assert await internal.ask([{"release": uuid}]) == [{"released": False}]
    assert await personal.ask([{"deref": uuid}]) == [{"bytes": [120]}]
