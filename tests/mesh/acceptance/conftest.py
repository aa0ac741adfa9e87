"""The product itself behind real sidecars: intake's egress, mutual TLS, analyst's ingress, a real ``PeerServer``.

async def test_something(start_remote):
    remote = await start_remote()                 # token on, require_identity on
    client = await remote.connect()               # a PeerClient named intake, on intake's egress port
    ...
    assert remote.begun["demo::echo"] == 1        # how often each step was executed

Steps of a peer in this process are counted in memory; those of a peer in a process of its own (``start_process``, the
application is ``peer_app.py``) in a file, so that a killed one has been counted too.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from blazen_mesh.child import Child
from blazen_peer import Context, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent
from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest, PostcardResponse
from blazen_peer.transport.status import raised_by
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from tests.mesh.one_frame import by_lane

INVOKE = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
TOKEN = "the-shared-token-of-this-mesh-0123456789"
QUICK = ServerSettings(lame_duck_secs=0, drain_secs=5)
WAIT_SECS = 20.0

Pairs = Sequence[tuple[str, str]]


class Remote:
    """A real server behind analyst's sidecar, and what its steps did.

    Attributes:
        begun, finished: How many executions of each step began, and came to their end.
        held: Set when ``demo::hold`` runs; it ends when ``release`` is set.
        server: Gone after :meth:`stop_server`.
    """

    token = TOKEN

    def __init__(self, mesh: Any, *, by_lane: bool = False) -> None:
        self.mesh, self._by_lane = mesh, by_lane
        self.registry = Registry()
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.held, self.release, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.server: PeerServer | None = None
        self._serving = AsyncExitStack()
        self._clients = AsyncExitStack()
        self._register()

    @staticmethod
    def bearer(token: str = TOKEN) -> tuple[str, str]:
        """Return the ``authorization`` pair of *token*, a JWT or the shared token itself."""
        return ("authorization", f"Bearer {token}")

    @staticmethod
    def jwt(node: str = "intake", *, token: str = TOKEN, age_secs: float = 0) -> str:
        """Return a JWT of *node* that was minted *age_secs* ago, good for 60 s."""
        return mint(TokenKeys.from_tokens(token), node, now=time.time() - age_secs, jti=secrets.token_hex(8))

    @staticmethod
    def message(step_id: str, document: Any = None, *, version: int = 1, timeout_secs: int | None = 10) -> bytes:
        """Return the request message of one step with an input."""
        input_json = json.dumps(document).encode()
        envelope = SubWorkflowRequest("raw", (step_id,), input_json, timeout_secs, envelope_version=version)
        return PostcardRequest(postcard_payload=envelope.encode()).SerializeToString()

    @property
    def egress(self) -> str:
        """Intake's way to analyst, as a client writes it."""
        return f"http://{self.mesh.egress('intake', 'analyst')}"

    @property
    def straight(self) -> str:
        """Analyst's own port, past its sidecar."""
        return f"http://{self.mesh.listen('analyst')}"

    async def start_server(self, **options: Any) -> PeerServer:
        """Serve the steps where analyst's sidecar expects its peer."""
        options = {"token": TOKEN, "require_identity": True, "settings": QUICK, **options}
        options["sidecar_proof_file"] = self.mesh.proof_file("analyst")
        self.server = PeerServer("analyst", registry=self.registry, **options)
        return await self._serving.enter_async_context(self.server.serving(self.mesh.listen("analyst")))

    async def stop_server(self) -> None:
        """End the server in good order."""
        await self._serving.aclose()

    async def connect(self, node: str = "intake", *, address: str | None = None, **options: Any) -> PeerClient:
        """Return a client on intake's egress port, with the token unless told otherwise."""
        options = {"token": TOKEN, **options}
        return await self._clients.enter_async_context(await PeerClient.connect_async(address or self.egress, node, **options))

    async def invoke(
        self,
        request: bytes,
        metadata: Pairs = (),
        *,
        past_sidecar: bool = False,
        channel: grpc.aio.Channel | None = None,
        timeout_secs: float | None = 10,
    ) -> SubWorkflowResponse:
        """Send raw bytes with raw metadata (on *channel*, where one is given), and return the answer's envelope.

        With the fixture ``way`` they go either way: alone, or as a frame of a lane that is opened with the same metadata.

        Raises:
            BlazenError: What our own client makes of the refusal; its ``__cause__`` is gRPC's.
        """
        async with AsyncExitStack() as stack:
            if channel is None:
                address = (self.straight if past_sidecar else self.egress).removeprefix("http://")
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            try:
                if self._by_lane:
                    return SubWorkflowResponse.decode(await by_lane(channel, _envelope_in(request), metadata, timeout_secs))
                answer = await channel.unary_unary(INVOKE)(request, metadata=tuple(metadata), timeout=timeout_secs)
            except grpc.aio.AioRpcError as error:
                raise raised_by(error) from error
        return SubWorkflowResponse.decode(PostcardResponse.FromString(answer).postcard_payload)

    async def close(self) -> None:
        """End the clients, then the server."""
        self.release.set()
        await self._clients.aclose()
        await self._serving.aclose()

    def _register(self) -> None:
        registry = self.registry

        def counted(event: StartEvent, ctx: Context) -> None:
            self.begun[ctx.step_id] += 1

        @registry.step("demo::echo")
        async def echo(event: StartEvent, ctx: Context) -> StopEvent:
            counted(event, ctx)
            return StopEvent(result=event.data)

        @registry.step("demo::caller")
        async def caller(event: StartEvent, ctx: Context) -> StopEvent:
            counted(event, ctx)
            return StopEvent(result=str(ctx.caller))

        @registry.step("demo::fail")
        async def fail(event: StartEvent, ctx: Context) -> StopEvent:
            counted(event, ctx)
            raise RuntimeError(str(event.data))

        @registry.step("demo::wait")
        async def wait(event: StartEvent, ctx: Context) -> StopEvent:
            counted(event, ctx)
            await asyncio.sleep(event.data)
            self.finished[ctx.step_id] += 1
            return StopEvent(result=event.data)

        @registry.step("demo::hold")
        async def hold(event: StartEvent, ctx: Context) -> StopEvent:
            counted(event, ctx)
            self.held.set()
            await self.release.wait()
            self.finished[ctx.step_id] += 1
            self.done.set()
            return StopEvent(result=event.data)


def _envelope_in(request: bytes) -> bytes:
    """Return what a frame carries of *request*; of what is no message, all."""
    try:
        return PostcardRequest.FromString(request).postcard_payload
    except DecodeError:
        return request


StartRemote = Callable[..., Awaitable[Remote]]


@pytest.fixture
async def start_remote(start_mesh: Any, request: pytest.FixtureRequest) -> AsyncIterator[StartRemote]:
    """A factory: a mesh whose analyst is a real server (none yet with ``serve=False``).

    ``server`` are that server's options; all others are ``start_mesh``'s.
    """
    is_by_lane = "way" in request.fixturenames and request.getfixturevalue("way") == "by-lane"
    async with AsyncExitStack() as stack:

        async def start(*, server: Mapping[str, Any] | None = None, serve: bool = True, **mesh_options: Any) -> Remote:
            remote = Remote(await start_mesh(stand_ins=False, **mesh_options), by_lane=is_by_lane)
            stack.push_async_callback(remote.close)
            if serve:
                await remote.start_server(**(server or {}))
            return remote

        yield start


@pytest.fixture
async def remote(start_remote: StartRemote) -> Remote:
    """A real server behind both sidecars, with a token and ``require_identity``."""
    return await start_remote()


class PeerProcess:
    """``blazen-peer serve --app peer_app`` in a process of its own, behind *node*'s sidecar."""

    def __init__(self, mesh: Any, node: str, journal: Path) -> None:
        self.mesh, self.node, self._journal = mesh, node, journal
        self.lines: list[str] = []
        self._new_line = asyncio.Event()

    async def start(self, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it listens."""
        argv = [sys.executable, "-m", "blazen_peer.cli", "serve", "--app", "peer_app", "--node-id", self.node]
        argv += ["--listen", self.mesh.listen(self.node), "--sidecar-proof-file", str(self.mesh.proof_file(self.node))]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BLAZEN_", "OTEL_"))}
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {"BLAZEN_PEER_TOKEN": TOKEN, "JOURNAL": str(self._journal), "PYTHONPATH": path}
        self.child = await Child.start(
            f"{self.node}'s peer",
            [*argv, "--lame-duck-secs", "0", *options],
            on_line=self._on_line,
            env={**kept, **ours, **(env or {})},
        )
        await self.said("listens on")

    def executions(self, step_id: str) -> int:
        """Return how many executions of *step_id* began, in this process and in those before it."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return lines.count(step_id)

    async def executed(self, step_id: str) -> None:
        """Wait until an execution of *step_id* has begun."""
        async with asyncio.timeout(WAIT_SECS):
            while not self.executions(step_id):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)

    async def said(self, text: str) -> None:
        """Wait until it has written *text*."""
        async with asyncio.timeout(WAIT_SECS):
            while not any(text in line for line in self.lines):
                assert self.child.returncode is None, "\n".join(self.lines)
                self._new_line.clear()
                await self._new_line.wait()

    def _on_line(self, _: str, line: str) -> None:
        self.lines.append(line)
        self._new_line.set()


StartProcess = Callable[..., Awaitable[PeerProcess]]


@pytest.fixture
async def start_process(short_dir: Path) -> AsyncIterator[StartProcess]:
    """A factory of peers in processes of their own; all share one journal of executions."""
    started: list[PeerProcess] = []

    async def start(mesh: Any, node: str, *options: str, env: Mapping[str, str] | None = None) -> PeerProcess:
        peer = PeerProcess(mesh, node, short_dir / "journal")
        started.append(peer)
        await peer.start(*options, env=env)
        return peer

    yield start
    await asyncio.gather(*(peer.child.stop(5) for peer in started))
