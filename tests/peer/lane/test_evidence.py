"""What a peer writes of calls on lanes: a line for each refusal by the gate; where it is asked for, a line for each call."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.cli.logs import log_to
from blazen_peer.transport.call_log import LOGGER, CallLine
from blazen_peer.transport.proto import lane_pb2, peer_pb2
from tests.peer.conftest import Serve
from tests.peer.lane.conftest import soon
from tests.peer.policy.guarded import PROOF, flow, policy_of
from tests.peer.policy.guarded import TOKEN as MESH_TOKEN

Request, Call = lane_pb2.LaneRequest, lane_pb2.Call
TOKEN = "t" * 43
INVOKE = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-00"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[CallLine]]:
    """The lines of calls so far."""
    caplog.set_level(logging.INFO)
    return lambda: [record.msg for record in caplog.records if record.name == LOGGER]  # type: ignore[misc]


def bearer(ahead_secs: float = 0) -> str:
    return f"Bearer {mint(TokenKeys.from_tokens(TOKEN), 'raw', now=time.time() + ahead_secs, jti='one')}"


async def test_refused_at_the_gate(serve: Serve, raw_lane: Any, caplog: pytest.LogCaptureFixture, stack: Any) -> None:
    """A frame that the gate refuses leaves the line that a call alone leaves: method, reason, who it says it is, which call."""
    server = await serve(token=TOKEN)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address.removeprefix("http://")))
    old = ("authorization", bearer(-600))
    sent = (old, ("blazen-client-node-id", "raw"), ("blazen-invocation-id", "one"))
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary(INVOKE)(peer_pb2.PostcardRequest().SerializeToString(), metadata=sent, timeout=20)
    lane = await raw_lane(server, authorization=bearer())
    await lane.send(
        Request(calls=[Call(id=1, invocation_id="one"), Call(id=2, invocation_id="a\nforged line")], authorization=old[1])
    )
    assert len((await lane.read()).answers) == 2
    alone, by_lane, forged = (record.getMessage() for record in caplog.records if record.getMessage().startswith("refused "))
    assert alone == by_lane
    assert alone.startswith(f"refused {INVOKE} with UNAUTHENTICATED: ")
    assert alone.endswith("(client raw, invocation one)")
    assert forged == alone.replace(", invocation one", "")


async def test_each_call(serve: Serve, raw_lane: Any, envelope: Any, work: Any, lines: Any) -> None:
    """Every frame leaves one line, however it ends, with its names, sizes and times; none holds a payload."""
    lane = await raw_lane(await serve("node-b", access_log=True))
    began = time.time()
    echo, large = envelope("echo", "a secret"), envelope("emit", 2)
    await lane.send(
        Request(
            calls=[
                Call(id=1, envelope=echo, invocation_id="echo", traceparent=TRACE),
                Call(id=2, envelope=b"\xff", invocation_id="garbage", traceparent="nonsense"),
                Call(id=3, envelope=envelope("nobody"), invocation_id="unknown-step"),
                Call(id=4, envelope=envelope("hold"), invocation_id="dropped"),
                Call(id=5, envelope=large, invocation_id="stream", stream=True, event_credit=9),
                Call(id=6, envelope=b"x", invocation_id="a b"),
            ],
            attaches=[lane_pb2.Attach(id=7, invocation_id="nothing")],
            cancels=[lane_pb2.Cancel(id=8, invocation_id="nothing\n")],
        )
    )
    await asyncio.wait_for(work.held.wait(), 20)
    await lane.send(Request(dropped=[4]))
    await soon(lambda: any(line["invocation_id"] == "dropped" for line in lines()))
    work.release.set()
    await soon(lambda: len(lines()) == 8)
    found = {line["method"].rpartition("/")[2] + " " + str(line["invocation_id"]): line for line in lines()}
    assert {name: (line["grpc_status"], line["refusal"], line["workflow"]) for name, line in found.items()} == {
        "InvokeSubWorkflow echo": ("OK", None, "w"),
        "InvokeSubWorkflow garbage": ("InvalidArgument", "Encode", None),
        "InvokeSubWorkflow unknown-step": ("NotFound", "UnknownStep", "w"),
        "InvokeSubWorkflow dropped": ("Canceled", None, "w"),
        "StreamSubWorkflowEvents stream": ("OK", None, "w"),
        "InvokeSubWorkflow None": ("InvalidArgument", "Encode", None),
        "Attach nothing": ("NotFound", "InvocationNotFound", None),
        "Cancel None": ("InvalidArgument", "Encode", None),
    }
    line = found["InvokeSubWorkflow echo"]
    assert (line["node"], line["hop"], line["caller"], line["client"]) == ("node-b", "lane", "anonymous", "raw")
    assert (line["trace_id"], line["bytes_received"]) == ("ab" * 16, len(echo))
    assert line["bytes_sent"] > 0 <= line["duration_ms"] <= (time.time() - began) * 1000 + 1
    assert found["StreamSubWorkflowEvents stream"]["bytes_sent"] > line["bytes_sent"]
    assert found["InvokeSubWorkflow garbage"]["trace_id"] is None
    assert not any("secret" in str(line) or "forged" in str(line) for line in lines())


async def test_turned_away(guarded: Any, raw_lane: Any, envelope: Any, lines: Any) -> None:
    """A frame of which nothing was looked at leaves its line too, with its stamp: over the rate, or at the gate."""
    policy = replace(policy_of(flow("intake", "analyst", ["w"], "personal")), calls_per_sec=1)
    peer = await guarded(policy, lambda peer: peer.serve("w", "echo"), access_log=True)
    lane = await raw_lane(
        peer.server,
        **{
            "authorization": f"Bearer {MESH_TOKEN}",
            "x-blazen-sidecar-proof": PROOF,
            "x-forwarded-client-cert": "URI=spiffe://mesh.test/peer/intake",
            "x-blazen-data-class": "personal",
        },
    )
    frames = [Call(id=n, envelope=envelope("echo", n), invocation_id=f"call-{n}") for n in (1, 2)]
    await lane.send(Request(calls=frames, authorization="Bearer wrong"))
    await soon(lambda: len(lines()) == 2)
    assert {line["invocation_id"]: (line["grpc_status"], line["refusal"]) for line in lines()} == {
        "call-1": ("Unauthenticated", "Unauthenticated"),
        "call-2": ("ResourceExhausted", "Overloaded"),
    }
    assert {(line["caller"], line["data_class"], line["workflow"]) for line in lines()} == {
        ("spiffe://mesh.test/peer/intake", "personal", "w")
    }
    assert peer.begun == {}


async def test_not_asked_for(serve: Serve, raw_lane: Any, envelope: Any, work: Any, lines: Any) -> None:
    """A server writes no such lines unless it was told to."""
    lane = await raw_lane(await serve())
    await lane.send(Request(calls=[Call(id=1, envelope=envelope("echo", 1))]))
    assert (await lane.read()).answers[0].HasField("envelope")
    assert lines() == []


@pytest.mark.parametrize("style", ["text", "json"])
def test_as_a_line(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a JSON log the fields stand among the line's own; as text, the message is JSON."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    out = io.StringIO()
    log_to(out, logging.WARNING, style=style, node_id="node-b", access_log=True)
    logging.getLogger(LOGGER).info(CallLine(time="2026-11-23T20:00:00.000Z", log="call", node="node-b", caller='"\n'))
    [line] = out.getvalue().splitlines()
    found = json.loads(line if style == "json" else line.partition(f"{LOGGER}: ")[2])
    assert (found["time"], found["log"], found["caller"]) == ("2026-11-23T20:00:00.000Z", "call", '"\n')
    assert ("message" in found, found.get("level")) == (False, "info" if style == "json" else None)
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)
