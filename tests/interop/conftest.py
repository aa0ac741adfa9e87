"""The real Blazen (Rust, 0.7.0) at one end of a call, the product at the other, in plain text and through both sidecars.

async def test_something(rust_client, our_peer):      # once in plain text, once through intake's and analyst's sidecars
    rust = await rust_client(our_peer.address)
    answer = await rust.invoke(["interop::echo"], {"a": 1})
    assert our_peer.begun["interop::echo"] == 1

async def test_other_way(client, rust_peer):          # the same two ways
    result = await client.run_remote_workflow("w", ["interop::echo"], "1")
    assert rust_peer.log.count("ran interop::echo") == 1

Tests are skipped with the reason where the Rust programs cannot be built; with INTEROP_REQUIRED set they fail instead.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest

from blazen_peer import Context, Event, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.runtime.registry import Registry
from tests.interop.clients import LineProcess, RustClient
from tests.interop.programs import CannotBuildError, Programs, build
from tests.interop.wheel import WheelPython, wheel_python
from tests.mesh.conftest import certificates, envoy, short_dir, start_mesh

__all__ = ["certificates", "envoy", "short_dir", "start_mesh"]

T = TypeVar("T")
TOKEN = "the-shared-token-of-this-mesh-0123456789"
FLOW = ("intake", "analyst")
WAYS = [pytest.param("plain", id="plain"), pytest.param("meshed", id="sidecars", marks=pytest.mark.envoy)]


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Programs:
    """The Rust programs; the first test that wants them waits for their build."""
    return had(request.config, "building the real Blazen in Rust (minutes, once)", build)


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest) -> WheelPython:
    """A Python with the real Blazen's own binding."""
    return had(request.config, "fetching the real Blazen's Python binding (once)", wheel_python)


def had(config: pytest.Config, what: str, make: Callable[[Callable[[], None]], T]) -> T:
    """Return what *make* makes, having said *what* if that takes long; without it, skip the test, or fail it if it must run."""

    def say() -> None:
        capture = config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            config.get_terminal_writer().line(f"\n{what}")

    try:
        return make(say)
    except CannotBuildError as error:
        if os.environ.get("INTEROP_REQUIRED"):
            pytest.fail(f"the real Blazen must be tested here, and cannot: {error}", pytrace=False)
        pytest.skip(str(error).partition("\n")[0])


ConnectRust = Callable[[str], Awaitable[RustClient]]


@pytest.fixture
async def start_rust_client(programs: Programs) -> AsyncIterator[ConnectRust]:
    """A factory of Rust clients for an address; the first answer, connect's, is still to be read."""
    async with AsyncExitStack() as stack:

        async def start(address: str) -> RustClient:
            client = await RustClient.start(str(programs.client), address)
            stack.push_async_callback(client.close)
            return client

        yield start


@pytest.fixture
async def rust_client(start_rust_client: ConnectRust) -> ConnectRust:
    """A factory of connected Rust clients for an address."""

    async def connect(address: str) -> RustClient:
        client = await start_rust_client(address)
        assert await client.answer() == {"connected": True}
        return client

    return connect


@pytest.fixture
async def wheel_client(wheel: WheelPython) -> AsyncIterator[Callable[[str], Awaitable[LineProcess]]]:
    """A factory of connected clients of the Python binding for an address."""
    async with AsyncExitStack() as stack:

        async def connect(address: str) -> LineProcess:
            script = str(Path(__file__).with_name("wheel_client.py"))
            client = await LineProcess.start(*wheel.argv, script, address, environ=wheel.environ)
            stack.push_async_callback(client.close)
            assert await client.answer() == {"connected": True}
            return client

        yield connect


class Analyzed(Event):
    """What ``interop::analyze`` hands on."""

    words: int


class OurPeer:
    """A ``PeerServer`` of ours with the steps that the tests call.

    Attributes:
        address: Where its callers dial: its own port, or their sidecar's.
        seen_caller: Who a step ought to say that calls.
        begun, finished: How many executions of each step began, and came to their end.
        held: Set when ``interop::hold`` runs; it ends when ``release`` is set, and then sets ``done``.
    """

    def __init__(self) -> None:
        self.address, self.seen_caller = "", "anonymous"
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.held, self.release, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.registry = registry = Registry()

        @registry.step("interop::echo")
        async def echo(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            return StopEvent(result=event.data)

        @registry.step("interop::null")
        async def null(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            return StopEvent(result=None)

        @registry.step("interop::caller")
        async def caller(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            return StopEvent(result=str(ctx.caller))

        @registry.step("interop::analyze")
        async def analyze(event: StartEvent, ctx: Context) -> Analyzed:
            self.begun[ctx.step_id] += 1
            return Analyzed(words=len(event.data["document"].split()))

        @registry.step("interop::summarize")
        def summarize(event: Analyzed, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            return StopEvent(result={"words": event.words})

        @registry.step("interop::fail")
        async def fail(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            raise ValueError(str(event.data))

        @registry.step("interop::report")
        async def report(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            for number in range(event.data):
                ctx.emit(Event.dynamic("interop::Progress", {"number": number}))
            return StopEvent(result="done")

        @registry.step("interop::keep")
        async def keep(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            ref = ctx.put_ref(event.data["text"], type_tag="interop::Text", serializer=str.encode)
            return StopEvent(result=str(ref.uuid))

        @registry.step("interop::hold")
        async def hold(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[ctx.step_id] += 1
            self.held.set()
            await self.release.wait()
            self.finished[ctx.step_id] += 1
            self.done.set()
            return StopEvent(result=event.data)

        registry.register_workflow(Workflow("analyze-pipeline", ["interop::analyze", "interop::summarize"], registry=registry))

    def server(self, **options: Any) -> PeerServer:
        """Return a server of these steps."""
        settings = ServerSettings(lame_duck_secs=0, drain_secs=5)
        return PeerServer("analyst", registry=self.registry, settings=settings, **options)


@pytest.fixture
async def plain(request: pytest.FixtureRequest) -> AsyncIterator[OurPeer]:
    """Our peer in plain text, without a token."""
    peer = OurPeer()
    async with peer.server().serving() as server:
        peer.address = server.address
        yield peer
        peer.release.set()


@pytest.fixture
async def meshed(start_mesh: Any) -> AsyncIterator[OurPeer]:
    """Our peer behind its sidecar, with a token and ``require_identity``; the caller's sidecar injects the token."""
    peer = OurPeer()
    mesh = await start_mesh(stand_ins=False, inject=[FLOW], token=TOKEN)
    server = peer.server(token=TOKEN, require_identity=True, sidecar_proof_file=mesh.proof_file("analyst"))
    async with server.serving(mesh.listen("analyst")):
        peer.address, peer.seen_caller = f"http://{mesh.egress(*FLOW)}", "spiffe://mesh.test/peer/intake"
        yield peer
        peer.release.set()


@pytest.fixture(params=WAYS)
def our_peer(request: pytest.FixtureRequest, programs: Programs) -> OurPeer:
    """Our peer, once in plain text and once behind both sidecars."""
    peer: OurPeer = request.getfixturevalue(request.param)
    return peer


@pytest.fixture(params=WAYS)
def wheel_peer(request: pytest.FixtureRequest, wheel: WheelPython) -> OurPeer:
    """The same for tests of the Python binding."""
    peer: OurPeer = request.getfixturevalue(request.param)
    return peer


@pytest.fixture
async def rust_plain(programs: Programs, start_peer: Callable[..., Any]) -> tuple[Any, str]:
    """The real server in plain text, and where it is called."""
    server = start_peer(str(programs.server), "127.0.0.1:0")
    return server, server.address


@pytest.fixture
async def rust_meshed(programs: Programs, start_peer: Callable[..., Any], start_mesh: Any) -> tuple[Any, str]:
    """The real server behind analyst's sidecar, and intake's way to it."""
    mesh = await start_mesh(stand_ins=False)
    server = start_peer(str(programs.server), mesh.listen("analyst"))
    server.wait_for("listens on ")
    return server, f"http://{mesh.egress(*FLOW)}"


@pytest.fixture(params=[pytest.param(f"rust_{way.values[0]}", id=way.id, marks=way.marks) for way in WAYS])
def rust_way(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """The real server's process and where it is called, once in plain text and once behind both sidecars."""
    way: tuple[Any, str] = request.getfixturevalue(request.param)
    return way


@pytest.fixture
def rust_peer(rust_way: tuple[Any, str]) -> Any:
    """The real server's process, once in plain text and once behind both sidecars; its log has a line for each execution."""
    return rust_way[0]


@pytest.fixture
async def client(rust_way: tuple[Any, str]) -> AsyncIterator[PeerClient]:
    """Our client, connected to ``rust_peer``."""
    async with await PeerClient.connect_async(rust_way[1], "intake", token=TOKEN) as connected:
        yield connected
