"""Traps 11, 20 and 24: headers that a rule reads, sent twice, forged, or at odds with the payload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from blazen_peer import PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest

pytestmark = pytest.mark.envoy
STAMP = "x-blazen-data-class"
TOKEN = "the-shared-token-of-this-mesh-0123456789"
Direct = Callable[[Any, str, str], Any]

STAMPS = [
    pytest.param("intake", ["personal"], True, id="one"),
    pytest.param("intake", ["internal"], True, id="another-one"),
    pytest.param("archive", ["internal"], True, id="what-its-flow-says"),
    pytest.param("archive", ["personal"], False, id="not-its-flows"),
    pytest.param("intake", [], False, id="none"),
    pytest.param("intake", [""], False, id="empty"),
    pytest.param("intake", ["Personal"], False, id="other-case"),
    pytest.param("intake", ["personal "], False, id="white-space"),
    pytest.param("intake", ["personal", "personal"], False, id="twice-the-same"),
    pytest.param("intake", ["personal", "internal"], False, id="two"),
    pytest.param("archive", ["internal", "personal"], False, id="the-allowed-one-first"),
    pytest.param("archive", ["personal", "internal"], False, id="the-allowed-one-last"),
    pytest.param("intake", ["personal,internal"], False, id="joined"),
    pytest.param("intake", ["secret"], False, id="unknown"),
]


@pytest.fixture
async def ingress(classed: Any) -> Any:
    """The classed mesh with analyst's sidecar alone: callers speak TLS themselves, as a captured sidecar could."""
    await classed.start_sidecar("analyst")
    return classed


async def code_of(mesh: Any, direct: Direct, caller: str, stamps: list[str]) -> grpc.StatusCode:
    """Return how a call with *stamps* ends that comes past the caller's sidecar."""
    async with direct(mesh, caller, "analyst") as channel:
        try:
            await mesh.call(caller, "analyst", channel=channel, metadata=[(STAMP, stamp) for stamp in stamps])
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_trap_11_the_ingress_takes_exactly_one_stamp(ingress: Any, direct: Direct) -> None:
    """Whatever a sidecar that was captured sends, one class of its own flow comes through, and nothing else does."""
    cases = [case.values for case in STAMPS]
    codes = await asyncio.gather(*(code_of(ingress, direct, caller, stamps) for caller, stamps, _ in cases))
    got = {(caller, *stamps): code for (caller, stamps, _), code in zip(cases, codes, strict=True)}
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert got == {(caller, *stamps): grpc.StatusCode.OK if allowed else denied for caller, stamps, allowed in cases}
    seen = sorted(call.values(STAMP) for call in ingress.peers["analyst"].calls)
    assert seen == [["internal"], ["internal"], ["personal"]]


async def test_trap_11_a_match_alone_takes_two(classed: Any, direct: Direct, walk: Any) -> None:
    """Envoy's header matchers are content when one value of two fits: the rule that it came once is what refuses them."""

    def matchers_alone(documents: dict[str, Any]) -> None:
        for item in walk(documents["rds.json"]):
            item.pop("condition", None)

    await classed.start_sidecar("analyst", alter=matchers_alone)
    assert await code_of(classed, direct, "intake", ["internal", "personal"]) is grpc.StatusCode.OK
    assert len(classed.peers["analyst"].calls[0].values(STAMP)) == 2


async def test_trap_11_the_egress_overwrites(classed: Any) -> None:
    """A client's own stamps, however many, are taken off; the port's is what arrives, and what the answer says."""
    await asyncio.gather(classed.start_sidecar("intake"), classed.start_sidecar("analyst"))
    classed.peers["analyst"].answer_metadata = ((STAMP, "forged"),)
    for name in ("personal", "internal"):
        channel = classed.channel("intake", "analyst", name)
        forged = [(STAMP, "personal"), (STAMP, "internal"), (STAMP, "secret")]
        call = channel.unary_unary("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")(b"x", metadata=forged, timeout=10)
        assert await call == b"x"
        assert classed.peers["analyst"].calls[-1].values(STAMP) == [name]
        assert [value for key, value in await call.initial_metadata() if key == STAMP] == [name]


async def test_trap_11_without_classes_there_is_no_stamp(mesh: Any, direct: Direct) -> None:
    """In a mesh without data classes both hops take a stamp off, of calls and of answers."""
    mesh.peers["analyst"].answer_metadata = ((STAMP, "forged"),)
    call = mesh.channel("intake", "analyst").unary_unary("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")
    done = call(b"x", metadata=[(STAMP, "personal")], timeout=10)
    assert await done == b"x"
    assert STAMP not in dict(await done.initial_metadata())
    async with direct(mesh, "intake", "analyst") as channel:
        await mesh.call("intake", "analyst", channel=channel, metadata=[(STAMP, "personal")])
    assert [call.values(STAMP) for call in mesh.peers["analyst"].calls] == [[], []]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://mesh.test/peer/analyst", id="identity"),
        pytest.param("x-blazen-sidecar-proof", "forged", id="proof"),
        pytest.param("x-envoy-retry-grpc-on", "unavailable", id="retries"),
        pytest.param("x-envoy-upstream-rq-timeout-ms", "1", id="timeout"),
    ],
)
async def test_trap_11_forged_headers_never_arrive(mesh: Any, name: str, value: str) -> None:
    """What only sidecars may say is taken off a caller, though it be sent twice, and does nothing."""

    async def after_a_while(request: bytes) -> bytes:
        await asyncio.sleep(0.2)
        return request

    mesh.peers["analyst"].answer = after_a_while
    await mesh.call("intake", "analyst", metadata=[(name, value), (name, value)])
    (call,) = mesh.peers["analyst"].calls
    assert value not in call.values(name)
    assert len(call.values(name)) <= 1
    assert call.values("x-blazen-sidecar-proof") == [mesh.proof_file("analyst").read_text()]


async def test_trap_11_a_callers_sidecar_cannot_forge_either(mesh: Any, direct: Direct) -> None:
    """A caller that speaks TLS itself, in place of its sidecar, forges no name, no proof and no timeout at the ingress."""
    forged = [
        ("x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://mesh.test/peer/analyst"),
        ("x-blazen-sidecar-proof", "forged"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
    ]
    async with direct(mesh, "intake", "analyst") as channel:
        assert await mesh.call("intake", "analyst", metadata=forged * 2, channel=channel) == b"hello"
    (call,) = mesh.peers["analyst"].calls
    (identity,) = call.values("x-forwarded-client-cert")
    assert re.search(r";URI=spiffe://mesh\.test/peer/intake$", identity)
    assert "peer/analyst" not in identity.partition(";Hash=")[2]
    assert call.values("x-blazen-sidecar-proof") == [mesh.proof_file("analyst").read_text()]


async def test_trap_11_two_authorizations_arrive_joined(mesh: Any) -> None:
    """Two ``authorization`` headers arrive as something that the gate can tell from one."""
    await mesh.call("intake", "analyst", metadata=[("authorization", "Bearer one"), ("authorization", "Bearer two")])
    (call,) = mesh.peers["analyst"].calls
    assert call.values("authorization") in (["Bearer one,Bearer two"], ["Bearer one", "Bearer two"])


@pytest.fixture
async def served(start_mesh: Any) -> AsyncIterator[tuple[Any, list[str]]]:
    """A mesh whose analyst is a real server with the policy that is rendered for it, and what it executed."""
    mesh = await start_mesh(stand_ins=False, workflows=["allowed"])
    registry, executed = Registry(), []

    @registry.step("demo::note")
    async def note(event: StartEvent) -> StopEvent:
        executed.append(str(event.data))
        return StopEvent(result=event.data)

    async with AsyncExitStack() as stack:
        workflows = [Workflow(name, ["demo::note"], registry=registry) for name in ("allowed", "other")]
        server = PeerServer(
            "analyst",
            registry=registry,
            workflows=workflows,
            token=TOKEN,
            require_identity=True,
            sidecar_proof_file=mesh.proof_file("analyst"),
            policy=mesh.root / "analyst" / "policy.json",
            settings=ServerSettings(lame_duck_secs=0, drain_secs=5),
        )
        await stack.enter_async_context(server.serving(mesh.listen("analyst")))
        yield mesh, executed


@pytest.mark.parametrize(
    ("payload", "said", "code"),
    [
        pytest.param("allowed", "allowed", grpc.StatusCode.OK, id="agree"),
        pytest.param("allowed", None, grpc.StatusCode.OK, id="nothing-said"),
        pytest.param("other", "allowed", grpc.StatusCode.PERMISSION_DENIED, id="says-the-allowed-one"),
        pytest.param("allowed", "other", grpc.StatusCode.PERMISSION_DENIED, id="says-another"),
        pytest.param("other", "other", grpc.StatusCode.PERMISSION_DENIED, id="no-flow"),
    ],
)
async def test_trap_20_metadata_against_payload(served: Any, payload: str, said: str | None, code: grpc.StatusCode) -> None:
    """Envoy sees what the metadata says, the server what the payload says: where they differ, nothing is executed."""
    mesh, executed = served
    envelope = SubWorkflowRequest(payload, ("demo::note",), b'"x"', 10)
    request = PostcardRequest(postcard_payload=envelope.encode()).SerializeToString()
    metadata = [("authorization", f"Bearer {TOKEN}"), *([("blazen-workflow", said)] if said else [])]
    got = grpc.StatusCode.OK
    try:
        await mesh.call("intake", "analyst", request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        got = error.code()
    assert got is code
    assert executed == (["x"] if code is grpc.StatusCode.OK else [])
    (entry,) = await mesh.wait_log("analyst", log="call")
    assert entry["workflow"] == said


async def test_trap_24_an_injected_token_overwrites(start_mesh: Any) -> None:
    """An injecting egress port sends the node's token, whatever the caller sent and however often."""
    mesh = await start_mesh(inject=[("intake", "analyst")], token="a-token\n")
    await mesh.call("intake", "analyst")
    await mesh.call("intake", "analyst", metadata=[("authorization", "Bearer a"), ("authorization", "Bearer b")])
    assert [call.values("authorization") for call in mesh.peers["analyst"].calls] == [["Bearer a-token"]] * 2
