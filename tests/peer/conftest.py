"""Running peers for tests: a registry of the test's own, a factory for servers, and clients that are closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from blazen_peer import PeerClient, PeerServer, WorkflowResult, telemetry
from blazen_peer.config import ServerSettings
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.run import Run
from blazen_peer.transport.lane_frames import LANE_METHOD
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.transport.served_frames import ServedFrames
from tests.peer.raw_lane import RAW_TRAITS, serve_lane
from tests.peer.wire_proxy import Wire, wired

QUICK = ServerSettings(lame_duck_secs=0, drain_secs=2)

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]
RawHandler = Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]
Wires = Callable[[PeerServer], Awaitable[Wire]]
RawPeers = Callable[..., Awaitable["RawPeer"]]


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


@pytest.fixture
def raw_call(stack: AsyncExitStack) -> RawCall:
    """Call a server as any gRPC client may, without our client: ``await raw_call(server, envelope)`` gives the envelope back.

    *message* sends these bytes instead of a ``PostcardRequest`` that holds the envelope.
    """

    async def call(
        server: PeerServer | str,
        envelope: bytes = b"",
        *,
        method: str = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow",
        metadata: Sequence[tuple[str, str]] = (),
        message: bytes | None = None,
        timeout_secs: float = 10,
    ) -> bytes:
        address = server if isinstance(server, str) else server.address
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(address.removeprefix("http://"), options=options) as channel:
            if message is None:
                message = peer_pb2.PostcardRequest(postcard_payload=envelope).SerializeToString()
            answer = await channel.unary_unary(method)(message, metadata=metadata, timeout=timeout_secs)
            return peer_pb2.PostcardResponse.FromString(answer).postcard_payload

    return call


@dataclass
class RawPeer:
    """A gRPC server of the test's own: ``answer`` is what it does with a call, ``greet`` with a health check.

    Attributes:
        calls: For each call its envelope and its metadata.
        remaining_secs: For each call the time that its caller gave it; None for one by a lane.
        connections: Who called, by connection.
        by_lane: Whether it has lanes, and says so; frames are calls.
    """

    answer: RawHandler | None = None
    greet: RawHandler | None = None
    address: str = ""
    calls: list[tuple[bytes, dict[str, str | bytes]]] = field(default_factory=list)
    remaining_secs: list[float | None] = field(default_factory=list)
    connections: set[str] = field(default_factory=set)
    by_lane: bool = False

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Find the handler of a call, as ``grpc.GenericRpcHandler`` does."""
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._greeted) if self.greet else None
        if details.method == "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow" and self.answer:
            return grpc.unary_unary_rpc_method_handler(self._answered)
        if details.method == LANE_METHOD and self.answer and self.by_lane:
            return grpc.stream_stream_rpc_method_handler(self._lane)
        return None

    async def _lane(self, _: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await serve_lane(context, cast("Any", self._answered))

    async def _greeted(self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        assert self.greet is not None
        self.connections.add(context.peer())
        if self.by_lane:
            context.set_trailing_metadata(RAW_TRAITS.encode())  # a test's own takes its place
        return await self.greet(message, context)

    async def _answered(self, message: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        assert self.answer is not None
        envelope = peer_pb2.PostcardRequest.FromString(message).postcard_payload
        self.calls.append((envelope, dict(context.invocation_metadata() or ())))
        self.remaining_secs.append(context.time_remaining())
        self.connections.add(context.peer())
        return await self.answer(message, context)


@pytest.fixture
def raw_peer(stack: AsyncExitStack, request: pytest.FixtureRequest) -> RawPeers:
    """A factory: a gRPC server that answers calls by ``answer(message, context)``, and health checks by ``greet``, if given.

    With the fixture ``way`` its calls come either way; ``has_lanes=False`` where it is one of Blazen's own, with no health.
    """

    by_lane = "way" in request.fixturenames and request.getfixturevalue("way") == "by-lane"

    async def serving(_: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

    async def start(answer: RawHandler | None = None, greet: RawHandler | None = None, *, has_lanes: bool = True) -> RawPeer:
        lanes = by_lane and has_lanes and answer is not None
        peer = RawPeer(answer, greet or serving if lanes else greet, by_lane=lanes)
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((cast("grpc.GenericRpcHandler", peer),))
        peer.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        stack.push_async_callback(server.stop, None)
        return peer

    return start


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., InMemorySpanExporter]]:
    """Turn tracing on for this test alone (OpenTelemetry lets a process do so once): ``traced(sampler=None)``."""
    providers: list[TracerProvider] = []

    def turn_on(sampler: Sampler | None = None) -> InMemorySpanExporter:
        exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
        providers.append(provider)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        monkeypatch.setattr(telemetry, "_TRACER", provider.get_tracer(telemetry.TRACER))
        return exporter

    yield turn_on
    for provider in providers:
        provider.shutdown()


@pytest.fixture
def severed(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a server's wait for a run was cut off, as it is when the caller is gone and the server has noticed."""
    event, wait, sever = asyncio.Event(), Run.wait, ServedFrames.sever

    async def noticing(run: Run) -> WorkflowResult:
        try:
            return await wait(run)
        except asyncio.CancelledError:
            event.set()
            raise

    def severing(frames: ServedFrames, number: int) -> None:
        event.set()
        sever(frames, number)

    monkeypatch.setattr(Run, "wait", noticing)
    monkeypatch.setattr(ServedFrames, "sever", severing)  # a call of a lane that nobody waits for any more
    return event


@pytest.fixture
def wire(stack: AsyncExitStack) -> Wires:
    """A factory: a TCP proxy before a server, which the test can cut; its ``address`` is what clients connect to."""

    async def start(server: PeerServer) -> Wire:
        return await stack.enter_async_context(wired(server))

    return start
