"""A policy over direct TLS: who calls is what the certificate says, and there is no stamp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, IssuedIdentity
from blazen_peer import (
    PeerClient,
    PeerServer,
    PermissionDeniedError,
    ServerSettings,
    StartEvent,
    StopEvent,
    Workflow,
    load_client_tls,
    load_server_tls,
)
from blazen_peer.policy import Policy
from blazen_peer.runtime.registry import Registry
from tests.peer.policy.guarded import TOKEN, flow, policy_of

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

QUICK = ServerSettings(lame_duck_secs=0, drain_secs=2)


def files(identity: IssuedIdentity) -> tuple[Path, Path, Path]:
    return identity.certificate_path, identity.key_path, identity.bundle_path


async def called(registry: Registry, stack: Any, folder: Path, policy: Policy, workflow: str, caller: str = "intake") -> Any:
    """Return what *caller* gets from analyst, which enforces *policy*."""
    authority = Authority.create(folder / "ca", "mesh.test")
    analyst, mine = authority.issue("analyst"), authority.issue(caller)
    server = PeerServer("analyst", policy=policy, token=TOKEN, registry=registry, settings=QUICK)
    await stack.enter_async_context(server.serving("127.0.0.1:0", tls=load_server_tls(*files(analyst))))
    tls = load_client_tls(*files(mine), server_name="analyst.mesh.test")
    client = await stack.enter_async_context(await PeerClient.connect_async(server.address, caller, token=TOKEN, tls=tls))
    return (await client.run_remote_workflow(workflow, [], "1")).result


@pytest.fixture
def begun(registry: Registry) -> list[str]:
    """The callers for whom a step was executed."""
    found: list[str] = []

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Any) -> StopEvent:
        found.append(str(ctx.caller))
        return StopEvent(result=str(ctx.caller))

    for name in ("analyze", "count"):
        registry.register_workflow(Workflow(name, ["tells"], registry=registry))
    return found


PLAIN = policy_of(flow("intake", "analyst", ["analyze"]), classes=())


async def test_allowed(registry: Registry, stack: Any, tmp_path: Path, begun: list[str]) -> None:
    """A flow that names the certificate's peer and the workflow lets it run."""
    assert await called(registry, stack, tmp_path, PLAIN, "analyze") == "spiffe://mesh.test/peer/intake"
    assert begun == ["spiffe://mesh.test/peer/intake"]


@pytest.mark.parametrize(
    ("policy", "workflow", "caller"),
    [
        pytest.param(PLAIN, "count", "intake", id="another-workflow"),
        pytest.param(PLAIN, "analyze", "audit", id="another-caller"),
        pytest.param(policy_of(flow("intake", "analyst", ["analyze"], "public")), "analyze", "intake", id="no-stamp"),
    ],
)
async def test_refused(
    registry: Registry, stack: Any, tmp_path: Path, begun: list[str], policy: Policy, workflow: str, caller: str
) -> None:
    """Anything else is refused; with data classes everything is, as nobody stamps one."""
    with pytest.raises(PermissionDeniedError):
        await called(registry, stack, tmp_path, policy, workflow, caller)
    assert begun == []
