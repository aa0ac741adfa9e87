"""Connecting, from a thread, inside a loop, to nobody: blocking and not."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blazen_peer import PeerClient, PeerServer, StartEvent, StopEvent, TransportError, ValidationError
from blazen_peer.runtime.registry import Registry

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]


ADDRESSES = [
    pytest.param("", id="empty"),
    pytest.param("http://", id="no-host"),
    pytest.param("127.0.0.1", id="no-port"),
    pytest.param("http://127.0.0.1:0", id="port-0"),
    pytest.param("http://127.0.0.1:65536", id="port-beyond"),
    pytest.param("https://127.0.0.1:1", id="https"),
    pytest.param("ftp://127.0.0.1:1", id="another-scheme"),
    pytest.param("http://user@127.0.0.1:1", id="user"),
    pytest.param("http://127.0.0.1:1/path", id="path"),
    pytest.param("unix:", id="no-path"),
    pytest.param("http://::1:50051", id="ipv6-without-brackets"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_bad_addresses(address: str) -> None:
    """An address that is none is a ValidationError at once."""
    with pytest.raises(ValidationError):
        PeerClient.connect(address, "node-a")


@pytest.mark.parametrize("node_id", ["", "-a", "a b", "a/b", "x" * 129, "é"])
def test_bad_node_ids(node_id: str) -> None:
    """A node id that is none is a ValidationError at once."""
    with pytest.raises(ValidationError):
        PeerClient.connect("http://127.0.0.1:1", node_id)


@pytest.mark.parametrize("timeout_secs", [-1, math.nan, "5", True])
def test_bad_connect_timeouts(timeout_secs: Any) -> None:
    """A connect timeout that is no number from 0 on is a ValidationError."""
    with pytest.raises(ValidationError):
        PeerClient.connect("http://127.0.0.1:1", "node-a", timeout_secs=timeout_secs)


@pytest.mark.parametrize("timeout_secs", [math.inf, 1e12])
async def test_absurd_connect_timeouts(serve: Serve, connect: Connect, timeout_secs: float) -> None:
    """An absurd connect timeout is clamped before gRPC sees it, which would fail at once."""
    await connect(await serve(), timeout_secs=timeout_secs)


async def test_names(serve: Serve, connect: Connect) -> None:
    """A client tells its node id, and shows itself without secrets."""
    client = await connect(await serve(), token="t" * 43)
    assert client.node_id == "node-a"
    assert "t" * 43 not in repr(client)


def test_blocking_connect_and_call(served_in_a_thread: str) -> None:
    """A plain thread connects and calls, in a ``with`` block."""
    with PeerClient.connect(served_in_a_thread, "node-a") as client:
        assert client.run_remote_workflow_blocking("w", ["echo"], "[1]").result == [1]
        assert client.describe_blocking().node_id == "node-b"
    with pytest.raises(ValidationError, match="closed"):
        client.run_remote_workflow_blocking("w", ["echo"], "[1]")


async def test_blocking_connect_inside_a_loop(served_in_a_thread: str) -> None:
    """``connect`` inside a running loop works, and the client then serves that loop and plain calls alike."""
    with PeerClient.connect(served_in_a_thread, "node-a") as client:
        assert (await client.run_remote_workflow("w", ["echo"], "1")).result == 1
        assert client.run_remote_workflow_blocking("w", ["echo"], "2").result == 2


async def test_blocking_connect_to_the_same_loop(serve: Serve) -> None:
    """``connect`` to a server of the very loop that it blocks ends by its timeout, and not never."""
    server = await serve()
    began = time.monotonic()
    with pytest.raises(TransportError):
        PeerClient.connect(server.address, "node-a", timeout_secs=0.3)
    assert time.monotonic() - began < 3


@pytest.fixture
def served_in_a_thread(registry: Registry) -> Any:
    """The address of a server that runs in a loop of another thread."""

    @registry.step("echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    ready, addresses = threading.Event(), []
    over: list[Callable[[], object]] = []

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with PeerServer("node-b", registry=registry).serving() as server:
            addresses.append(server.address)
            over.append(lambda: loop.call_soon_threadsafe(stop.set))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    yield addresses[0]
    over[0]()
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A TCP port that accepts; it says nothing, or *answer* at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        if answer is None:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        else:

            def serve() -> None:
                try:
                    while True:
                        connection, _ = server.accept()
                        with connection:
                            connection.recv(1000)
                            connection.sendall(answer)
                except OSError:
                    return

            thread = threading.Thread(target=serve)
            thread.start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("answer", [pytest.param(None, id="says-nothing"), pytest.param(HTTP_1, id="speaks-http-1")])
async def test_a_port_that_is_no_grpc(connect: Connect, answer: bytes | None) -> None:
    """Somebody listens who is no gRPC server: TransportError within the timeout."""
    with listening(answer) as address:
        began = time.monotonic()
        with pytest.raises(TransportError) as caught:
            await connect(address, timeout_secs=0.5)
        assert caught.value.may_have_run is False  # connecting runs nothing
        assert time.monotonic() - began < 2
        assert "\n" not in str(caught.value)


async def test_nobody_listens(connect: Connect, free_port: int) -> None:
    """Nobody listens: TransportError at once, and nothing can have run."""
    began = time.monotonic()
    with pytest.raises(TransportError) as caught:
        await connect(f"http://127.0.0.1:{free_port}", timeout_secs=5)
    assert caught.value.may_have_run is False
    assert time.monotonic() - began < 2


async def test_no_such_socket(connect: Connect, tmp_path: Any) -> None:
    """A Unix socket that is not there: TransportError, and nothing can have run."""
    with pytest.raises(TransportError) as caught:
        await connect(f"unix:{tmp_path}/none", timeout_secs=5)
    assert caught.value.may_have_run is False
