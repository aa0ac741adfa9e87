"""Session refs over gRPC: whose they are, what ends them, large ones, and what other clients and servers see."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, cast
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from blazen_peer import (
    Context,
    EncodeError,
    OverloadedError,
    PeerClient,
    PeerError,
    PeerServer,
    RefNotFoundError,
    RemoteRef,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    ValidationError,
    WorkflowBuilder,
    WorkflowError,
)
from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.runtime.registry import Registry
from blazen_peer.testing import virtual_time
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.wire import (
    DerefRequest,
    DerefResponse,
    ReleaseRequest,
    ReleaseResponse,
    SubWorkflowRequest,
    SubWorkflowResponse,
)
from blazen_peer.wire.metadata import PeerTraits

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]

TOKEN = "t0ken-" * 8
TAG = "demo::Text"
DEREF = "/blazen.peer.v1.BlazenPeer/DerefSessionRef"
RELEASE = "/blazen.peer.v1.BlazenPeer/ReleaseSessionRef"
QUICK = {"lame_duck_secs": 0, "drain_secs": 2}
MIB = 1024 * 1024


def pieces(size_bytes: int) -> Iterator[bytes]:
    piece = bytes(range(256)) * 1000
    while size_bytes > 0:
        yield piece[:size_bytes]
        size_bytes -= len(piece)


@pytest.fixture(autouse=True)
def steps(registry: Registry) -> None:
    """Steps that leave refs behind."""

    @registry.step("put")
    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        """Put the input's texts, each with the options given."""
        refs = [
            ctx.put_ref(text, type_tag=TAG, serializer=str.encode, **event.data.get("options", {}))
            for text in event.data["texts"]
        ]
        return StopEvent(result=[str(ref.uuid) for ref in refs])

    @registry.step("put-in-thread")
    def put_in_thread(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=str(ctx.put_ref(event.data.encode(), type_tag=TAG).uuid))

    @registry.step("put-large")
    async def put_large(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(event.data, type_tag=TAG, serializer=pieces, size_bytes=1)
        return StopEvent()

    @registry.step("put-then-fail")
    async def put_then_fail(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(b"value", type_tag=TAG, lifetime="explicit_drop")
        raise LookupError("boom")

    @registry.step("put-unserializable")
    async def put_unserializable(event: StartEvent, ctx: Context) -> StopEvent:
        thing = object()
        ref = ctx.put_ref(thing, type_tag=TAG)
        assert ctx.get_ref(ref) is ctx.get_ref(ref.uuid) is ctx.get_ref(str(ref.uuid)) is thing
        return StopEvent(result=str(ref.uuid))

    @registry.step("get")
    async def get(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.get_ref(event.data))

    @registry.step("drop")
    async def drop(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=[ctx.drop_ref(event.data), ctx.drop_ref(event.data)])


async def put_one(client: PeerClient, text: str = "value", **options: Any) -> RemoteRef:
    """Have a run leave one ref, and return it."""
    result = await client.run_remote_workflow("w", ["put"], json.dumps({"texts": [text], "options": options}))
    [ref] = result.remote_refs.values()
    return ref


async def is_gone(client: PeerClient, ref: RemoteRef) -> bool:
    try:
        await client.deref(ref)
    except RefNotFoundError:
        return True
    return False


async def until_held(client: PeerClient, count: int) -> None:
    """Wait until the peer holds *count* refs for this client."""
    async with asyncio.timeout(10):
        while len(await client.list_refs()) != count:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0.005)


async def test_put_list_deref_release(serve: Serve, connect: Connect) -> None:
    """A result has this run's refs by uuid in the order they were put; each gives its value, is released once, and is gone."""
    client = await connect(await serve("node-b"))
    before_ms = time.time() * 1000
    await put_one(client, "another run's")
    result = await client.run_remote_workflow("w", ["put"], '{"texts": ["one", "two", "three"]}')
    refs = list(result.remote_refs.values())
    assert [str(uuid) for uuid in result.remote_refs] == [str(ref.uuid) for ref in refs]
    assert sorted(result.result) == sorted(str(ref.uuid) for ref in refs)
    assert {(ref.origin_node_id, ref.type_tag) for ref in refs} == {("node-b", TAG)}
    assert all(before_ms - 1 <= ref.created_at_epoch_ms <= time.time() * 1000 + 1 for ref in refs)
    values = {str(ref.uuid): await client.deref(ref) for ref in refs}
    assert [values[uuid] for uuid in result.result] == [b"one", b"two", b"three"]
    assert [await client.release(refs[0]) for _ in range(3)] == [True, False, False]
    with pytest.raises(RefNotFoundError) as raised:
        await client.deref(refs[0])
    assert str(raised.value) == f"session ref {refs[0].uuid} not found"
    assert not await is_gone(client, refs[1])


async def test_creation_time_is_the_puts(serve: Serve, connect: Connect, registry: Registry, raw_call: RawCall) -> None:
    """A ref says when it was put, however late the response; and the same each time it is shown."""
    put, go_on = asyncio.Event(), asyncio.Event()

    @registry.step("slow")
    async def slow(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(b"value", type_tag=TAG)
        put.set()
        await go_on.wait()
        return StopEvent()

    server = await serve()
    client = await connect(server)
    running = asyncio.create_task(client.run_remote_workflow("w", ["slow"], "null"))
    async with asyncio.timeout(10):
        await put.wait()
    put_by_ms = time.time() * 1000
    await asyncio.sleep(0.05)
    go_on.set()
    [ref] = (await running).remote_refs.values()
    assert ref.created_at_epoch_ms <= put_by_ms + 1
    [held] = await client.list_refs()
    assert held.ref == ref


async def test_second_caller(serve: Serve, connect: Connect, raw_call: RawCall) -> None:
    """Another identity cannot read, release, list or use the first one's ref, nor tell it from one that never was."""
    server = await serve(token=TOKEN)
    first, second = await connect(server, "node-a", token=TOKEN), await connect(server, "node-c", token=TOKEN)
    ref = await put_one(first, "secret")
    never = RemoteRef(uuid4(), ref.origin_node_id, ref.type_tag, ref.created_at_epoch_ms)
    for read in (second.deref, lambda ref: anext(second.deref_chunks(ref)), lambda ref: second.deref_to(ref, io.BytesIO())):
        texts = []
        for asked in (ref, never):
            with pytest.raises(RefNotFoundError) as raised:
                await read(asked)
            texts.append(str(raised.value).replace(str(asked.uuid), "<uuid>"))
        assert texts == ["session ref <uuid> not found"] * 2
    assert [await second.release(asked) for asked in (ref, never)] == [False, False]
    assert await second.list_refs() == ()
    own = await second.run_remote_workflow("w", ["put"], '{"texts": ["own"]}')
    assert ref.uuid not in own.remote_refs
    assert len(own.remote_refs) == 1
    with pytest.raises(WorkflowError, match=f"session ref {ref.uuid} not found"):
        await second.run_remote_workflow("w", ["get"], json.dumps(str(ref.uuid)))
    assert (await second.run_remote_workflow("w", ["drop"], json.dumps(str(ref.uuid)))).result == [False, False]
    assert await first.deref(ref) == b"secret"
    assert [held.ref for held in await first.list_refs()] == [ref]


async def test_second_caller_by_blazens_calls(serve: Serve, connect: Connect, raw_call: RawCall) -> None:
    """So it is for a client that speaks Blazen's calls alone: NOT_FOUND, released False."""
    server = await serve(token=TOKEN)
    ref = await put_one(await connect(server, "node-a", token=TOKEN))
    statuses = []
    for node_id in ("node-c", "node-a"):
        bearer = mint(TokenKeys.from_tokens(TOKEN), node_id, now=time.time(), jti="j")
        metadata = [("authorization", f"Bearer {bearer}")]
        try:
            answer = await raw_call(server, DerefRequest(ref_uuid=ref.uuid).encode(), method=DEREF, metadata=metadata)
            statuses.append((None, DerefResponse.decode(answer).payload))
        except grpc.aio.AioRpcError as error:
            statuses.append((error.code(), (error.details() or "").encode()))
        answer = await raw_call(server, ReleaseRequest(ref_uuid=ref.uuid).encode(), method=RELEASE, metadata=metadata)
        statuses.append(ReleaseResponse.decode(answer).released)  # type: ignore[arg-type]
    not_found = f"session ref {ref.uuid} not found".encode()
    assert statuses == [(grpc.StatusCode.NOT_FOUND, not_found), False, (None, b"value"), True]


async def test_blazens_calls(serve: Serve, raw_call: RawCall) -> None:
    """A client of Blazen's gets the refs listed, the bare bytes, released true then false, NOT_FOUND after."""
    server = await serve("node-b")
    request = SubWorkflowRequest("w", ("put",), b'{"texts": ["value"]}').encode()
    response = SubWorkflowResponse.decode(await raw_call(server, request))
    [(uuid, descriptor)] = response.remote_refs.items()
    assert (descriptor.origin_node_id, descriptor.type_tag) == ("node-b", TAG)
    deref, release = DerefRequest(ref_uuid=uuid).encode(), ReleaseRequest(ref_uuid=uuid).encode()
    assert DerefResponse.decode(await raw_call(server, deref, method=DEREF)).payload == b"value"
    for truth in (True, False):
        assert ReleaseResponse.decode(await raw_call(server, release, method=RELEASE)).released is truth
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw_call(server, deref, method=DEREF)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, f"session ref {uuid} not found")


BAD = [
    pytest.param(b"\x01\x05abc", grpc.StatusCode.INVALID_ARGUMENT, "postcard decode failed: ", id="garbage"),
    pytest.param(b"", grpc.StatusCode.INVALID_ARGUMENT, "postcard decode failed: ", id="nothing"),
    pytest.param(
        b"\x02??", grpc.StatusCode.FAILED_PRECONDITION, "envelope version 2 is newer than supported 1", id="newer-version"
    ),
]


@pytest.mark.parametrize("method", [DEREF, RELEASE])
@pytest.mark.parametrize(("envelope", "code", "text"), BAD)
async def test_bad_envelopes(
    serve: Serve, raw_call: RawCall, method: str, envelope: bytes, code: grpc.StatusCode, text: str
) -> None:
    """A request that cannot be read is refused as ``wire.md`` says."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw_call(await serve(), envelope, method=method)
    assert raised.value.code() is code
    assert (raised.value.details() or "").startswith(text)


async def test_over_the_message_limit(serve: Serve, connect: Connect, raw_call: RawCall) -> None:
    """By Blazen's call a value over the limit is refused with what to do; by ours it comes in chunks, as does any."""
    server = await serve(settings=ServerSettings(**QUICK, max_message_bytes=100_000))
    client = await connect(server, max_message_bytes=100_000)
    result = await client.run_remote_workflow("w", ["put-large"], "1000000")
    [ref] = result.remote_refs.values()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw_call(server, DerefRequest(ref_uuid=ref.uuid).encode(), method=DEREF)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "over the message limit of" in (raised.value.details() or "")
    assert await client.deref(ref) == b"".join(pieces(1_000_000))


async def test_large_in_constant_memory(serve: Serve, connect: Connect) -> None:
    """100 MiB go through both ends, which are this process, in less than 8 MiB of Python's memory, and come as they were."""
    client = await connect(await serve())
    result = await client.run_remote_workflow("w", ["put-large"], str(100 * MIB))
    [ref] = result.remote_refs.values()
    checksum, expected, size_bytes = hashlib.sha256(), hashlib.sha256(), 0
    tracemalloc.start()
    try:
        async for chunk in client.deref_chunks(ref):
            checksum.update(chunk)
            size_bytes += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for piece in pieces(100 * MIB):
        expected.update(piece)
    assert (size_bytes, checksum.digest()) == (100 * MIB, expected.digest())
    assert peak < 8 * MIB, f"{peak / MIB:.1f} MiB"


async def test_slow_reader_takes_no_memory(serve: Serve, connect: Connect, registry: Registry) -> None:
    """While a reader does not read, the serializer is not asked for more: little of a value is under way."""
    made = 0

    def counted(_: object) -> Iterator[bytes]:
        nonlocal made
        for _n in range(200):
            made += MIB
            yield b"x" * MIB

    @registry.step("counted")
    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(None, type_tag=TAG, serializer=counted, size_bytes=1)
        return StopEvent()

    client = await connect(await serve())
    [ref] = (await client.run_remote_workflow("w", ["counted"], "null")).remote_refs.values()
    reading = client.deref_chunks(ref)
    await anext(reading)
    seen = -1
    async with asyncio.timeout(10):
        while made != seen:
            seen = made
            await asyncio.sleep(0.2)
    assert made < 50 * MIB, "the server ran ahead of its reader"
    await cast("Any", reading).aclose()


async def test_deref_to(serve: Serve, connect: Connect) -> None:
    """A value is written to a file, and its size told."""
    client = await connect(await serve())
    [ref] = (await client.run_remote_workflow("w", ["put-large"], str(MIB))).remote_refs.values()
    file = io.BytesIO()
    assert await client.deref_to(ref, file) == MIB
    assert file.getvalue() == b"".join(pieces(MIB))


async def test_max_bytes(serve: Serve, connect: Connect) -> None:
    """What is kept whole has a bound, which the error says; exactly the bound is fine."""
    client = await connect(await serve())
    ref = await put_one(client, "12345")
    assert await client.deref(ref, max_bytes=5) == b"12345"
    with pytest.raises(EncodeError, match="over max_bytes, 4: read it by deref_chunks or deref_to"):
        await client.deref(ref, max_bytes=4)


async def test_deserializers(serve: Serve, connect: Connect) -> None:
    """A value is read by the call's own function, by the one registered for its tag, or not at all; a failure is typed."""
    client = await connect(await serve())
    ref = await put_one(client, "5")
    assert await client.deref(ref) == b"5"
    client.register_deserializer(TAG, int)
    client.register_deserializer("other::Tag", float)
    client.register_deserializer(TAG, int)
    assert await client.deref(ref) == 5
    assert await client.deref(ref, bytes) == b"5"
    with pytest.raises(ValidationError, match="another deserializer"):
        client.register_deserializer(TAG, float)
    with pytest.raises(EncodeError, match=TAG):
        await client.deref(await put_one(client, "five"))


async def test_live_value_between_runs(serve: Serve, connect: Connect) -> None:
    """A later run of the same caller gets the object itself, and may drop it."""
    client = await connect(await serve())
    ref = await put_one(client, "value")
    assert (await client.run_remote_workflow("w", ["get"], json.dumps(str(ref.uuid)))).result == "value"
    assert (await client.run_remote_workflow("w", ["drop"], json.dumps(str(ref.uuid)))).result == [True, False]
    assert await is_gone(client, ref)


async def test_unserializable(serve: Serve, connect: Connect) -> None:
    """What has no bytes is not listed, and gone with its run."""
    client = await connect(await serve())
    result = await client.run_remote_workflow("w", ["put-unserializable"], "null")
    assert result.remote_refs == {}
    with pytest.raises(WorkflowError, match=f"session ref {result.result} not found"):
        await client.run_remote_workflow("w", ["get"], json.dumps(result.result))


async def test_failed_run(serve: Serve, connect: Connect, raw_call: RawCall) -> None:
    """A run that fails leaves nothing and lists nothing."""
    server = await serve()
    client = await connect(server)
    response = SubWorkflowResponse.decode(await raw_call(server, SubWorkflowRequest("w", ("put-then-fail",), b"null").encode()))
    assert response.error is not None
    assert response.remote_refs == {}
    assert await client.list_refs() == ()


@pytest.mark.parametrize("lifetime", ["context", "explicit_drop", "snapshot", "parent_finish"])
async def test_listed_lives_on(serve: Serve, connect: Connect, lifetime: str) -> None:
    """Whatever its lifetime, what a response lists can be read after the run, until it is released."""
    client = await connect(await serve())
    ref = await put_one(client, lifetime=lifetime)
    [held] = await client.list_refs()
    assert (held.ref, held.lifetime, held.size_bytes) == (ref, lifetime, 5)
    assert held.lease_left_secs is not None
    assert 3590 < held.lease_left_secs <= 3600
    assert await client.deref(ref) == b"value"
    assert await client.release(ref) is True


@pytest.mark.parametrize("blocking", [False, True], ids=["awaited", "from-a-thread"])
async def test_parent_finish(serve: Serve, connect: Connect, blocking: bool) -> None:
    """A ref that is to last until the caller's run ends does so: there while the parent runs, gone soon after, others not."""
    client = await connect(await serve())
    kept: list[RemoteRef] = []

    async def call(event: StartEvent) -> StopEvent:
        kept.extend([await put_one(client, lifetime=lifetime) for lifetime in ("parent_finish", "context")])
        assert [await client.deref(ref) for ref in kept] == [b"value", b"value"]
        return StopEvent()

    def call_from_thread(event: StartEvent) -> StopEvent:
        for lifetime in ("parent_finish", "context"):
            text = json.dumps({"texts": ["value"], "options": {"lifetime": lifetime}})
            kept.extend(client.run_remote_workflow_blocking("w", ["put"], text).remote_refs.values())
        assert [client.deref_blocking(ref) for ref in kept] == [b"value", b"value"]
        return StopEvent()

    parent = WorkflowBuilder("parent").step("call", None, None, call_from_thread if blocking else call).build()
    bystander = await put_one(client, lifetime="parent_finish")
    await parent.run()
    await until_held(client, 2)
    assert [await is_gone(client, ref) for ref in (*kept, bystander)] == [True, False, False]


async def test_parent_of_a_stream(serve: Serve, connect: Connect) -> None:
    """A call that is streamed is a child as well: its refs are in the stream's result, and end with the parent."""
    client = await connect(await serve())

    async def call(event: StartEvent) -> StopEvent:
        text = json.dumps({"texts": ["value"], "options": {"lifetime": "parent_finish"}})
        stream = client.stream_remote_workflow("w", ["put"], text)
        async for _ in stream:
            pass
        [ref] = stream.result.remote_refs.values()
        assert await client.deref(ref) == b"value"
        return StopEvent()

    await WorkflowBuilder("parent").step("call", None, None, call).build().run()
    await until_held(client, 0)


async def test_parent_that_fails(serve: Serve, connect: Connect) -> None:
    """A parent that fails is over too."""
    client = await connect(await serve())

    async def call(event: StartEvent) -> StopEvent:
        await put_one(client, lifetime="parent_finish")
        assert len(await client.list_refs()) == 1
        raise LookupError

    with pytest.raises(WorkflowError):
        await WorkflowBuilder("parent").step("call", None, None, call).build().run()
    await until_held(client, 0)


async def test_parents_end_is_told_before_closing(serve: Serve) -> None:
    """A client that is left right after the parent's end has told the peer first."""
    server = await serve()

    async def call(event: StartEvent) -> StopEvent:
        await put_one(client, lifetime="parent_finish")
        return StopEvent()

    async with await PeerClient.connect_async(server.address, "node-a") as client:
        await WorkflowBuilder("parent").step("call", None, None, call).build().run()
    async with await PeerClient.connect_async(server.address, "node-a") as again:
        assert await again.list_refs() == ()


async def test_parents_end_is_told_before_closing_from_a_thread(serve: Serve) -> None:
    """So it is for a blocking client."""
    server = await serve()

    def work() -> None:
        with PeerClient.connect(server.address, "node-a") as client:

            def call(event: StartEvent) -> StopEvent:
                text = json.dumps({"texts": ["value"], "options": {"lifetime": "parent_finish"}})
                assert client.run_remote_workflow_blocking("w", ["put"], text).remote_refs
                assert len(client.list_refs_blocking()) == 1
                return StopEvent()

            asyncio.run(WorkflowBuilder("parent").step("call", None, None, call).build().run())

    await asyncio.to_thread(work)
    async with await PeerClient.connect_async(server.address, "node-a") as again:
        assert await again.list_refs() == ()


async def test_another_callers_parent(serve: Serve, connect: Connect) -> None:
    """Nobody else can end a parent: its id under another identity is another one."""
    server = await serve(token=TOKEN)
    first, second = await connect(server, "node-a", token=TOKEN), await connect(server, "node-c", token=TOKEN)
    told = []

    async def call(event: StartEvent, ctx: Context) -> StopEvent:
        ref = await put_one(first, lifetime="parent_finish")
        request = control_pb2.ParentEndedRequest(parent_run_id=ctx.run_id)
        endpoint = second._endpoint()
        told.append((await endpoint.parent_ended(request, metadata=second._authorization())).released)
        assert await first.deref(ref) == b"value"
        return StopEvent()

    await WorkflowBuilder("parent").step("call", None, None, call).build().run()
    assert told == [0]
    await until_held(first, 0)


async def test_lease(serve: Serve, connect: Connect) -> None:
    """When its caller does nothing, a lease is over by itself, and the value let go without anybody's asking for it."""
    server = await serve(settings=ServerSettings(**QUICK, ref_lease_secs=0.2))
    client = await connect(server)
    ref, stays = await put_one(client), await put_one(client, lease_secs=3600)
    async with asyncio.timeout(10):
        while len(server._refs.table) > 1:  # noqa: ASYNC110 - looked at, since asking would end the lease too
            await asyncio.sleep(0.005)
    assert [await is_gone(client, ref), await is_gone(client, stays)] == [True, False]
    assert await client.release(ref) is False


async def test_lease_in_virtual_time(serve: Serve, connect: Connect) -> None:
    """An hour goes by at once where the loop's time is the test's: use at half time keeps a ref, and the other is let go."""
    server = await serve()
    client = await connect(server)
    async with virtual_time() as clock:
        used, idle = await put_one(client), await put_one(client)
        await clock.advance(1800)
        await client.deref(used)
        await clock.advance(1800.1)
        assert len(server._refs.table) == 1
        assert [await is_gone(client, ref) for ref in (used, idle)] == [False, True]


async def test_lease_is_the_owners_to_renew(serve: Serve, connect: Connect) -> None:
    """Each use begins the lease anew."""
    client = await connect(await serve())
    ref = await put_one(client, lease_secs=1000)
    await asyncio.sleep(0.05)
    [before] = await client.list_refs()
    await client.deref(ref)
    [after] = await client.list_refs()
    assert before.lease_left_secs is not None
    assert after.lease_left_secs is not None
    assert before.lease_left_secs < 999.96 < after.lease_left_secs


LIMITS = [
    pytest.param({"max_run_refs": 2}, ["a", "b", "c"], "this run holds 2 session refs, as many as may be", id="run-count"),
    pytest.param({"max_run_ref_bytes": 3}, ["ab", "cd"], "this run's session refs would be over 3 bytes", id="run-bytes"),
    pytest.param({"max_refs": 2}, ["a", "b", "c"], "this peer holds 2 session refs, as many as may be", id="server-count"),
    pytest.param({"max_ref_bytes": 3}, ["ab", "cd"], "this peer's session refs would be over 3 bytes", id="server-bytes"),
]


@pytest.mark.parametrize(("limit", "texts", "message"), LIMITS)
async def test_limits(serve: Serve, connect: Connect, limit: dict[str, int], texts: list[str], message: str) -> None:
    """Over a limit the run fails and says which; what it held is free again, so that the next run fits."""
    client = await connect(await serve(settings=ServerSettings(**QUICK, **limit)))
    with pytest.raises(WorkflowError, match=f"^workflow error: step 'put' failed: {message}"):
        await client.run_remote_workflow("w", ["put"], json.dumps({"texts": texts}))
    await put_one(client, "ab")
    described = (await client.describe()).limits
    [(name, value)] = limit.items()
    assert getattr(described, name) == value


async def test_limit_may_be_caught(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A step may do without: what is over the limit is an exception like any other."""

    @registry.step("careful")
    async def careful(event: StartEvent, ctx: Context) -> StopEvent:
        try:
            ctx.put_ref(b"xx", type_tag=TAG)
        except OverloadedError as error:
            return StopEvent(result=str(error))
        return StopEvent()

    client = await connect(await serve(settings=ServerSettings(**QUICK, max_run_ref_bytes=1)))
    result = await client.run_remote_workflow("w", ["careful"], "null")
    assert result.result == "this run's session refs would be over 1 bytes together"


async def test_failing_serializer(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A serializer that fails when it is read is a typed error without what it said."""

    def fail(_: object) -> bytes:
        raise LookupError("canary")

    @registry.step("broken")
    async def broken(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(None, type_tag=TAG, serializer=fail, size_bytes=1)
        return StopEvent()

    client = await connect(await serve())
    [ref] = (await client.run_remote_workflow("w", ["broken"], "null")).remote_refs.values()
    with pytest.raises(PeerError) as raised:
        await client.deref(ref)
    assert (raised.value.kind, raised.value.status) == ("Protocol", "INTERNAL")
    assert str(raised.value) == f"the value of session ref {ref.uuid} could not be serialized"


async def test_in_a_thread(serve: Serve, connect: Connect) -> None:
    """A plain step puts refs as well."""
    client = await connect(await serve())
    [ref] = (await client.run_remote_workflow("w", ["put-in-thread"], '"value"')).remote_refs.values()
    assert await client.deref(ref) == b"value"


async def test_blocking(serve: Serve, connect: Connect) -> None:
    """Threads without a loop read, list and release."""
    client = await connect(await serve())
    found: list[object] = []

    def work() -> None:
        [ref] = client.run_remote_workflow_blocking("w", ["put"], '{"texts": ["5"]}').remote_refs.values()
        file = io.BytesIO()
        found.extend([client.deref_blocking(ref), client.deref_blocking(ref, int), client.deref_to_blocking(ref, file)])
        found.extend([file.getvalue(), len(client.list_refs_blocking()), client.release_blocking(ref)])
        found.append(client.release_blocking(ref))

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join, 20)
    assert found == [b"5", 5, 1, b"5", 1, True, False]


async def test_gone_with_the_server(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A server that is over holds nothing, and another knows nothing of its refs."""
    server = PeerServer("node-b", registry=registry, settings=ServerSettings(**QUICK))
    async with server.serving():
        client = await connect(server)
        ref = await put_one(client)
    assert len(server._refs.table) == 0
    assert await is_gone(await connect(await serve()), ref)
    with pytest.raises(TransportError):
        await client.deref(ref, timeout_secs=5)


class FakePeer:
    """A gRPC server that answers each method with what a test gives: messages, or a status to abort with."""

    def __init__(self, answers: dict[str, Any], traits: PeerTraits) -> None:
        self.answers, self.traits = answers, traits
        self.metadata: list[dict[str, str | bytes]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method.rpartition("/")[2]
        if method == "Check":
            return grpc.unary_unary_rpc_method_handler(self._greet)
        answer = self.answers.get(method)
        if answer is None:
            return None

        async def serve(_: bytes, context: Any) -> None:
            self.metadata.append(dict(context.invocation_metadata()))
            for message in answer:
                if isinstance(message, grpc.StatusCode):
                    await context.abort(message, "said so")
                await context.write(message.SerializeToString())

        return grpc.unary_stream_rpc_method_handler(serve)

    async def _greet(self, _: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(self.traits.encode())
        served = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        return cast("bytes", served.SerializeToString())


FakeClient = Callable[..., Awaitable[PeerClient]]


@pytest.fixture
async def fake_client(connect: Connect) -> AsyncIterator[FakeClient]:
    """A factory: a client of a server that answers what the test says; ``ours``: it looks like one of ours."""
    servers: list[grpc.aio.Server] = []

    async def client(ours: bool, **answers: list[Message | grpc.StatusCode]) -> PeerClient:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        traits = PeerTraits(instance_id="i" * 32) if ours else PeerTraits()
        server.add_generic_rpc_handlers((cast("grpc.GenericRpcHandler", FakePeer(answers, traits)),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return await connect(f"http://127.0.0.1:{port}")

    yield client
    for server in servers:
        await server.stop(None)


REF = RemoteRef(UUID(int=7), "node-x", TAG, 0)


def answered(envelope: DerefResponse | ReleaseResponse) -> peer_pb2.PostcardResponse:
    return peer_pb2.PostcardResponse(postcard_payload=envelope.encode())


async def test_blazens_prefix(fake_client: FakeClient) -> None:
    """From a peer of Blazen's the length and tag that its bindings put first are taken off; anything else stays."""
    prefixed = len(TAG).to_bytes(4, "big") + TAG.encode() + b"value"
    for payload, value in ((prefixed, b"value"), (b"value", b"value"), (prefixed[1:], prefixed[1:])):
        client = await fake_client(ours=False, DerefSessionRef=[answered(DerefResponse(payload=payload))])
        assert await client.deref(REF) == value
        assert [chunk async for chunk in client.deref_chunks(REF)] == [value]


async def test_our_values_stay_whole(serve: Serve, connect: Connect) -> None:
    """A value of ours that happens to begin like such a prefix comes as it is."""
    client = await connect(await serve())
    text = f"\0\0\0{chr(len(TAG))}{TAG}value"
    assert await client.deref(await put_one(client, text)) == text.encode()


async def test_blazens_not_found(fake_client: FakeClient) -> None:
    """A bare NOT_FOUND about a ref is ``RefNotFoundError``, and from a release: False."""
    client = await fake_client(
        ours=False, DerefSessionRef=[grpc.StatusCode.NOT_FOUND], ReleaseSessionRef=[grpc.StatusCode.NOT_FOUND]
    )
    with pytest.raises(RefNotFoundError, match="said so"):
        await client.deref(REF)
    assert await client.release(REF) is False


async def test_calls_carry_the_invocation(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call about a ref carries the invocation that left it, so that a sidecar finds the replica; ends of parents too."""
    client = await connect(await serve())
    seen: dict[str, set[str | None]] = {}
    endpoint = client._endpoint()

    def noted(name: str, send: Any, request: Any, **options: Any) -> Any:
        seen.setdefault(name, set()).add(dict(options["metadata"]).get("blazen-invocation-id"))
        return send(request, **options)

    for name in ("deref_chunks", "release", "parent_ended"):
        monkeypatch.setattr(endpoint, name, partial(noted, name, getattr(endpoint, name)))
    ids: set[str | None] = set()

    async def call(event: StartEvent) -> StopEvent:
        for _ in range(2):
            ref = await put_one(client, lifetime="parent_finish")
            ids.add(ref.invocation_id)
            await client.deref(ref)
        return StopEvent()

    await WorkflowBuilder("parent").step("call", None, None, call).build().run()
    await until_held(client, 0)
    ref = await put_one(client)
    await client.release(ref)
    async with asyncio.timeout(10):
        while len(seen.get("parent_ended", ())) < 2:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0.005)
    assert None not in ids
    assert seen == {"deref_chunks": ids, "release": {ref.invocation_id}, "parent_ended": ids}


async def test_blazens_release(fake_client: FakeClient) -> None:
    """What a peer says about a release is what the caller gets."""
    for truth in (True, False):
        client = await fake_client(ours=False, ReleaseSessionRef=[answered(ReleaseResponse(released=truth))])
        assert await client.release(REF) is truth


async def test_blazen_lacks_the_list(fake_client: FakeClient) -> None:
    """A peer without our second service cannot list: a typed error."""
    client = await fake_client(ours=False)
    with pytest.raises(PeerError) as raised:
        await client.list_refs()
    assert raised.value.kind == "Unsupported"


def chunk(data: bytes) -> control_pb2.DerefChunksResponse:
    return control_pb2.DerefChunksResponse(data=data)


def end(size_bytes: int, sha256: bytes) -> control_pb2.DerefChunksResponse:
    return control_pb2.DerefChunksResponse(end=control_pb2.DerefEnd(size_bytes=size_bytes, sha256=sha256))


BROKEN = [
    pytest.param([chunk(b"value"), end(5, hashlib.sha256(b"other").digest())], EncodeError, id="wrong-checksum"),
    pytest.param([chunk(b"value"), end(6, hashlib.sha256(b"value").digest())], EncodeError, id="wrong-size"),
    pytest.param([chunk(b"val")], EncodeError, id="cut-short"),
    pytest.param([], EncodeError, id="nothing"),
    pytest.param([chunk(b"val"), grpc.StatusCode.UNAVAILABLE], TransportError, id="broken-off"),
    pytest.param([chunk(b"val"), grpc.StatusCode.INTERNAL], PeerError, id="defect"),
]


@pytest.mark.parametrize(("messages", "error"), BROKEN)
async def test_broken_streams(fake_client: FakeClient, messages: list[Any], error: type[PeerError]) -> None:
    """A stream that is not whole, or not what its checksum says, ends every way of reading with a typed error."""
    client = await fake_client(ours=True, DerefChunks=messages)
    with pytest.raises(error):
        await client.deref(REF)
    with pytest.raises(error):
        async for _ in client.deref_chunks(REF):
            pass
    with pytest.raises(error):
        await client.deref_to(REF, io.BytesIO())


async def test_deadline(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A value that takes for ever ends with the time that its reader gave it."""
    go_on = threading.Event()

    def stuck(_: object) -> bytes:
        go_on.wait(20)
        return b""

    @registry.step("stuck")
    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(None, type_tag=TAG, serializer=stuck, size_bytes=1)
        return StopEvent()

    client = await connect(await serve())
    [ref] = (await client.run_remote_workflow("w", ["stuck"], "null")).remote_refs.values()
    over: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read(event: StartEvent) -> StopEvent:
        try:
            client.deref_blocking(ref)
        except BaseException as error:
            loop.call_soon_threadsafe(over.put_nowait, type(error).__name__)
        return StopEvent()

    try:
        with pytest.raises(TransportError, match="deadline"):
            await client.deref(ref, timeout_secs=0.1)
        with pytest.raises(WorkflowError, match="timed out"):
            await WorkflowBuilder("parent").step("read", None, None, read).build().run(timeout_secs=0.1)
        async with asyncio.timeout(10):
            assert await over.get() == "CancelledError", "a run's end ends the wait of its thread"
    finally:
        go_on.set()
