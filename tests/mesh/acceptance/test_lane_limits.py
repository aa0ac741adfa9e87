"""A lane softens nothing: its calls count towards a caller's rate, and each leaves a line, as those in the ingress do."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import OverloadedError, PermissionDeniedError, Workflow
from blazen_peer.transport.call_log import LOGGER, CallLine
from blazen_peer.transport.lanes import LaneMode

pytestmark = pytest.mark.envoy
RATE = 20


async def guarded(start_remote: Any, **options: Any) -> Any:
    """Return a remote whose analyst enforces the policy that was rendered for it, and serves the workflow ``w``."""
    remote = await start_remote(serve=False, workflows=["w"], extra={"calls_per_sec": RATE})
    remote.registry.register_workflow(Workflow("w", ["demo::echo"], registry=remote.registry))
    await remote.start_server(policy=Path(remote.mesh.root) / "analyst" / "policy.json", **options)
    return remote


async def test_rate(start_remote: Any) -> None:
    """Of calls at once over the rate as many run by a lane as alone, and the others end alike: code, class, time to wait."""
    remote = await guarded(start_remote)
    refused: dict[LaneMode, set[Any]] = {}
    lanes: tuple[LaneMode, ...] = ("always", "never")  # this one takes the ingress's own bucket too
    for lane in lanes:
        client = await remote.connect(lane=lane)
        await client.describe()
        remote.begun.clear()
        began = time.monotonic()
        calls = (client.run_remote_workflow("w", [], str(n), 20) for n in range(6 * RATE))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        late = int((time.monotonic() - began) * RATE) + 1
        errors = [error for error in ended if isinstance(error, Exception)]
        # Health, ``describe`` (twice each) and the lane itself are calls at the ingress.
        assert RATE - (0 if lane == "always" else 5) <= remote.begun["demo::echo"] <= RATE + late, lane
        assert remote.begun["demo::echo"] == 6 * RATE - len(errors)
        refused[lane] = {(type(error), error.kind, error.status, error.retry_after_secs) for error in errors}  # type: ignore[attr-defined]
    assert refused["never"] == refused["always"]
    assert {found[0] for found in refused["always"]} == {OverloadedError}


async def test_evidence(start_remote: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A call on a lane leaves the line that a call alone leaves in the ingress's log: the same names, the same facts."""
    caplog.set_level(logging.INFO, LOGGER)
    remote = await guarded(start_remote, access_log=True)
    for lane in ("never", "always"):
        client = await remote.connect(lane=lane)
        await client.run_remote_workflow("w", [], '"a secret"', 20, invocation_id=f"answered-{lane}")
        with pytest.raises(PermissionDeniedError):
            await client.run_remote_workflow("third", [], '"a secret"', 20, invocation_id=f"refused-{lane}")
    for what, status in (("answered", "OK"), ("refused", "PermissionDenied")):
        [alone] = await remote.mesh.wait_log("analyst", hop="ingress", log="call", invocation_id=f"{what}-never")
        [line] = [line for line in lines(caplog) if line["invocation_id"] == f"{what}-always"]
        same = ("log", "node", "caller", "data_class", "workflow", "method", "grpc_status")
        assert {name: line[name] for name in same} == {name: alone[name] for name in same}
        assert line["grpc_status"] == status
        assert set(line) - set(alone) == {"client", "refusal"}
        assert 0 < line["bytes_received"] < alone["bytes_received"]
        assert "secret" not in str(line)
    assert {line["invocation_id"] for line in lines(caplog)} == {"answered-always", "refused-always"}


def lines(caplog: pytest.LogCaptureFixture) -> list[CallLine]:
    """Return what the peer wrote of the calls on its lanes."""
    return [record.msg for record in caplog.records if record.name == LOGGER and isinstance(record.msg, CallLine)]
