"""Who does not get in, against real sidecars; the peer never hears of any of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.sidecar import StartError

pytestmark = pytest.mark.envoy
STAND_IN = Path(__file__).with_name("stand_in.py")


async def refusal(mesh: Any, caller: str = "intake", callee: str = "analyst") -> grpc.aio.AioRpcError:
    """Make a call that must fail, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call(caller, callee)
    return caught.value


async def test_plain_text_to_the_ingress(mesh: Any) -> None:
    """A caller in plain text gets nowhere."""
    async with grpc.aio.insecure_channel(str(mesh.definition.peers["analyst"].sidecar)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.call("intake", "analyst", channel=channel, timeout=2)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert mesh.peers["analyst"].calls == []


async def test_server_of_another_authority(start_mesh: Any, certificates: Any, short_dir: Path) -> None:
    """A server whose certificate another CA issued is refused by the caller's sidecar, which says so in its log."""
    other = Authority.create(short_dir / "other", "mesh.test")
    mesh = await start_mesh(identities={"analyst": other.issue("analyst").path})
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in (await mesh.wait_log("intake", log="call"))[0]["upstream_failure"]
    assert mesh.peers["analyst"].calls == []


async def test_expired_caller(start_mesh: Any, certificates: Any) -> None:
    """An expired certificate is refused, and the ingress listener's log says that it expired."""
    past = datetime.now(UTC) - timedelta(hours=2)
    identity = certificates.issue("intake", now=past, lifetime=timedelta(hours=1)).path
    mesh = await start_mesh(identities={"intake": identity}, sidecars=["analyst"])
    sidecar = await mesh.start_sidecar("intake", ready=False)
    with pytest.raises(StartError, match="expired"):
        await sidecar.wait_ready(2.0)
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "EXPIRED" in (await mesh.wait_log("analyst", log="connection"))[0]["failure"].upper()
    assert mesh.peers["analyst"].calls == []


async def test_remote_sidecar_down(start_mesh: Any) -> None:
    """Without the callee's sidecar the caller gets UNAVAILABLE at once, not at its deadline."""
    mesh = await start_mesh(sidecars=["intake"])
    assert (await refusal(mesh)).code() is grpc.StatusCode.UNAVAILABLE
    assert "URX" in (await mesh.wait_log("intake", log="call"))[0]["flags"]
