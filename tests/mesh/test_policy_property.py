"""Ten thousand random requests over random meshes: evaluator, real Envoys and real servers agree on every one, place by place.

What is compared, for each request:

    egress    the evaluator's yes or no with whether the caller's running Envoy has a port for (callee, data class)
    ingress   with whether the callee's Envoy let the call in, through that port or straight from whoever holds the caller's key
              and stamps what it likes (a wrong egress): nothing, anything, twice
    server    with whether the callee's server took it, and with what was executed there: exactly once, or never

At least a third of the requests is allowed, and a third more is refused and differs from an allowed one in one field.
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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest

from blazen_certs import Authority
from blazen_mesh.mesh import Mesh as MeshFile
from blazen_peer import PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.policy import INVOKE, METHODS
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("POLICY_SEED", "20261123"))
TOKEN = "the-shared-token-of-this-mesh-0123456789"
STAMP, SAID_WORKFLOW, RUN_CLASS = "x-blazen-data-class", "blazen-workflow", "blazen-data-class"
REGIONS = ("eu", "us", "ap")
CLASSES = {"personal": ("eu",), "internal": ("eu", "us"), "partner": ("us", "ap"), "public": REGIONS}
WORKFLOWS = ("analyze", "embed", "index", "report", "train")
UNHEARD_OF = "unheard-of"
STRANGE_STAMPS = ("", "PERSONAL", "personal,personal", "secret", "x" * 300)
OTHER_METHODS = (
    "/blazen_peer.control.v1.PeerControl/Describe",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/blazen.peer.v1.BlazenPeer/NoSuchMethod",
)
AT_ONCE = 48
QUICK = ServerSettings(lame_duck_secs=0, drain_secs=1)

Verdict = Literal["egress", "ingress", "server", "allowed"]


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        by_port: Through the caller's own sidecar, on the port for ``stamps`` (one class, or none); otherwise straight at the
            callee's ingress, with the caller's certificate and with ``stamps`` as they are.
        forged: What a client sends as stamps through a port, which are to be overwritten.
        said_workflow, run_class: What the call's metadata says.
    """

    caller: str
    callee: str
    by_port: bool
    stamps: tuple[str, ...]
    workflow: str
    said_workflow: str | None = None
    run_class: str | None = None
    method: str = INVOKE
    forged: tuple[str, ...] = ()


class World:
    """A random mesh: what it allows, and what each workflow of each callee declares."""

    def __init__(self, chance: random.Random, port: Callable[[], int], *, nodes: int, classes: bool) -> None:
        self.chance = chance
        self.nodes = [f"node-{index}" for index in range(nodes)]
        self.classes = tuple(CLASSES) if classes else ()
        self.region = {node: REGIONS[index % len(REGIONS)] for index, node in enumerate(self.nodes)} if classes else {}
        self.laxest = {
            (node, name): chance.choice([*self.classes, None]) if classes else None
            for node in self.nodes
            for name in (*WORKFLOWS, UNHEARD_OF)
        }
        self.table = self._table(port)

    def _table(self, port: Callable[[], int]) -> dict[str, Any]:
        flows, ports = [], {node: {} for node in self.nodes}
        pairs = list(itertools.permutations(self.nodes, 2))
        for caller, callee in self.chance.sample(pairs, k=len(pairs) * 2 // 5):
            may = [name for name in self.classes if {self.region[caller], self.region[callee]} <= set(CLASSES[name])]
            if self.classes and not may:
                continue
            taken: set[tuple[str, str]] = set()
            for _ in range(self.chance.choice([1, 1, 2])):
                workflows = self.chance.sample(WORKFLOWS, k=self.chance.randint(1, 3))
                data = self.chance.sample(may, k=self.chance.randint(1, len(may))) if may else []
                named = set(itertools.product(workflows, data or [""]))
                if named & taken:
                    continue
                taken |= named
                flow = {"from": caller, "to": callee, "workflows": workflows, "why": "the seed says so"}
                flows.append({**flow, "data": data} if data else flow)
                given = ports[caller].setdefault(callee, {})
                for name in data or [""]:
                    given.setdefault(name, port())
        peers = {
            node: {
                "sidecar": f"127.0.0.1:{port()}",
                "listen": f"127.0.0.1:{port()}",
                "egress": {callee: given if self.classes else given[""] for callee, given in ports[node].items()},
                **({"region": self.region[node]} if self.classes else {}),
            }
            for node in self.nodes
        }
        if not self.classes:
            return {"peers": peers, "flows": flows}
        data = [{"name": name, "regions": list(CLASSES[name]), "why": "the test says so"} for name in self.classes]
        return {"peers": peers, "flows": flows, "regions": list(REGIONS), "data": data}


class Judge:
    """The evaluator's verdict on requests to one mesh."""

    def __init__(self, world: World, mesh: MeshFile) -> None:
        self.world, self.policy = world, mesh.policy()
        self.identity = {node: mesh.identity(node) for node in world.nodes}

    def verdict(self, request: Request) -> Verdict:
        """Return where *request* is refused, or that it is allowed."""
        caller, callee = self.identity[request.caller], self.identity[request.callee]
        if request.by_port and not self.policy.at_egress(caller, callee, next(iter(request.stamps), None)).allowed:
            return "egress"
        if not self.policy.at_ingress(caller, callee, request.stamps, request.method).allowed:
            return "ingress"
        if request.method != INVOKE:
            return "allowed"
        found = self.policy.at_server(
            caller,
            callee,
            request.stamps if self.world.classes else (),  # without classes the ingress takes them away
            request.workflow,
            laxest=self.world.laxest[request.callee, request.workflow],
            said_workflow=request.said_workflow,
            run_class=request.run_class,
        )
        return "allowed" if found.allowed else "server"


class Requests:
    """Random requests: a share allowed, a share one field away from allowed, the rest anything."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world, self.judge, self.chance = world, judge, world.chance
        self._allowed = [request for request in self._plain() if judge.verdict(request) == "allowed"]

    def draw(self, count: int) -> Iterator[tuple[str, Request]]:
        """Yield *count* requests with their kind: ``allowed``, ``one-field-away`` or ``any``."""
        for index in range(count):
            if index % 5 in (0, 1):
                yield "allowed", self.allowed()
            elif index % 5 in (2, 3):
                yield "one-field-away", self.near()
            else:
                yield "any", self.any()

    def allowed(self) -> Request:
        """Return a request that is allowed, with what may be added to it."""
        request = self.chance.choice(self._allowed)
        request = replace(request, by_port=self.chance.random() < 0.5)
        stamp = next(iter(request.stamps), None)
        extras = [replace(request, said_workflow=request.workflow), replace(request, run_class=stamp)]
        extras.append(replace(request, run_class=self.chance.choice(self.world.classes or (None,))))
        extras.append(replace(request, method=self.chance.choice([name for name in OTHER_METHODS if name in METHODS])))
        if request.by_port:
            extras.append(replace(request, forged=tuple(self.chance.choices((*self.world.classes, "x"), k=2))))
        fine = [extra for extra in (request, request, *extras) if self.judge.verdict(extra) == "allowed"]
        return self.chance.choice(fine)

    def near(self) -> Request:
        """Return a refused request that differs from an allowed one in one field."""
        while True:
            base = self.allowed()
            name = self.chance.choice(["caller", "callee", "stamps", "workflow", "said_workflow", "run_class", "method"])
            changed = replace(base, **{name: getattr(self.any(by_port=base.by_port), name)})
            if changed.caller != changed.callee and self.judge.verdict(changed) != "allowed":
                assert sum(getattr(base, field.name) != getattr(changed, field.name) for field in fields(base)) == 1
                return changed

    def any(self, *, by_port: bool | None = None) -> Request:
        """Return any request at all."""
        chance = self.chance
        caller, callee = chance.sample(self.world.nodes, k=2)
        through = chance.random() < 0.4 if by_port is None else by_port
        return Request(
            caller,
            callee,
            through,
            self._stamps(through),
            chance.choice((*WORKFLOWS, UNHEARD_OF)),
            chance.choice((None, None, *WORKFLOWS)),
            chance.choice((None, None, *self.world.classes, "secret")),
            INVOKE if chance.random() < 0.9 else chance.choice(OTHER_METHODS),
        )

    def _stamps(self, by_port: bool) -> tuple[str, ...]:
        chance, classes = self.chance, self.world.classes
        if by_port:
            return (chance.choice(classes),) if classes else ()
        known = [(name,) for name in classes] * 4
        return chance.choice([*known, (), *((stamp,) for stamp in STRANGE_STAMPS), *self._twice()])

    def _twice(self) -> list[tuple[str, str]]:
        pool = (*self.world.classes, "secret")
        return [(self.chance.choice(pool), self.chance.choice(pool)) for _ in range(4)]

    def _plain(self) -> Iterator[Request]:
        stamps = [(name,) for name in self.world.classes] or [()]
        for caller, callee in itertools.permutations(self.world.nodes, 2):
            for stamp, workflow in itertools.product(stamps, WORKFLOWS):
                yield Request(caller, callee, True, stamp, workflow)


class Running:
    """A world with real sidecars and servers, and what it did with requests.

    Attributes:
        executed: How often a step ran, by (callee, workflow, number of the request).
    """

    def __init__(self, world: World, mesh: Any) -> None:
        self.world, self.mesh = world, mesh
        self.executed: Counter[tuple[str, str, int]] = Counter()
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
        try:
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
        return self._channels.setdefault((address,), grpc.aio.insecure_channel(address))

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
    envelope = SubWorkflowRequest(request.workflow, (f"{request.workflow}::run",), str(number).encode(), 30)
    return PostcardRequest(postcard_payload=envelope.encode()).SerializeToString()


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
    source = Requests(running.world, Judge(running.world, running.mesh.definition))
    drawn = list(source.draw(requests))
    begun = time.monotonic()
    counts = await judged(running, drawn)
    took = time.monotonic() - begun
    allowed = sum(count for (_, verdict), count in counts.items() if verdict == "allowed")
    near = sum(count for (kind, verdict), count in counts.items() if kind == "one-field-away" and verdict != "allowed")
    assert 3 * allowed >= requests
    assert 3 * near >= requests
    places: tuple[Verdict, ...] = ("egress", "ingress", "server")
    refused = {place: counts["one-field-away", place] + counts["any", place] for place in places}
    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {SEED}: {requests} requests in {took:.0f} s, all agree: {allowed} allowed, {near} refused one field away "
            f"from allowed; refused at {refused}; {running.executed.total()} executions\n"
        )
