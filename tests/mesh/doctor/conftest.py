"""A mesh with real peers behind it, and the doctor sent to it.

async def test_something(start_pair, examine):
    mesh = await start_pair()                      # intake -> analyst: real sidecars, real servers, one token
    report = await examine(mesh)                   # what the command does, in this process
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from blazen_mesh.doctor import Report, Visit, find_nodes
from blazen_mesh.doctor import examine as examine_visit
from blazen_mesh.render import ensure_secret
from blazen_peer import PeerServer, ServerSettings, StartEvent, StopEvent
from blazen_peer.runtime.registry import Registry

TOKEN = "the-shared-token-of-this-mesh-0123456789"
QUICK = ServerSettings(lame_duck_secs=0, drain_secs=0)

StartPair = Callable[..., Awaitable[Any]]
Examine = Callable[..., Awaitable[Report]]


def registry() -> Registry:
    """Return the one step that the peers have; it takes as many seconds as its input says."""
    found = Registry()

    @found.step("demo::wait")
    async def wait(event: StartEvent) -> StopEvent:
        await asyncio.sleep(event.data)
        return StopEvent(result=event.data)

    return found


@pytest.fixture
async def start_pair(start_mesh: Any) -> AsyncIterator[StartPair]:
    """A factory: a mesh whose nodes named in ``serve`` have real servers.

    Args:
        serve: Those nodes.
        injected: The token that sidecars add where they are to.
        proofs: Other proof files than the sidecar's own, for some servers.
        enforce: Whether servers are given the policy that was rendered for them.
        options: ``start_mesh``'s.
    """
    async with AsyncExitStack() as stack:

        async def start(
            *args: Any,
            serve: Sequence[str] = ("intake", "analyst"),
            injected: str = TOKEN,
            proofs: Mapping[str, Path] = MappingProxyType({}),
            enforce: bool = True,
            **options: Any,
        ) -> Any:
            mesh = await start_mesh(*args, stand_ins=False, token=injected, **options)
            for node in serve:
                ensure_secret(mesh.proof_file(node))
                server = PeerServer(
                    node,
                    registry=registry(),
                    token=TOKEN,
                    require_identity=True,
                    settings=QUICK,
                    policy=rendered if enforce and (rendered := mesh.root / node / "policy.json").exists() else None,
                    sidecar_proof_file=proofs.get(node) or mesh.proof_file(node),
                )
                await stack.enter_async_context(server.serving(mesh.listen(node)))
            return mesh

        yield start


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Examine a mesh: ``examine(mesh, at=["intake"], **Visit's)``, with the files and logs of the nodes *at* hand alone."""

    async def run(mesh: Any, *, at: Sequence[str] | None = None, logs: bool = True, **options: Any) -> Report:
        here = [node for node in mesh.definition.peers if at is None or node in at]
        rendered = [mesh.root / node for node in here if (mesh.root / node / "envoy.json").exists()]
        for node in here:
            (mesh.root / f"{node}.log").touch()  # a sidecar to which nobody came has written nothing yet
        given = {
            "files": find_nodes(tmp_path / "none", rendered),
            "log_files": [mesh.root / f"{node}.log" for node in here if logs],
            "token": {"BLAZEN_PEER_TOKEN": TOKEN},
            "timeout_secs": 5.0,
            **options,
        }
        return await examine_visit(Visit(mesh.definition, **given))

    return run
