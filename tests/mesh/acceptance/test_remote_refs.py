"""Session refs through both real sidecars: large values whole, and whose they are by certificate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from blazen_peer import Context, RefNotFoundError, StartEvent, StopEvent

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call
MIB = 1024 * 1024


def pieces(size_bytes: int) -> Iterator[bytes]:
    piece = bytes(range(256)) * 1000
    while size_bytes > 0:
        yield piece[:size_bytes]
        size_bytes -= len(piece)


def register(remote: Any) -> None:
    @remote.registry.step("demo::put")
    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        ref = ctx.put_ref(event.data, type_tag="demo::Large", serializer=pieces, size_bytes=1)
        return StopEvent(result=str(ref.uuid))


async def test_large_value(remote: Any) -> None:
    """A value far over the message limit comes in chunks through both sidecars, as it was; then it is released once."""
    register(remote)
    client = await remote.connect()
    [ref] = (await client.run_remote_workflow("w", ["demo::put"], str(80 * MIB))).remote_refs.values()
    got, expected = hashlib.sha256(), hashlib.sha256()
    async for chunk in client.deref_chunks(ref):
        got.update(chunk)
    for piece in pieces(80 * MIB):
        expected.update(piece)
    assert got.digest() == expected.digest()
    assert [await client.release(ref) for _ in range(2)] == [True, False]


async def test_whose_it_is(start_remote: Any) -> None:
    """Another node's certificate, and the same node past the sidecar, are other callers: to them there is no such ref."""
    remote = await start_remote(
        nodes=("intake", "archive", "analyst"),
        flows=(("intake", "analyst"), ("archive", "analyst")),
        server={"require_identity": False},
    )
    register(remote)
    first = await remote.connect()
    [ref] = (await first.run_remote_workflow("w", ["demo::put"], "5")).remote_refs.values()
    others = [
        await remote.connect("archive", address=f"http://{remote.mesh.egress('archive', 'analyst')}"),
        await remote.connect("intake", address=remote.straight),
    ]
    for other in others:
        with pytest.raises(RefNotFoundError, match=f"^session ref {ref.uuid} not found$"):
            await other.deref(ref)
        assert await other.release(ref) is False
        assert await other.list_refs() == ()
        own = await other.run_remote_workflow("w", ["demo::put"], json.dumps(1))
        assert list(own.remote_refs) == [held.ref.uuid for held in await other.list_refs()]
    assert await first.deref(ref) == b"".join(pieces(5))
    assert [held.ref for held in await first.list_refs()] == [ref]
