"""A peer with a policy, and a stand-in for the two sidecars before it: a port that stamps what it is told to.

async def test_something(guarded):
    peer = await guarded(policy)                      # a PeerServer "analyst" that enforces it
    port = await peer.port("intake", "personal")      # what intake's sidecar listens on for personal data
    client = await port.connect()
    ...
    assert peer.begun["s"] == 1                       # how often each step was executed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from blazen_peer import Context, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.identity import PeerId
from blazen_peer.policy import DataClass, Flow, Policy
from blazen_peer.runtime.registry import Registry

TOKEN, PROOF = "the-shared-token-of-this-mesh-0123456789", "pr00f-" * 8
QUICK = ServerSettings(lame_duck_secs=0, drain_secs=2)
STAMP = "x-blazen-data-class"
CLASSES = (DataClass("personal", ()), DataClass("internal", ()), DataClass("public", ()))


def peer_id(node: str) -> PeerId:
    return PeerId("mesh.test", node)


def flow(caller: str, callee: str, workflows: Iterable[str], *classes: str, **options: Any) -> Flow:
    """Return a flow between two nodes of the mesh."""
    options = {"why": "a test", "until": None, **options}
    return Flow(peer_id(caller), peer_id(callee), frozenset(workflows), frozenset(classes), **options)


def policy_of(*flows: Flow, classes: tuple[DataClass, ...] = CLASSES) -> Policy:
    return Policy(classes, flows)


class Port:
    """One egress port with all behind it: it writes the caller's identity, the proof and the stamps on each call, and the stamp
    on each answer. Who listens for what can be changed while it runs, as a sidecar's configuration can.

    Attributes:
        stamps: What goes on each call.
        told: What goes on each answer; None: nothing.
        proof: None leaves the proof away.
        calls: The methods that were called.
    """

    def __init__(self, target: str, caller: str, stamps: Iterable[str], stack: AsyncExitStack) -> None:
        self.caller, self.stamps, self.proof = caller, tuple(stamps), PROOF
        self.told: str | None = self.stamps[0] if self.stamps else None
        self.calls: Counter[str] = Counter()
        self.extra: tuple[tuple[str, str], ...] = ()
        self._target, self._stack, self._number = target, stack, 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._number}"

    async def start(self) -> None:
        """Listen where it listened before, or on a free port."""
        self._channel = grpc.aio.insecure_channel(self._target, options=(("grpc.use_local_subchannel_pool", 1),))
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self._number = self._server.add_insecure_port(f"127.0.0.1:{self._number}")
        await self._server.start()

    async def stop(self) -> None:
        """Break all connections."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)
            await self._channel.close()

    async def connect(self, **options: Any) -> PeerClient:
        """Return a client on this port."""
        client = await PeerClient.connect_async(self.address, self.caller, **{"token": TOKEN, **options})
        return await self._stack.enter_async_context(client)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Carry any method, as ``grpc.GenericRpcHandler`` finds it."""
        method = details.method

        async def carry(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            self.calls[method.rpartition("/")[2]] += 1
            dropped = {STAMP, "x-blazen-sidecar-proof", "x-forwarded-client-cert", "user-agent"}
            sent = [(name, value) for name, value in context.invocation_metadata() or () if name not in dropped]
            sent += [(STAMP, stamp) for stamp in self.stamps]
            sent += [("x-forwarded-client-cert", f"URI={peer_id(self.caller)}"), *self.extra]
            sent += [("x-blazen-sidecar-proof", self.proof)] if self.proof else []
            await context.send_initial_metadata(((STAMP, self.told),) if self.told is not None else ())
            call = self._channel.stream_stream(method)(requests, metadata=grpc.aio.Metadata(*sent), timeout=30)
            try:
                async for answer in call:
                    await context.write(answer)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))

        return grpc.stream_stream_rpc_method_handler(carry)


class Guarded:
    """A server that enforces a policy.

    Attributes:
        begun: How often each step was executed.
    """

    def __init__(self, registry: Registry, stack: AsyncExitStack) -> None:
        self.registry, self._stack = registry, stack
        self.begun: Counter[str] = Counter()
        self.server: PeerServer

    async def start(self, policy: Policy | Path, proof_file: Path, **options: Any) -> None:
        options = {"token": TOKEN, "settings": QUICK, "registry": self.registry, **options}
        self.server = PeerServer("analyst", policy=policy, sidecar_proof_file=proof_file, **options)
        await self._stack.enter_async_context(self.server.serving())

    async def port(self, caller: str = "intake", *stamps: str) -> Port:
        """Return a running port of *caller*'s that stamps *stamps*."""
        port = Port(self.server.address.removeprefix("http://"), caller, stamps, self._stack)
        await port.start()
        self._stack.push_async_callback(port.stop)
        return port

    async def client(self, caller: str = "intake", *stamps: str, **options: Any) -> PeerClient:
        """Return a client on such a port."""
        return await (await self.port(caller, *stamps)).connect(**options)

    def serve(self, name: str, *step_ids: str, **options: Any) -> None:
        """Register a workflow of counted steps, each of which answers its input; two workflows may share a step."""
        for step_id in step_ids:
            if step_id not in {step.id for step in self.registry.steps()}:
                self._register(step_id)
        self.registry.register_workflow(Workflow(name, step_ids[:1], registry=self.registry, **options))

    def _register(self, step_id: str) -> None:
        @self.registry.step(step_id)
        async def echo(event: StartEvent, ctx: Context) -> StopEvent:
            self.begun[step_id] += 1
            return StopEvent(result=event.data)
