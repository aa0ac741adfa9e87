"""The rate of a caller on a lane, and how a refused frame is answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from blazen_peer import OverloadedError, StartEvent, StopEvent
from blazen_peer.policy import Policy
from blazen_peer.transport.proto import lane_pb2
from tests.peer.lane.conftest import soon
from tests.peer.policy.guarded import PROOF, TOKEN, flow, policy_of

Guard = Callable[..., Awaitable[Any]]
RESOURCE_EXHAUSTED = 8


def at(calls_per_sec: int | None) -> Policy:
    flows = [flow(node, "analyst", ["w", "slow"], "personal") for node in ("intake", "audit")]
    return replace(policy_of(*flows), calls_per_sec=calls_per_sec)


def prepare(peer: Any) -> None:
    peer.serve("w", "echo")


async def at_once(client: Any, count: int) -> list[Any]:
    calls = (client.run_remote_workflow("w", [], str(n), 20) for n in range(count))
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_over_the_rate(guarded: Guard) -> None:
    """As many as one second holds are executed, and what comes in meanwhile; the rest hear when to try again."""
    peer = await guarded(at(20), prepare)
    client = await peer.client("intake", "personal", lane="always")
    began = time.monotonic()
    ended = await at_once(client, 100)
    late = int((time.monotonic() - began) * 20) + 1
    errors = [error for error in ended if isinstance(error, OverloadedError)]
    assert 20 <= peer.begun["echo"] == 100 - len(errors) <= 20 + late
    assert {error.retry_after_secs for error in errors} == {1.0}
    assert (await client.describe()).lanes.open == 1
    other = await peer.client("audit", "personal", lane="always")
    assert (await other.run_remote_workflow("w", [], "1", 20)).result == 1


async def test_next_lane(guarded: Guard) -> None:
    """Another lane of the same caller is no other bucket."""
    peer = await guarded(at(20), prepare)
    began = time.monotonic()
    for _ in range(4):
        async with await peer.client("intake", "personal", lane="always") as client:
            await at_once(client, 20)
    assert peer.begun["echo"] <= 20 + int((time.monotonic() - began) * 20) + 1


async def test_nothing_is_decoded(guarded: Guard, raw_lane: Any, envelope: Any) -> None:
    """What is over the rate is refused unread: a frame that is none, an attach and a cancel count as calls do."""
    peer = await guarded(at(1), prepare)
    headers = {
        "authorization": f"Bearer {TOKEN}",
        "x-blazen-sidecar-proof": PROOF,
        "x-forwarded-client-cert": "URI=spiffe://mesh.test/peer/intake",
        "x-blazen-data-class": "personal",
    }
    lane = await raw_lane(peer.server, **headers)
    await lane.send(
        lane_pb2.LaneRequest(
            calls=[lane_pb2.Call(id=1, envelope=envelope("echo", 1)), lane_pb2.Call(id=2, envelope=b"\xff")],
            attaches=[lane_pb2.Attach(id=3, invocation_id="x")],
            cancels=[lane_pb2.Cancel(id=4, invocation_id="x")],
        )
    )
    answers: dict[int, Any] = {}
    async with asyncio.timeout(20):
        while len(answers) < 4:
            answers |= {answer.id: answer for answer in (await lane.read()).answers}
    assert answers[1].HasField("envelope")
    for number in (2, 3, 4):
        refusal = answers[number].refusal
        assert (refusal.code, refusal.at_the_gate) == (RESOURCE_EXHAUSTED, False)
        retry = RetryInfo()
        assert any(detail.Unpack(retry) for detail in Status.FromString(refusal.details).details)
        assert retry.retry_delay.seconds == 1


async def test_no_rate(guarded: Guard) -> None:
    """A policy without one bounds nothing."""
    peer = await guarded(at(None), prepare)
    client = await peer.client("intake", "personal", lane="always")
    await at_once(client, 600)
    assert peer.begun == {"echo": 600}


async def test_taken_up_over_the_rate(guarded: Guard, frames: Counter[str]) -> None:
    """Calls in flight on a lane that breaks are taken up one after another where they are more than the rate: none is given up.

    Its frames may not tell "refused, so it did not run" of a call that runs.
    """
    held = asyncio.Event()

    def slow(peer: Any) -> None:
        prepare(peer)

        @peer.registry.step("slowly")
        async def slowly(event: StartEvent) -> StopEvent:
            peer.begun["slowly"] += 1
            await held.wait()
            return StopEvent(result=event.data)

        peer.serve("slow", "slowly")

    peer = await guarded(at(10), slow)
    port = await peer.port("intake", "personal")
    client = await port.connect(lane="always")
    calls = [asyncio.create_task(client.run_remote_workflow("slow", [], str(n), 60)) for n in range(10)]
    await soon(lambda: peer.begun["slowly"] == 10)
    while not any(isinstance(error, OverloadedError) for error in await at_once(client, 5)):
        pass
    before = frames["invoke"]
    await port.stop()
    await port.start()
    await soon(lambda: frames["invoke"] > before + 10)  # some were sent again, refused, and sent once more
    held.set()
    results = await asyncio.wait_for(asyncio.gather(*calls), 40)
    assert [result.result for result in results] == list(range(10))
    assert peer.begun["slowly"] == 10
