"""What a server does for a ref's owner, without gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from blazen_peer.config import ServerSettings
from blazen_peer.errors import EncodeError, EnvelopeVersionError, PeerError, RefNotFoundError
from blazen_peer.identity import Caller
from blazen_peer.runtime.ref_serving import ChunksEnd, RefServing
from blazen_peer.runtime.refs import RefTable, RemoteRef
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.wire import DerefRequest, DerefResponse, ReleaseRequest, ReleaseResponse

ALICE, BOB = Caller.claimed("alice"), Caller.claimed("bob")


@pytest.fixture
def serving() -> Iterator[RefServing]:
    table = RefTable(ServerSettings(), clock=lambda: asyncio.get_running_loop().time(), epoch_ms=lambda: 0, new_uuid=uuid4)
    serving = RefServing(table, max_message_bytes=1032, chunk_bytes=100)
    yield serving
    serving.close()


def held(serving: RefServing, value: object, **options: object) -> RemoteRef:
    """Put a value in a run of alice's that is over."""
    run = RunRefs(serving.table, ALICE, listed=True)
    ref = run.put(value, **{"type_tag": "demo::T", **options})  # type: ignore[arg-type]
    run.finish(succeeded=True)
    serving.watch_leases()
    return ref


async def read(serving: RefServing, uuid: UUID, caller: Caller = ALICE) -> bytes:
    return DerefResponse.decode(await serving.deref(DerefRequest(ref_uuid=uuid).encode(), caller)).payload


async def released(serving: RefServing, uuid: UUID, caller: Caller = ALICE) -> bool:
    return ReleaseResponse.decode(await serving.release(ReleaseRequest(ref_uuid=uuid).encode(), caller)).released


async def test_deref_and_release(serving: RefServing) -> None:
    """The owner gets the bytes, and release tells the truth; nobody else gets anything."""
    ref = held(serving, {"n": 1}, serializer=lambda value: str(value).encode())
    with pytest.raises(RefNotFoundError):
        await read(serving, ref.uuid, BOB)
    assert await released(serving, ref.uuid, BOB) is False
    assert await read(serving, ref.uuid) == b"{'n': 1}"
    assert [await released(serving, ref.uuid) for _ in range(2)] == [True, False]
    with pytest.raises(RefNotFoundError, match=f"^session ref {ref.uuid} not found$"):
        await read(serving, ref.uuid)


async def test_value_is_live(serving: RefServing) -> None:
    """A value is written when it is read, as it is then."""
    value = [b"one"]
    ref = held(serving, value, serializer=b"".join)
    value.append(b"two")
    assert await read(serving, ref.uuid) == b"onetwo"


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 12_345])
async def test_chunks(serving: RefServing, size: int) -> None:
    """Chunks are the value's bytes, and the checksum after them is theirs."""
    value = bytes(number % 251 for number in range(size))
    *chunks, end = [chunk async for chunk in serving.chunks(held(serving, value).uuid, ALICE)]
    assert b"".join(chunk for chunk in chunks if isinstance(chunk, bytes)) == value
    assert end == ChunksEnd(size, hashlib.sha256(value).digest())
    assert max((len(chunk) for chunk in chunks if isinstance(chunk, bytes)), default=0) <= 100


async def test_chunks_are_the_owners(serving: RefServing) -> None:
    """Nobody else gets a chunk."""
    ref = held(serving, b"value")
    with pytest.raises(RefNotFoundError):
        await anext(serving.chunks(ref.uuid, BOB))


async def test_release_does_not_cut_a_reading_short(serving: RefServing) -> None:
    """A value released while it is read is read to its end."""
    ref = held(serving, b"x" * 1000)
    reading = serving.chunks(ref.uuid, ALICE)
    await anext(reading)
    assert await released(serving, ref.uuid) is True
    assert [chunk async for chunk in reading][-1] == ChunksEnd(1000, hashlib.sha256(b"x" * 1000).digest())


async def test_reading_renews() -> None:
    """A reading that takes longer than the lease keeps the value: each chunk begins the lease anew."""
    now = 0.0
    table = RefTable(ServerSettings(), clock=lambda: now, epoch_ms=lambda: 0, new_uuid=uuid4)
    serving = RefServing(table, max_message_bytes=1000, chunk_bytes=10)
    ref = held(serving, b"x" * 50, lease_secs=60)
    async for _ in serving.chunks(ref.uuid, ALICE):
        table.expire()
        assert len(table) == 1
        now += 59
    now += 2
    table.expire()
    assert len(table) == 0
    serving.close()


async def test_over_the_message_limit(serving: RefServing) -> None:
    """Exactly the limit goes in one message; a byte more is refused, with what to do, before it all is in memory."""
    assert len(await read(serving, held(serving, b"x" * 1000).uuid)) == 1000

    def endless(_: object) -> Iterator[bytes]:
        while True:
            yield b"x" * 7

    ref = held(serving, None, serializer=endless, size_bytes=1)
    with pytest.raises(EncodeError, match="over the message limit of 1000 bytes: read it in chunks") as raised:
        await read(serving, ref.uuid)
    assert raised.value.limit_bytes == 1000


async def test_failing_serializer(serving: RefServing, caplog: pytest.LogCaptureFixture) -> None:
    """A serializer that fails is one typed error; what it said, which may be the value, goes nowhere."""

    def fail(_: object) -> bytes:
        raise LookupError("canary")

    ref = held(serving, None, serializer=fail, size_bytes=1)
    with caplog.at_level(logging.DEBUG):
        for reading in (read(serving, ref.uuid), anext(serving.chunks(ref.uuid, ALICE))):
            with pytest.raises(PeerError, match="could not be serialized") as raised:
                await reading
            assert (raised.value.kind, raised.value.status) == ("Protocol", "INTERNAL")
    assert "LookupError" in caplog.text
    assert "canary" not in caplog.text


async def test_a_value_without_bytes_is_not_there(serving: RefServing) -> None:
    """What has no serializer is as if it did not exist, even for its owner elsewhere and while the run lives."""
    run = RunRefs(serving.table, ALICE, listed=True)
    ref = run.put(object(), type_tag="demo::T")
    with pytest.raises(RefNotFoundError):
        await read(serving, ref.uuid)
    assert serving.listed(ALICE) == ()


async def test_bad_requests(serving: RefServing) -> None:
    """Garbage and newer envelopes are refused as such."""
    for method in (serving.deref, serving.release):
        with pytest.raises(EncodeError):
            await method(b"\x01\x05abc", ALICE)
        with pytest.raises(EnvelopeVersionError):
            await method(b"\x02whatever", ALICE)


async def test_leases_end_by_themselves(serving: RefServing) -> None:
    """With nobody asking, each value is let go when its lease is over, and one with a longer lease is not."""
    stays = held(serving, b"stays")
    for lease_secs in (0.2, 0.05):
        held(serving, b"goes", lease_secs=lease_secs)
    async with asyncio.timeout(10):
        while len(serving.table) > 1:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0.005)
    assert await read(serving, stays.uuid) == b"stays"
