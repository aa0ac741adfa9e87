"""One real mesh of every shape that the traps need. ``pytest tests/mesh/traps`` runs a test for each trap, by its number.

Where it is cheap, the trap is opened again beside the test (``alter=``), to see the harm that the setting keeps away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from blazen_mesh.discovery import Publication, deliver
from blazen_mesh.mesh import Mesh as Definition
from blazen_mesh.render import render_node

DATA = [{"name": "personal", "why": "test"}, {"name": "internal", "why": "test"}]


@pytest.fixture
async def classed(start_mesh: Any, ports: Callable[[], int]) -> Any:
    """Intake may call analyst with personal and with internal data, archive with internal data alone; none is started."""

    def peer(**egress: dict[str, int]) -> dict[str, Any]:
        return {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": egress}

    def flow(caller: str, *data: str) -> dict[str, Any]:
        return {"from": caller, "to": "analyst", "workflows": ["work"], "data": list(data), "why": "test"}

    peers = {
        "intake": peer(analyst={"personal": ports(), "internal": ports()}),
        "archive": peer(analyst={"internal": ports()}),
        "analyst": peer(),
    }
    flows = [flow("intake", "personal", "internal"), flow("archive", "internal")]
    return await start_mesh(list(peers), sidecars=[], extra={"data": DATA, "peers": peers, "flows": flows})


@pytest.fixture
async def replicated(start_mesh: Any, ports: Callable[[], int]) -> Any:
    """Intake may call analyst, which has two replicas: ``peers["analyst"]`` and ``peers["analyst 1"]``."""

    async def start(**options: Any) -> Any:
        peers = {
            "intake": {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {"analyst": ports()}},
            "analyst": {"sidecar": f"127.0.0.1:{ports()}", "listen": [f"127.0.0.1:{ports()}", f"127.0.0.1:{ports()}"]},
        }
        mesh = await start_mesh(stand_ins=False, sidecars=[], extra={"peers": peers}, **options)
        await asyncio.gather(mesh.start_peer("analyst"), mesh.start_peer("analyst", replica=1))
        return mesh

    return start


@pytest.fixture
def direct() -> Callable[[Any, str, str], Any]:
    """A channel that speaks TLS to a node's ingress with another's certificate, past that one's sidecar."""

    def channel(mesh: Any, caller: str, callee: str) -> Any:
        current = mesh.identities[caller] / "current"
        files = [(current / name).read_bytes() for name in ("bundle.crt", "tls.key", "tls.crt")]
        options = [("grpc.ssl_target_name_override", f"{callee}.mesh.test"), ("grpc.use_local_subchannel_pool", 1)]
        address = str(mesh.definition.peers[callee].sidecar)
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options)

    return channel


@pytest.fixture
def put_in_place() -> Callable[[Any, str, Definition], Awaitable[Publication]]:
    """Give a running sidecar what another mesh file would, and wait until it has taken it."""

    async def put(mesh: Any, node: str, definition: Definition, **options: Any) -> Publication:
        files = render_node(definition, node, mesh.paths(node))
        return await deliver(files, mesh.root / node, mesh.sidecars[node].admin, envoy=None, **options)

    return put


@pytest.fixture
def walk() -> Callable[[Any], Iterator[dict[str, Any]]]:
    """Every object inside a document."""

    def inside(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
            for inner in value.values():
                yield from inside(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from inside(inner)

    return inside


@pytest.fixture
def refused() -> Callable[..., Awaitable[grpc.aio.AioRpcError]]:
    """Make a call that must fail, and return how."""

    async def call(mesh: Any, caller: str = "intake", callee: str = "analyst", **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.call(caller, callee, **options)
        return caught.value

    return call
