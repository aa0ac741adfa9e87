"""What a server keeps of the names in calls: bounded, whatever they are."""

from __future__ import annotations

import tracemalloc

from blazen_peer import StartEvent, StopEvent, telemetry
from blazen_peer.errors import PermissionDeniedError
from blazen_peer.identity import Caller
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.resolution import Resolution
from blazen_peer.runtime.rulings import InForce, Rulings
from blazen_peer.wire import SubWorkflowRequest
from blazen_peer.wire.metadata import CallMetadata
from tests.peer.policy.guarded import flow, peer_id, policy_of

MEGABYTE = 1_000_000


def kept_of_long_names(resolution: Resolution, caller: Caller, steps: tuple[str, ...]) -> int:
    """Return how many bytes are still there after 20 calls, each with a workflow's name of a megabyte."""
    tracemalloc.start()
    try:
        for number in range(20):
            request = SubWorkflowRequest(f"{number:02}" + "x" * MEGABYTE, steps, b"{}")
            try:
                resolution.workflow(request, caller, CallMetadata())
            except PermissionDeniedError:
                assert not steps
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_refusals_of_long_names_are_not_kept(registry: Registry) -> None:
    """A caller with a flow cannot fill the server's memory with names that the policy refuses."""
    policy = policy_of(flow("intake", "analyst", ["s"], "personal"))
    in_force = InForce(policy, peer_id("analyst"))
    resolution = Resolution(registry, {}, Rulings("analyst", lambda: in_force))
    assert kept_of_long_names(resolution, Caller.proven(peer_id("intake"), ("personal",)), ()) < 5 * MEGABYTE


def test_long_names_are_not_kept_without_a_policy(registry: Registry) -> None:
    """Nor with names that nothing refuses, where there is no policy."""

    @registry.step("app::only")
    def only(event: StartEvent) -> StopEvent:
        return StopEvent(result=None)

    caller = Caller.proven(peer_id("intake"))
    assert kept_of_long_names(Resolution(registry, {}, None), caller, ("app::only",)) < 5 * MEGABYTE


def test_long_names_are_not_kept_for_metrics() -> None:
    """Nor for the metrics, which count them together."""
    tracemalloc.start()
    try:
        for number in range(20):
            telemetry.run_ended(f"{number:02}" + "x" * MEGABYTE, "ok", 0.1)
        assert tracemalloc.get_traced_memory()[0] < 5 * MEGABYTE
    finally:
        tracemalloc.stop()
