"""Ten thousand random requests over random meshes: evaluator, real Envoys and real servers agree on every one, place by place.

What is compared, for each request:

    egress    the evaluator's yes or no with whether the caller's running Envoy has a port for (callee, data class)
    ingress   with whether the callee's Envoy let the call in, through that port or straight from whoever holds the caller's key
              and stamps what it likes (a wrong egress): nothing, anything, twice
    server    with whether the callee's server took it, and with what was executed there: exactly once, or never

Half of the runs that no metadata names go as frames of lanes. At least a third of the requests is allowed, and a third more is
refused and differs from an allowed one in one field.
``POLICY_SEED`` in the environment chooses other meshes and requests; the seed is printed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blazen_certs import Authority
from blazen_peer import PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.policy import INVOKE
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest
from tests.mesh.one_frame import by_lane
from tests.mesh.random_policy import (
    OTHER_METHODS,
    REGIONS,
    STRANGE_STAMPS,
    UNHEARD_OF,
    WORKFLOWS,
    Judge,
    Request,
    Requests,
    Verdict,
    World,
)

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("POLICY_SEED", "20261123"))
TOKEN = "the-shared-token-of-this-mesh-0123456789"
STAMP, SAID_WORKFLOW, RUN_CLASS = "x-blazen-data-class", "blazen-workflow", "blazen-data-class"
AT_ONCE = 48
QUICK = ServerSettings(lame_duck_secs=0, drain_secs=1)


class Running:
    """A world with real sidecars and servers, and what it did with requests.

    Attributes:
        executed: How often a step ran, by (callee, workflow, number of the request).
        by_lane: How many requests went as frames of lanes; the others went alone.
    """

    def __init__(self, world: World, mesh: Any) -> None:
        self.world, self.mesh = world, mesh
        self.executed: Counter[tuple[str, str, int]] = Counter()
        self.by_lane = 0
        self.ports: dict[tuple[str, str, str | None], str] = {}
        self._channels: dict[tuple[str, ...], grpc.aio.Channel] = {}
        self._numbers = itertools.count()

    async def start(self, stack: AsyncExitStack) -> None:
        """Start the servers, and ask the running Envoys which ports they have."""
        for node in self.world.nodes:
            server = PeerServer(
                node,
                registry=self._registry(node),
                token=TOKEN,
                settings=QUICK,
                policy=self.mesh.root / node / "policy.json",
                sidecar_proof_file=self.mesh.proof_file(node),
            )
            await stack.enter_async_context(server.serving(self.mesh.listen(node)))
            listeners = json.loads(await self.mesh.sidecars[node].admin.get("/listeners?format=json"))
            for entry in listeners["listener_statuses"]:
                kind, *callee_and_class = entry["name"].split(" ")
                if kind == "egress":
                    callee, data_class = (*callee_and_class, None)[:2]
                    port = entry["local_address"]["socket_address"]["port_value"]
                    self.ports[node, callee, data_class] = f"127.0.0.1:{port}"

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()

    async def send(self, request: Request) -> tuple[int, str]:
        """Make the call; return its number and what became of it: a verdict, or words for anything else."""
        number = next(self._numbers)
        channel = self._by_port(request) if request.by_port else self._straight(request)
        if channel is None:
            return number, "egress"
        metadata = [("authorization", f"Bearer {TOKEN}")]
        metadata += [(STAMP, stamp) for stamp in (request.forged if request.by_port else request.stamps)]
        metadata += [(SAID_WORKFLOW, request.said_workflow)] if request.said_workflow is not None else []
        metadata += [(RUN_CLASS, request.run_class)] if request.run_class is not None else []
        by_a_lane = number % 2 == 0 and request.method == INVOKE and request.said_workflow is None  # no frame says one
        try:
            if by_a_lane:
                self.by_lane += 1
                await by_lane(channel, _envelope(request, number), metadata, 60)
            else:
                await channel.unary_unary(request.method)(_message(request, number), metadata=tuple(metadata), timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                return number, f"{error.code().name} {error.details()}"
            return number, "ingress" if "RBAC" in (error.details() or "") else "server"
        return number, "allowed"

    def _by_port(self, request: Request) -> grpc.aio.Channel | None:
        address = self.ports.get((request.caller, request.callee, next(iter(request.stamps), None)))
        if address is None:
            return None
        if (address,) not in self._channels:
            self._channels[address,] = grpc.aio.insecure_channel(address)
        return self._channels[address,]

    def _straight(self, request: Request) -> grpc.aio.Channel:
        key = (request.caller, request.callee)
        if key not in self._channels:
            home = self.mesh.identities[request.caller] / "current"
            files = [(home / name).read_bytes() for name in ("bundle.crt", "tls.key", "tls.crt")]
            peer = self.mesh.definition.identity(request.callee)
            name = f"{peer.node_id}.{peer.trust_domain}"
            address = str(self.mesh.definition.peers[request.callee].sidecar)
            options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
            self._channels[key] = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*files), options)
        return self._channels[key]

    def _registry(self, node: str) -> Registry:
        registry = Registry()
        for name in (*WORKFLOWS, UNHEARD_OF):

            def counted(workflow: str) -> Callable[[StartEvent], Any]:
                async def run(event: StartEvent) -> StopEvent:
                    self.executed[node, workflow, event.data] += 1
                    return StopEvent(result=event.data)

                return run

            registry.step(f"{name}::run")(counted(name))
            declared = self.world.laxest[node, name]
            registry.register_workflow(Workflow(name, [f"{name}::run"], registry=registry, data_class=declared))
        return registry


def _message(request: Request, number: int) -> bytes:
    if request.method != INVOKE:
        return b""
    return PostcardRequest(postcard_payload=_envelope(request, number)).SerializeToString()


def _envelope(request: Request, number: int) -> bytes:
    return SubWorkflowRequest(request.workflow, (f"{request.workflow}::run",), str(number).encode(), 30).encode()


StartWorld = Callable[..., Any]


@pytest.fixture
async def start_world(start_mesh: Any, short_dir: Path, ports: Callable[[], int]) -> AsyncIterator[StartWorld]:
    """A factory of running worlds: ``start_world(seed, nodes=, classes=)``."""
    async with AsyncExitStack() as stack:

        async def start(seed: int, *, nodes: int, classes: bool) -> Running:
            world = World(random.Random(seed), ports, nodes=nodes, classes=classes)
            authority = Authority.create(short_dir / "random", "mesh.test", regions=REGIONS if classes else ())
            identities = {node: authority.issue(node, region=world.region.get(node)).path for node in world.nodes}
            mesh = await start_mesh(world.nodes, (), identities=identities, stand_ins=False, extra=world.table)
            running = Running(world, mesh)
            stack.push_async_callback(running.close)
            await running.start(stack)
            return running

        yield start


async def judged(running: Running, drawn: Sequence[tuple[str, Request]]) -> Counter[tuple[str, Verdict]]:
    """Send every request of *drawn*, fail on the first few that anybody disagrees on, and count the rest."""
    judge = Judge(running.world, running.mesh.definition)
    turns, wrong = asyncio.Semaphore(AT_ONCE), []
    counts: Counter[tuple[str, Verdict]] = Counter()
    expected: Counter[tuple[str, str, int]] = Counter()

    async def one(kind: str, request: Request) -> None:
        async with turns:
            number, found = await running.send(request)
        verdict = judge.verdict(request)
        counts[kind, verdict] += 1
        if verdict == "allowed" and request.method == INVOKE:
            expected[request.callee, request.workflow, number] = 1
        if found != verdict:
            wrong.append(f"evaluator {verdict}, real {found}: {request}")

    await asyncio.gather(*(one(kind, request) for kind, request in drawn))
    assert wrong == [], f"{len(wrong)} of {len(drawn)} differ:\n" + "\n".join(wrong[:10])
    assert running.executed == expected
    return counts


@pytest.mark.parametrize(
    ("requests", "nodes", "classes"),
    [
        pytest.param(7_500, 6, True, id="regions-and-classes"),
        pytest.param(2_500, 4, False, id="without-classes"),
    ],
)
async def test_all_agree(
    start_world: StartWorld,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    requests: int,
    nodes: int,
    classes: bool,
) -> None:
    """Evaluator, Envoys and servers say the same of every request, and each allowed one is executed once."""
    caplog.set_level(logging.CRITICAL, "blazen_peer")  # one line for each refusal is what servers write
    running = await start_world(SEED, nodes=nodes, classes=classes)
    judge = Judge(running.world, running.mesh.definition)
    assert set(running.ports) == set(judge.ways())
    source = Requests(running.world, judge)
    drawn = list(source.draw(requests))
    begun = time.monotonic()
    counts = await judged(running, drawn)
    took = time.monotonic() - begun
    allowed = sum(count for (_, verdict), count in counts.items() if verdict == "allowed")
    near = sum(count for (kind, verdict), count in counts.items() if kind == "one-field-away" and verdict != "allowed")
    assert 3 * allowed >= requests
    assert 3 * near >= requests
    assert 8 * running.by_lane >= requests
    places: tuple[Verdict, ...] = ("egress", "ingress", "server")
    refused = {place: counts["one-field-away", place] + counts["any", place] for place in places}
    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {SEED}: {requests} requests in {took:.0f} s, all agree: {allowed} allowed, {near} refused one field away "
            f"from allowed; refused at {refused}; {running.executed.total()} executions; {running.by_lane} by lanes\n"
        )


def requests(world: World) -> st.SearchStrategy[Request]:
    """Return a strategy of any requests between the nodes of *world*, with stamps of any printable text."""
    nodes, names = st.sampled_from(world.nodes), st.sampled_from((*world.classes, *STRANGE_STAMPS))
    printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
    stamps = st.lists(names | printable, max_size=3).map(tuple)
    rest = {
        "workflow": st.sampled_from((*WORKFLOWS, UNHEARD_OF)),
        "said_workflow": st.none() | st.sampled_from(WORKFLOWS),
        "run_class": st.none() | st.sampled_from((*world.classes, "secret")),
        "method": st.just(INVOKE) | st.sampled_from(OTHER_METHODS),
    }
    of_a_port = st.sampled_from(world.classes).map(lambda name: (name,))
    by_port = st.builds(Request, nodes, nodes, st.just(True), of_a_port, **rest, forged=stamps)
    return by_port | st.builds(Request, nodes, nodes, st.just(False), stamps, **rest)


async def test_small_requests(start_world: StartWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The same of requests that hypothesis makes up, and makes smaller when somebody disagrees."""
    caplog.set_level(logging.CRITICAL, "blazen_peer")
    running = await start_world(SEED + 1, nodes=4, classes=True)
    judge, loop = Judge(running.world, running.mesh.definition), asyncio.get_running_loop()

    @settings(max_examples=500, database=None)
    @given(requests(running.world))
    def agree(request: Request) -> None:
        assume(request.caller != request.callee)
        _, found = asyncio.run_coroutine_threadsafe(running.send(request), loop).result(60)
        assert found == judge.verdict(request)

    await asyncio.to_thread(agree)
