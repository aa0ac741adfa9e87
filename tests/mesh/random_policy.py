"""Random meshes, and random requests to them, with what the evaluator says of each.

world = World(random.Random(1), free_port, nodes=6, classes=True)     # world.table is its mesh file
judge = Judge(world, parse_mesh({"trust_domain": "mesh.test", **world.table}))
for kind, request in Requests(world, judge).draw(100):
    judge.verdict(request)                                            # "egress", "ingress", "server" or "allowed"
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from blazen_mesh.mesh import Mesh
from blazen_peer.policy import INVOKE, METHODS

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

    def __init__(self, world: World, mesh: Mesh) -> None:
        self.world, self.policy = world, mesh.policy()
        self.identity = {node: mesh.identity(node) for node in world.nodes}

    def ways(self) -> Iterator[tuple[str, str, str | None]]:
        """Yield every caller, callee and data class that a sidecar is to have a port for."""
        for caller, callee in itertools.permutations(self.world.nodes, 2):
            for name in self.world.classes or (None,):
                if self.policy.at_egress(self.identity[caller], self.identity[callee], name).allowed:
                    yield caller, callee, name

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
