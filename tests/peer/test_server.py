"""A server by itself: where it listens, what it refuses to start with, what it says of itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from blazen_peer import (
    Event,
    PeerClient,
    PeerServer,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    ValidationError,
    Workflow,
    WorkflowError,
)
from blazen_peer.runtime.registry import Registry

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
TOKEN = "t" * 43


async def test_port_0(serve: Serve, connect: Connect) -> None:
    """Port 0 picks a free one, which ``address`` tells; before that there is none to tell, nor anything to drain."""
    server = PeerServer("node-b")
    with pytest.raises(ValidationError, match="does not listen yet"):
        _ = server.address
    with pytest.raises(ValidationError, match="does not listen yet"):
        await server.drain()
    assert server.node_id == "node-b"
    first, second = await serve(), await serve()
    assert first.address != second.address
    for listening in (first, second):
        host, _, port = listening.address.rpartition(":")
        assert host == "http://127.0.0.1"
        assert 0 < int(port) < 65536
        await connect(listening)


async def test_ipv6(serve: Serve, connect: Connect) -> None:
    """An IPv6 address is written in brackets, on both ends."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = await serve(address="[::1]:0")
    assert server.address.startswith("http://[::1]:")
    await connect(server)


async def test_unix_socket(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    """A Unix socket works, in place of a stale file of a server that died, and goes with its server."""
    path = tmp_path / "peer.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    assert path.exists()
    server = await serve(address=f"unix:{path}")
    assert server.address == f"unix:{path}"
    assert (await (await connect(server)).describe()).node_id == "node-b"


async def test_a_unix_socket_in_use(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    """A Unix socket on which somebody listens is not taken away from them."""
    server = await serve(address=f"unix:{tmp_path}/peer.sock")
    with pytest.raises(TransportError, match="in use"):
        await asyncio.wait_for(PeerServer("node-c").serve(f"unix:{tmp_path}/peer.sock"), 5)
    assert (await (await connect(server)).describe()).node_id == "node-b"


async def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    """A file that is no socket stays as it is, and the server refuses to listen there."""
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(TransportError):
        await asyncio.wait_for(PeerServer("node-b").serve(f"unix:{path}"), 5)
    assert path.read_text() == "precious"


async def test_a_port_in_use(serve: Serve) -> None:
    """A second server on one port is refused with one line; nothing of it runs."""
    server = await serve()
    with pytest.raises(TransportError) as caught:
        await PeerServer("node-c").serve(server.address.removeprefix("http://"))
    assert caught.value.may_have_run is False
    assert "\n" not in str(caught.value)
    assert server.address.removeprefix("http://") in str(caught.value)


ADDRESSES = [
    pytest.param("", id="empty"),
    pytest.param("127.0.0.1", id="no-port"),
    pytest.param("127.0.0.1:", id="port-empty"),
    pytest.param("127.0.0.1:http", id="port-text"),
    pytest.param("127.0.0.1:65536", id="port-beyond"),
    pytest.param("127.0.0.1:-1", id="port-negative"),
    pytest.param(":50051", id="no-host"),
    pytest.param("127.0.0.256:1", id="no-such-ip"),
    pytest.param("127.1:1", id="short-ip"),
    pytest.param("::1:50051", id="ipv6-without-brackets"),
    pytest.param("http://127.0.0.1:1", id="a-client's-address"),
    pytest.param("a b:1", id="a-space"),
    pytest.param("unix:", id="no-path"),
    pytest.param("unix:" + "x" * 108, id="path-too-long"),
    pytest.param("unix:a\0b", id="path-with-a-zero"),
]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_bad_addresses(address: str) -> None:
    """An address that is none is a ValidationError of one line, and the server may still be used."""
    server = PeerServer("node-b", settings=ServerSettings(drain_secs=0))
    with pytest.raises(ValidationError) as caught:
        await server.serve(address)
    assert "\n" not in str(caught.value)
    async with server.serving():
        pass


async def test_it_listens_once(serve: Serve) -> None:
    """A second ``serve`` is a ValidationError, while it listens and when it has ended."""
    async with PeerServer("node-b", settings=ServerSettings(drain_secs=0)).serving() as server:
        with pytest.raises(ValidationError, match="served before"):
            await server.serve("127.0.0.1:0")
    for again in (server.serve("127.0.0.1:0"), server.serving().__aenter__()):
        with pytest.raises(ValidationError, match="served before"):
            await again
    with pytest.raises(ValidationError, match="served before"):
        await asyncio.to_thread(server.serve_blocking, "127.0.0.1:0")


BEYOND = ["0.0.0.0:0", "[::]:0", "192.0.2.1:1", "peer.example:1", "127.0.0.1.example:1"]


@pytest.mark.parametrize("address", BEYOND)
async def test_beyond_loopback(address: str) -> None:
    """Beyond loopback a server without a token is refused, with what to do about it."""
    with pytest.raises(ValidationError, match=r"BLAZEN_PEER_TOKEN.*insecure"):
        await PeerServer("node-b").serve(address)


@pytest.mark.parametrize("options", [{"token": TOKEN}, {"insecure": True}], ids=["with-a-token", "insecure"])
async def test_beyond_loopback_on_purpose(serve: Serve, options: dict[str, Any]) -> None:
    """With a token, or when the operator says insecure, it listens there."""
    assert (await serve(address="0.0.0.0:0", **options)).address.startswith("http://0.0.0.0:")


async def test_no_token_is_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Without a token there is one warning line; with one there is none."""
    await serve()
    await serve(token=TOKEN)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "node-b has no token: every local process may call it"
    ]


OPTIONS = [
    pytest.param({"node_id": ""}, id="node-empty"),
    pytest.param({"node_id": "a/b"}, id="node-slash"),
    pytest.param({"node_id": "-a"}, id="node-sign-first"),
    pytest.param({"node_id": "x" * 129}, id="node-too-long"),
    pytest.param({"token": ""}, id="token-empty"),
    pytest.param({"token": "t" * 31}, id="token-short"),
    pytest.param({"require_identity": True}, id="identity-without-token"),
    pytest.param({"sidecar_proof_file": "no/such/file"}, id="no-such-proof"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_refused_at_construction(options: dict[str, Any]) -> None:
    """What is not usable is refused when the server is made, and no token stands in the text."""
    with pytest.raises(ValidationError) as caught:
        PeerServer(**{"node_id": "node-b", **options})
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "short"])
def test_bad_token_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A BLAZEN_PEER_TOKEN that is set and not usable is refused on both ends."""
    monkeypatch.setenv("BLAZEN_PEER_TOKEN", value)
    with pytest.raises(ValidationError):
        PeerServer("node-b")
    with pytest.raises(ValidationError):
        PeerClient.connect("http://127.0.0.1:1", "node-a")


async def test_health(serve: Serve) -> None:
    """Health says SERVING for the process and both services, beside the peer's traits; it knows no others."""
    server = await serve(token=TOKEN, settings=ServerSettings(default_timeout_secs=1.5, max_timeout_secs=7, drain_secs=0))
    async with grpc.aio.insecure_channel(server.address.removeprefix("http://")) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        seen = set()
        for service in ("", "blazen.peer.v1.BlazenPeer", "blazen_peer.control.v1.PeerControl"):
            call = check(health_pb2.HealthCheckRequest(service=service).SerializeToString(), timeout=5)
            assert health_pb2.HealthCheckResponse.FromString(await call).status == health_pb2.HealthCheckResponse.SERVING
            traits = dict(await call.trailing_metadata() or ())
            assert (traits["blazen-default-timeout-ms"], traits["blazen-max-timeout-ms"]) == ("1500", "7000")
            seen.add(traits["blazen-instance-id"])
        assert len(seen) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(health_pb2.HealthCheckRequest(service="no.such").SerializeToString(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_describe(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A peer tells its steps with what they accept and emit, its workflows and its limits."""

    class Found(Event, event_type="demo::Found"):
        words: int

    @registry.step("a")
    async def first(event: StartEvent) -> Found:
        return Found(words=1)

    @registry.step("b")
    async def last(event: Found) -> StopEvent:
        return StopEvent()

    registry.register_workflow(Workflow("both", ["a", "b"], registry=registry))
    server = await serve(settings=ServerSettings(max_runs=3, drain_secs=0))
    told = await (await connect(server)).describe()
    assert (told.node_id, told.envelope_version, told.limits.max_runs) == ("node-b", 1, 3)
    assert (told.limits.default_timeout_ms, told.limits.max_timeout_ms) == (300_000, 3_600_000)
    assert [step.id for step in told.steps] == ["a", "b"]
    assert [shape.event_type for shape in told.steps[0].accepts] == ["blazen::StartEvent"]
    assert [shape.event_type for shape in told.steps[0].emits] == ["demo::Found"]
    assert '"words"' in told.steps[1].accepts[0].json_schema
    assert [(workflow.name, list(workflow.step_ids)) for workflow in told.workflows] == [("both", ["a", "b"])]
    assert told.instance_id


async def test_serve_cancelled(registry: Registry) -> None:
    """Cancelling ``serve`` ends it as a cancellation, cancels what runs, and frees the port."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return StopEvent()

    server = PeerServer("node-b", registry=registry)
    serving = asyncio.create_task(server.serve("127.0.0.1:0"))
    async with asyncio.timeout(10):
        while server._address is None:  # noqa: ASYNC110 - polled: serve() tells nobody
            await asyncio.sleep(0.001)
        async with await PeerClient.connect_async(server.address, "node-a") as client:
            call = asyncio.create_task(client.run_remote_workflow("w", ["waits"], "1"))
            await begun.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            await cancelled.wait()
            with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
                await call
    port = int(server.address.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()
