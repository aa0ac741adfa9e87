"""The gate in front of a real server: every method and kind of call but health, and what caller and log get to know."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2

from blazen_peer import Context, PeerClient, PeerServer, StartEvent, StopEvent, UnauthenticatedError
from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.runtime.registry import Registry
from blazen_peer.testing import peers
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]
Metadata = list[tuple[str, str]]
Code = grpc.StatusCode

TOKEN, OTHER, PROOF = "t0ken-" * 8, "0ther-" * 8, "pr00f-" * 8
KEYS = TokenKeys.from_tokens(TOKEN)
TELLS = SubWorkflowRequest("w", ("tells",), b"null").encode()
HASH = "ab" * 32


def minted(node_id: str = "node-a", token: str = TOKEN, age_secs: float = 0) -> str:
    return mint(TokenKeys.from_tokens(token), node_id, now=time.time() - age_secs, jti="j")


def forged(**changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "node-a", "aud": "blazen.peer.v1", "iat": now, "exp": now + 60, "jti": "j", **changes}
    return jwt.encode(claims, KEYS.signing[0], algorithm="HS256")


def bearer(token: str) -> Metadata:
    return [("authorization", f"Bearer {token}")]


def named(node_id: str, proof: str = PROOF) -> Metadata:
    uri = f"spiffe://mesh.test/peer/{node_id}"
    return [("x-blazen-sidecar-proof", proof), ("x-forwarded-client-cert", f"Hash={HASH};URI={uri}")]


@pytest.fixture(autouse=True)
def tells(registry: Registry) -> None:
    """The step that says who called."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=str(ctx.caller))


async def who(raw_call: RawCall, server: PeerServer, metadata: Metadata) -> str:
    answer = SubWorkflowResponse.decode(await raw_call(server, TELLS, metadata=metadata))
    assert answer.result_json is not None
    return answer.result_json.decode().strip('"')


REFUSED: list[Any] = [
    pytest.param(lambda: [], "0 authorization values instead of one", id="no-token"),
    pytest.param(lambda: bearer(OTHER), "neither a token in force nor a JWT", id="another-token"),
    pytest.param(lambda: bearer(TOKEN[:-1]), "neither a token in force nor a JWT", id="a-part-of-the-token"),
    pytest.param(lambda: [("authorization", TOKEN)], "not 'Bearer '", id="no-scheme"),
    pytest.param(lambda: [("authorization", f"Basic {TOKEN}")], "not 'Bearer '", id="another-scheme"),
    pytest.param(lambda: bearer(TOKEN) * 2, "2 authorization values instead of one", id="two-values"),
    pytest.param(lambda: bearer(f"{TOKEN},{TOKEN}"), "not 'Bearer ' and one token", id="two-values-joined"),
    pytest.param(lambda: bearer(minted(token=OTHER)), "InvalidSignatureError", id="jwt-of-another-token"),
    pytest.param(lambda: bearer(minted(age_secs=100)), "has expired", id="jwt-expired"),
    pytest.param(lambda: bearer(minted(age_secs=-100)), "issued in the future", id="jwt-of-the-future"),
    pytest.param(
        lambda: bearer(forged(exp=int(time.time()) + 30 * 365 * 86_400)), "made for 1 to 60 seconds", id="jwt-for-ever"
    ),
    pytest.param(lambda: bearer(forged(aud="another")), "InvalidAudienceError", id="jwt-of-another-audience"),
    pytest.param(lambda: bearer(forged(iss="a/b")), "iss is not a node id", id="jwt-of-no-node"),
    pytest.param(lambda: bearer(jwt.encode({"iss": "node-a"}, None, algorithm="none")), "bearer is neither", id="jwt-unsigned"),
]


@pytest.mark.parametrize(("metadata", "reason"), REFUSED)
async def test_refused(
    serve: Serve, raw_call: RawCall, caplog: pytest.LogCaptureFixture, metadata: Callable[[], Metadata], reason: str
) -> None:
    """Whatever is wrong with the token, the caller hears the same; the peer's log has the reason and no token."""
    caplog.set_level(logging.DEBUG)
    pairs = metadata()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(await serve(token=TOKEN), b"garbage that nobody decodes", metadata=pairs)
    assert caught.value.code() is Code.UNAUTHENTICATED
    assert caught.value.details() == "the call was refused: a valid token is needed"
    info, trailing = ErrorInfo(), dict(caught.value.trailing_metadata() or ())
    assert Status.FromString(trailing["grpc-status-details-bin"]).details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("UNAUTHENTICATED", {})
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refused ")]
    assert line.startswith("refused /blazen.peer.v1.BlazenPeer/InvokeSubWorkflow with UNAUTHENTICATED: ")
    assert reason in line
    for secret in (TOKEN, OTHER, *(value.removeprefix("Bearer ") for _, value in pairs)):
        assert secret not in caplog.text
        assert secret[:24] not in caplog.text


METHODS = [
    "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow",
    "/blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents",
    "/blazen.peer.v1.BlazenPeer/DerefSessionRef",
    "/blazen.peer.v1.BlazenPeer/ReleaseSessionRef",
    "/blazen.peer.v1.BlazenPeer/NoSuchMethod",
    "/blazen_peer.control.v1.PeerControl/Describe",
    "/blazen_peer.control.v1.PeerControl/DerefChunks",
    "/blazen_peer.control.v1.PeerControl/ListRefs",
    "/blazen_peer.control.v1.PeerControl/ParentEnded",
    "/no.such.Service/NoSuchMethod",
    "/grpc.health.v1.Health.NotQuite/Check",
    "/",
    "/blazen_peer.control.v1.PeerControl/Attach",
    "/blazen_peer.control.v1.PeerControl/Cancel",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


def called(target: str, method: str, kind: str) -> tuple[Code, str]:
    """Call by the blocking client, with requests that do not end before the answer where *kind* streams them."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        over.wait(10)

    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        multi_callable: Any = getattr(channel, kind)(method)
        start = multi_callable.future if kind.endswith("unary") else multi_callable
        call = start(requests() if kind.startswith("stream") else b"garbage", timeout=5)
        try:
            return call.code(), call.details()
        finally:
            over.set()


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
@pytest.mark.parametrize("method", METHODS)
async def test_every_method_and_kind(serve: Serve, method: str, kind: str) -> None:
    """Without a token every method, known or not, called in any of the four ways, is refused before anything else."""
    server = await serve(token=TOKEN)
    code, text = await asyncio.to_thread(called, server.address.removeprefix("http://"), method, kind)
    assert (code, text) == (Code.UNAUTHENTICATED, "the call was refused: a valid token is needed")


@pytest.mark.parametrize("method", ["/blazen.peer.v1.BlazenPeer/NoSuchMethod", "/no.such.Service/NoSuchMethod"])
async def test_admitted_to_what_is_not_there(serve: Serve, raw_call: RawCall, method: str) -> None:
    """Who is admitted gets to know that a method is not there."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(await serve(token=TOKEN), b"", method=method, metadata=bearer(TOKEN))
    assert caught.value.code() is Code.UNIMPLEMENTED


async def test_health_stands_beside_the_gate(serve: Serve) -> None:
    """Health is answered without a token, and with a wrong one, to Check and to Watch."""
    server = await serve(token=TOKEN)
    async with grpc.aio.insecure_channel(server.address.removeprefix("http://")) as channel:
        request = health_pb2.HealthCheckRequest().SerializeToString()
        answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=5, metadata=bearer(OTHER))
        assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=5)
        assert health_pb2.HealthCheckResponse.FromString(await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_admitted(serve: Serve, raw_call: RawCall) -> None:
    """A JWT makes the caller the node that it claims; the token itself, as a constant, makes nobody in particular."""
    server = await serve(token=TOKEN)
    assert await who(raw_call, server, bearer(minted("node-x"))) == "claimed:node-x"
    assert await who(raw_call, server, bearer(TOKEN)) == "anonymous"
    assert await who(raw_call, server, [*bearer(TOKEN), *named("node-x")[1:]]) == "anonymous"


async def test_our_client(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAZEN_PEER_TOKEN on both ends suffices; without it, or with another, calls are refused, though the peer is there."""
    server = await serve(token=TOKEN)
    for options in ({}, {"token": OTHER}):
        client = await connect(server, **options)
        with pytest.raises(UnauthenticatedError):
            await client.run_remote_workflow("w", ["tells"], "null")
        with pytest.raises(UnauthenticatedError):
            await client.describe()
    monkeypatch.setenv("BLAZEN_PEER_TOKEN", TOKEN)
    client = await connect(server)
    assert (await client.run_remote_workflow("w", ["tells"], "null")).result == "claimed:node-a"
    assert (await client.describe()).node_id == "node-b"


async def test_rotation_by_file(serve: Serve, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running peer takes up changed files: both tokens are accepted at every moment until the old one is dropped."""
    current, previous = tmp_path / "token", tmp_path / "previous"

    def write(path: Path, text: str) -> None:
        path.with_suffix(".new").write_text(text + "\n")
        path.with_suffix(".new").rename(path)

    async def accepted() -> list[bool]:
        found = []
        for client in clients:
            try:
                found.append((await client.run_remote_workflow("w", ["tells"], "null")).result == "claimed:node-a")
            except UnauthenticatedError:
                found.append(False)
        return found

    write(current, TOKEN)
    write(previous, TOKEN)
    monkeypatch.setenv("BLAZEN_PEER_TOKEN_FILE", str(current))
    monkeypatch.setenv("BLAZEN_PEER_TOKEN_PREVIOUS_FILE", str(previous))
    server = await serve()
    clients = [await connect(server, token=TOKEN), await connect(server, token=OTHER), await connect(server)]
    assert await accepted() == [True, False, True]
    write(previous, f"{TOKEN}\n{OTHER}")
    assert await accepted() == [True, True, True]
    write(current, OTHER)
    assert await accepted() == [True, True, True]
    write(previous, OTHER)
    assert await accepted() == [False, True, True]
    write(current, "too short")
    assert await accepted() == [False, True, True]


@pytest.fixture
async def behind_a_sidecar(serve: Serve, tmp_path: Path) -> PeerServer:
    """A server that wants identity."""
    (tmp_path / "proof").write_text(PROOF + "\n")
    return await serve(token=TOKEN, require_identity=True, sidecar_proof_file=tmp_path / "proof")


async def test_identity(behind_a_sidecar: PeerServer, raw_call: RawCall) -> None:
    """With the sidecar's proof the caller is the full SPIFFE name, by a JWT of that node or by the token itself."""
    for token in (minted("node-a"), TOKEN):
        metadata = [*bearer(token), *named("node-a")]
        assert await who(raw_call, behind_a_sidecar, metadata) == "spiffe://mesh.test/peer/node-a"


DENIED = [
    pytest.param(lambda: bearer(minted()), "did not come through the sidecar", id="past-the-sidecar"),
    pytest.param(lambda: [*bearer(minted()), named("node-a")[1]], "did not come through", id="forged-name-without-proof"),
    pytest.param(lambda: [*bearer(minted()), *named("node-a", OTHER)], "proof is wrong", id="forged-proof"),
    pytest.param(lambda: [*bearer(minted()), *named("node-a"), ("x-blazen-sidecar-proof", PROOF)], "wrong", id="two-proofs"),
    pytest.param(lambda: [*bearer(minted("node-x")), *named("node-a")], "the token is of node node-x", id="borrowed-token"),
    pytest.param(lambda: [*bearer(TOKEN), *named("node-a")[:1]], "did not come through", id="proof-without-a-name"),
    pytest.param(lambda: [*bearer(TOKEN), *named("node-a"), *named("node-b")[1:]], "2 x-forwarded", id="two-names"),
]


@pytest.mark.parametrize(("metadata", "reason"), DENIED)
async def test_denied(
    behind_a_sidecar: PeerServer,
    raw_call: RawCall,
    caplog: pytest.LogCaptureFixture,
    metadata: Callable[[], Metadata],
    reason: str,
) -> None:
    """A good token without a good identity is PERMISSION_DENIED, without a word about why but in the log."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(behind_a_sidecar, TELLS, metadata=metadata())
    assert (caught.value.code(), caught.value.details()) == (
        Code.PERMISSION_DENIED,
        "the call was refused: this caller is not allowed",
    )
    assert reason in caplog.text
    assert PROOF not in caplog.text
    assert TOKEN not in caplog.text


async def test_callers_are_never_mixed_up(serve: Serve, connect: Connect, registry: Registry) -> None:
    """Many callers at once, on many connections and on one: each run sees its own caller, and keeps it while others come."""
    waiting, all_there = 0, asyncio.Event()

    @registry.step("meets")
    async def meets(event: StartEvent, ctx: Context) -> StopEvent:
        nonlocal waiting
        before = str(ctx.caller)
        waiting += 1
        if waiting == 400:
            all_there.set()
        await all_there.wait()
        return StopEvent(result=[before, str(ctx.caller), event.data])

    server = await serve(token=TOKEN)
    clients = [await connect(server, f"node-{number}", token=TOKEN) for number in range(40)]
    async with asyncio.timeout(60):
        calls = [client.run_remote_workflow("w", ["meets"], f'"{client.node_id}"', 50) for _ in range(10) for client in clients]
        results = [result.result for result in await asyncio.gather(*calls)]
    for before, after, node_id in results:
        assert before == after == f"claimed:{node_id}"
    assert len({node_id for _, _, node_id in results}) == 40


async def test_a_refused_message_is_taken(registry: Registry) -> None:
    """A caller that still sends its one message when it is refused gets the refusal, and no error of gRPC's own making.

    The link between sends it as a stream does, late: so one call in fifty went wrong while the gate did not take the message.
    """
    async with peers(registry=registry, lane="auto") as ends:
        stranger = await ends.connect("node-c", token="x" * 40)
        for _ in range(40):
            calls = (stranger.run_remote_workflow("demo", ["demo::none"], "{}", 10) for _ in range(20))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {UnauthenticatedError}
