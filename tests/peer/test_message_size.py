"""Messages over a limit: who notices, before what is sent, and what the error says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blazen_peer import EncodeError, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent
from blazen_peer.runtime.registry import Registry

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
SMALL = ServerSettings(lame_duck_secs=0, drain_secs=1, max_message_bytes=10_000)


@pytest.fixture
def begun(registry: Registry) -> list[str]:
    """Which steps were executed; ``grows`` answers with as many letters as it is asked for."""
    begun: list[str] = []

    @registry.step("grows")
    async def grows(event: StartEvent) -> StopEvent:
        begun.append("grows")
        return StopEvent(result="x" * event.data if isinstance(event.data, int) else len(event.data))

    return begun


LIMITS = [
    pytest.param(SMALL, {}, id="the-peers"),
    pytest.param(ServerSettings(lame_duck_secs=0), {"max_message_bytes": 10_000}, id="the-clients-own"),
]


@pytest.mark.parametrize(("settings", "options"), LIMITS)
async def test_request(
    serve: Serve, connect: Connect, begun: list[str], settings: ServerSettings, options: dict[str, Any]
) -> None:
    """A request over the peer's limit, which it tells at connect, or the client's own is not sent, by no way of calling."""
    client = await connect(await serve(settings=settings), **options)
    document = '"' + "x" * 20_000 + '"'
    with pytest.raises(EncodeError, match=r"the request has 200\d\d bytes, over the limit of 10000") as caught:
        await client.run_remote_workflow("w", ["grows"], document)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (int(str(caught.value).split()[3]), 10_000)
    with pytest.raises(EncodeError, match="over the limit of 10000"):
        client.stream_remote_workflow("w", ["grows"], document)
    assert not begun
    assert (await client.run_remote_workflow("w", ["grows"], '"' + "x" * 9_800 + '"')).result == 9_800


@pytest.mark.parametrize("way", ["call", "stream"])
async def test_answer(serve: Serve, connect: Connect, begun: list[str], way: str) -> None:
    """A result over the peer's limit is an EncodeError with its size and the limit; the run is over, and is not run again."""
    client = await connect(await serve(settings=SMALL))
    for _ in range(2):
        call: Awaitable[object] = (
            client.run_remote_workflow("w", ["grows"], "20000", invocation_id="one")
            if way == "call"
            else anext(client.stream_remote_workflow("w", ["grows"], "20000", invocation_id="one"))
        )
        with pytest.raises(EncodeError) as caught:
            await call
        assert caught.value.limit_bytes == 10_000
        assert caught.value.size_bytes is not None
        assert 20_000 < caught.value.size_bytes < 20_100
    assert begun == ["grows"]
