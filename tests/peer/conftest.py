"""Running peers for tests: a registry of the test's own, a factory for servers, and clients that are closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from blazen_peer import PeerClient, PeerServer
from blazen_peer.config import ServerSettings
from blazen_peer.runtime.registry import Registry

QUICK = ServerSettings(lame_duck_secs=0, drain_secs=2)

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]


@pytest.fixture
def registry() -> Registry:
    """A registry of this test alone."""
    return Registry()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test starts ends with it, in the opposite order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def serve(registry: Registry, stack: AsyncExitStack) -> Serve:
    """A factory: a server of the test's registry, listening on a free port, drained at the end."""

    async def serve(node_id: str = "node-b", address: str = "127.0.0.1:0", **options: Any) -> PeerServer:
        options.setdefault("settings", QUICK)
        server = PeerServer(node_id, registry=registry, **options)
        return await stack.enter_async_context(server.serving(address))

    return serve


@pytest.fixture
def connect(stack: AsyncExitStack) -> Connect:
    """A factory: a client of a server, closed at the end."""

    async def connect(server: PeerServer | str, node_id: str = "node-a", **options: Any) -> PeerClient:
        address = server if isinstance(server, str) else server.address
        client = await PeerClient.connect_async(address, node_id, **options)
        return await stack.enter_async_context(client)

    return connect
