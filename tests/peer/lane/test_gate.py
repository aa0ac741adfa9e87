"""The gate and the policy on a lane that is open: tokens end and rotate, the policy narrows, a frame says another class."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blazen_peer import PermissionDeniedError, UnauthenticatedError, WorkflowError
from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire import SubWorkflowResponse
from tests.peer.conftest import Connect, Serve
from tests.peer.policy.guarded import flow, policy_of

Request = lane_pb2.LaneRequest
TOKEN, NEXT = "t" * 43, "n" * 43
UNAUTHENTICATED = 16


@pytest.fixture
def skew(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many seconds both ends' clocks have gone ahead."""
    skew = [0.0]
    clock = SimpleNamespace(time=lambda: time.time() + skew[0])
    monkeypatch.setattr("blazen_peer.server.time", clock)
    monkeypatch.setattr("blazen_peer.carriage.time", clock)
    return skew


def bearer(token: str = TOKEN, ahead_secs: float = 0) -> str:
    return f"Bearer {mint(TokenKeys.from_tokens(token), 'raw', now=time.time() + ahead_secs, jti=f'{ahead_secs}')}"


async def test_expiry(serve: Serve, raw_lane: Any, envelope: Any, work: Any, skew: list[float]) -> None:
    """A lane takes frames until its token's end; one with a fresh token extends it. What was let in before is answered."""
    lane = await raw_lane(await serve(token=TOKEN), authorization=bearer())

    async def ask(number: int, step: str = "echo", authorization: str = "") -> None:
        call = lane_pb2.Call(id=number, envelope=envelope(step, number))
        await lane.send(Request(calls=[call], authorization=authorization))

    await ask(1)
    assert (await lane.read()).answers[0].HasField("envelope")
    await ask(2, "hold")
    await asyncio.wait_for(work.held.wait(), 10)
    skew[0] = 120
    await ask(3)
    [answer] = (await lane.read()).answers
    assert (answer.id, answer.refusal.code, answer.refusal.at_the_gate) == (3, UNAUTHENTICATED, True)
    assert work.begun == {"echo": 1, "hold": 1}
    work.release.set()
    [answer] = (await lane.read()).answers
    assert (answer.id, SubWorkflowResponse.decode(answer.envelope).result_json) == (2, b"2")
    await ask(4, authorization=bearer(ahead_secs=120))
    assert (await lane.read()).answers[0].HasField("envelope")
    await ask(5, authorization="Bearer nonsense")
    assert (await lane.read()).answers[0].refusal.code == UNAUTHENTICATED


async def test_streams_end_with_the_token(serve: Serve, raw_lane: Any, envelope: Any, work: Any, skew: list[float]) -> None:
    """The first sign of life after a token's end ends the streams of a lane."""
    lane = await raw_lane(await serve(token=TOKEN), authorization=bearer())
    await lane.send(Request(calls=[lane_pb2.Call(id=1, envelope=envelope("emit", 1), stream=True, event_credit=9)]))
    assert (await lane.read()).events
    skew[0] = 120
    await lane.send(Request(ping=True))
    [answer] = (await lane.read()).answers
    assert (answer.id, answer.refusal.code) == (1, UNAUTHENTICATED)
    work.release.set()


async def test_client_keeps_its_lane(
    serve: Serve, connect: Connect, work: Any, skew: list[float], frames: Counter[str]
) -> None:
    """Our client sends the next token along in time: neither its calls nor its streams notice."""
    client = await connect(await serve(token=TOKEN), token=TOKEN, lane="always")
    stream = client.stream_remote_workflow("w", ["emit"], "1", 300)
    await anext(stream)
    for n in range(1, 5):
        skew[0] = 40.0 * n
        assert (await client.run_remote_workflow("w", ["echo"], str(n), 20)).result == n
    work.release.set()
    assert [event.data async for event in stream] == ["done"]
    assert frames == {"stream": 1, "invoke": 4}  # one lane, and nothing sent twice
    assert (await client.describe()).lanes.open == 1


async def test_rotation(serve: Serve, connect: Connect, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the shared token is rotated on both ends, calls on an open lane go on; with the old one alone they do not."""
    monkeypatch.setattr("blazen_peer.credentials.RECHECK_SECS", 0.0, raising=False)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    monkeypatch.setenv("BLAZEN_PEER_TOKEN_FILE", str(file))
    server = await serve()
    moving, left_behind = await connect(server, lane="always"), await connect(server, token=TOKEN, lane="always")
    for client in (moving, left_behind):
        assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
    file.with_suffix(".new").write_text(NEXT)
    file.with_suffix(".new").replace(file)
    async with asyncio.timeout(20):
        while True:
            try:
                await left_behind.run_remote_workflow("w", ["echo"], "2", 20)
            except UnauthenticatedError:
                break
            await asyncio.sleep(0.05)
    before = work.begun["echo"]
    with pytest.raises(UnauthenticatedError):
        await left_behind.run_remote_workflow("w", ["echo"], "3", 20)
    assert work.begun["echo"] == before
    assert (await moving.run_remote_workflow("w", ["echo"], "4", 20)).result == 4


async def test_injected_token_rotates(serve: Serve, connect: Connect, work: Any, tmp_path: Path) -> None:
    """A lane whose sidecar's headers are out of date is refused at the gate, and the call goes by the next one, once."""
    file = tmp_path / "proof"
    file.write_text("old-proof-" * 5)
    server = await serve(token=TOKEN, sidecar_proof_file=file)
    client = await connect(server, token=TOKEN, lane="always")
    assert (await client.run_remote_workflow("w", ["echo"], "1", 20)).result == 1
    lane = client._lanes_here().least()
    assert lane is not None
    # What the sidecar added when the lane was opened counts no longer: here, a header that was never right.
    served = next(iter(server._lanes.lanes))
    served._metadata.append(("x-blazen-sidecar-proof", "another-proof"))
    assert (await client.run_remote_workflow("w", ["echo"], "2", 20)).result == 2
    assert work.begun == {"echo": 2}
    assert lane.retired
    assert client._lanes_here().least() is not lane


Guard = Callable[..., Awaitable[Any]]


async def test_policy_narrows(guarded: Guard, tmp_path: Path) -> None:
    """What a policy no longer allows is refused on a lane that was opened under the one before; streams end."""
    file = tmp_path / "policy.json"
    file.write_text(policy_of(flow("intake", "analyst", ["count", "slow"], "personal")).to_json())

    def prepare(peer: Any) -> None:
        peer.serve("count", "counted")
        peer.serve("slow", "slowly")

    peer = await guarded(file, prepare)
    client = await peer.client("intake", "personal", lane="always")
    assert (await client.run_remote_workflow("count", [], "1")).result == 1
    file.write_text(policy_of(flow("intake", "analyst", ["slow"], "personal")).to_json())
    with pytest.raises(PermissionDeniedError, match="the policy of analyst does not allow this call"):
        await client.run_remote_workflow("count", [], "2")
    assert (await client.run_remote_workflow("slow", [], "3")).result == 3
    file.write_text(policy_of(flow("audit", "analyst", ["slow"], "personal")).to_json())
    with pytest.raises(PermissionDeniedError, match="this caller is not allowed"):
        await client.run_remote_workflow("slow", [], "4")
    assert peer.begun == {"counted": 1, "slowly": 1}


async def test_frame_of_another_class(guarded: Guard, refusals: Callable[[], list[str]]) -> None:
    """A frame that says a stricter class than its lane's stamp is refused, and a class that the mesh does not have."""
    peer = await guarded(
        policy_of(flow("intake", "analyst", ["analyze"], "internal")),
        lambda peer: peer.serve("analyze", "first", data_class="internal"),
    )
    client = await peer.client("intake", "internal", lane="always")
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
    about = client._about
    for said, reason in (("personal", "a port that stamps internal, which is laxer"), ("top", "'top' data, a class that")):
        client._about = lambda *args, said=said: about(*args)._replace(data_class=said)
        client._port.check_stamp = lambda *_: None
        with pytest.raises(PermissionDeniedError):
            await client.run_remote_workflow("analyze", [], "1")
        [line] = refusals()
        assert reason in line
    assert peer.begun == {"first": 1}


async def test_answers_are_the_callers(guarded: Guard, envelope: Any) -> None:
    """A step's failure comes back the same by a lane as by itself."""
    peer = await guarded(
        policy_of(flow("intake", "analyst", ["analyze"], "personal")), lambda peer: peer.serve("analyze", "first")
    )
    said = []
    for lane in ("never", "always"):
        client = await peer.client("intake", "personal", lane=lane)
        with pytest.raises((PermissionDeniedError, WorkflowError)) as caught:
            await client.run_remote_workflow("unknown", [], "1")
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]
