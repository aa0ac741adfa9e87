"""``mesh.toml``: the peers of a mesh, where they are, and who may call what on whom. Read once into frozen values.

    trust_domain = "mesh.example"
    regions = ["eu", "us"]            # optional; with it every peer says its region

    [[data]]                          # optional: the classes of data, strictest first
    name = "personal"
    regions = ["eu"]                  # where it may be
    why = "people's own words"

    [peers.intake]                    # the node id
    region = "eu"
    sidecar = "127.0.0.1:15001"       # where its ingress is dialled; an IP address or a name
    listen = "127.0.0.1:50051"        # its peer's plain-text port on loopback, or "unix:/absolute/path"; a list for replicas
    egress.analyst = { personal = 16001 }   # the loopback port on which intake reaches analyst; one for each data class
    run.app = "examples.intake"       # what `blazen-mesh up` starts

    [[flows]]                         # default deny: no flows means nobody may call anybody
    from = "intake"
    to = "analyst"
    workflows = ["analyze-pipeline"]  # every one that may be called; there is no wildcard
    data = ["personal"]               # needed in a mesh with [[data]]
    why = "hands documents over for analysis"
    until = 2027-01-31                # optional: the last day (UTC) of an exception

Without data classes a port stands alone: ``egress.analyst = 16001``. Unknown keys are refused. Every problem of a kind is
reported at once, with its place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import ConfigDict, Field

from blazen_mesh.contradictions import contradictions
from blazen_mesh.mesh_tables import (
    UNCLASSED,
    Data,
    Egress,
    Flow,
    NodeId,
    Peer,
    Region,
    Run,
    Telemetry,
    TrustDomain,
    as_tuples,
    lines_of,
)
from blazen_peer.errors import ValidationError
from blazen_peer.flows import MAX_CALLS_PER_SEC, DataClass
from blazen_peer.flows import Flow as PolicyFlow
from blazen_peer.identity import PeerId
from blazen_peer.policy import Policy

__all__ = ["Data", "Egress", "Flow", "Mesh", "MeshError", "Peer", "Run", "Telemetry", "Way", "load_mesh", "parse_mesh"]

MAX_CONNECTION_AGE_SECS = 6 * 3600  # a quarter of a leaf's 24 h: an open connection outlives its certificate by no more


class MeshError(ValidationError):
    """The mesh file is wrong. ``problems`` holds one line each, beginning with the place in the file."""

    kind = "Mesh"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, slots=True)
class Way:
    """One loopback port of a node's sidecar: whom it leads to, and the data class that it stamps (None: it stamps none)."""

    callee: str
    data_class: str | None
    port: int
    inject_token: bool = False

    @property
    def name(self) -> str:
        """What its listener, its cluster and its log lines are called."""
        return f"egress {self.callee} {self.data_class}" if self.data_class else f"egress {self.callee}"

    @property
    def address(self) -> str:
        """Where local clients reach it: ``127.0.0.1:PORT``, plain text."""
        return f"127.0.0.1:{self.port}"


class Mesh(pydantic.BaseModel):
    """A whole mesh file, free of contradictions.

    Attributes:
        connection_age_secs: How long a sidecar keeps a connection to another: certificates are looked at when one opens.
        calls_per_sec: What an ingress takes from one caller.
        crl: Whether revocation lists are looked at; False for authorities that publish none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trust_domain: TrustDomain
    regions: tuple[Region, ...] = ()
    data: tuple[Data, ...] = ()
    peers: Annotated[dict[NodeId, Peer], Field(min_length=1)]
    flows: tuple[Flow, ...] = ()
    telemetry: Telemetry | None = None
    connection_age_secs: Annotated[int, Field(ge=1, le=MAX_CONNECTION_AGE_SECS)] = 3600
    calls_per_sec: Annotated[int, Field(ge=1, le=MAX_CALLS_PER_SEC)] = 10_000
    crl: bool = True

    @cached_property
    def classes(self) -> Mapping[str, Data]:
        """The data classes by name, strictest first."""
        return {each.name: each for each in self.data}

    def identity(self, node: str) -> PeerId:
        """Return the SPIFFE identity of *node*; in a mesh with regions, its region is the first label of the trust domain.

        Raises:
            MeshError: There is no such node.
        """
        region = self.peer(node).region
        return PeerId(f"{region}.{self.trust_domain}" if region else self.trust_domain, node)

    def peer(self, node: str) -> Peer:
        """Return the peer called *node*.

        Raises:
            MeshError: There is none.
        """
        if node not in self.peers:
            raise MeshError((f"there is no [peers.{node}]; there are: {', '.join(sorted(self.peers))}",))
        return self.peers[node]

    def callers(self, node: str) -> tuple[str, ...]:
        """Return who may call *node*, sorted; empty means nobody."""
        return tuple(sorted({flow.caller for flow in self.flows if flow.callee == node}))

    def callees(self, node: str) -> tuple[str, ...]:
        """Return whom *node* may call, sorted."""
        return tuple(sorted({flow.callee for flow in self.flows if flow.caller == node}))

    def ways(self, node: str) -> tuple[Way, ...]:
        """Return the egress ports of *node*, by callee and then strictest first: those, and only those, that a flow needs.

        Raises:
            MeshError: There is no such node.
        """
        ports = self.peer(node).egress
        needed = {(flow.callee, name) for flow in self.flows if flow.caller == node for name in flow.data or (UNCLASSED,)}
        order = (UNCLASSED, *self.classes)
        found = sorted(needed, key=lambda pair: (pair[0], order.index(pair[1])))
        return tuple(
            Way(callee, name or None, ports[callee][name].port, ports[callee][name].inject_token) for callee, name in found
        )

    def way(self, node: str, callee: str, data_class: str | None = None) -> Way:
        """Return the egress port of *node* that leads to *callee* and stamps *data_class*.

        Raises:
            MeshError: There is no such node, or no flow lets it.
        """
        for way in self.ways(node):
            if (way.callee, way.data_class) == (callee, data_class):
                return way
        data = f" with {data_class} data" if data_class else ""
        raise MeshError((f"no flow lets {node} call {callee}{data}",))

    def policy(self) -> Policy:
        """Return what the flows allow, for the evaluator."""
        flows = (
            PolicyFlow(
                self.identity(flow.caller),
                self.identity(flow.callee),
                frozenset(flow.workflows),
                frozenset(flow.data),
                flow.reason,
                flow.until,
            )
            for flow in self.flows
        )
        return Policy(tuple(DataClass(each.name, each.regions) for each in self.data), tuple(flows))

    def policy_of(self, node: str) -> Policy:
        """Return what *node*'s peer enforces: the flows to and from it, and its part of the rate, of which replicas share.

        Raises:
            MeshError: There is no such node.
        """
        rate = -(-self.calls_per_sec // len(self.peer(node).listens))
        return replace(self.policy().of(self.identity(node)), calls_per_sec=rate)

    def on(self, day: date) -> Mesh:
        """Return the mesh of *day* (UTC): without the flows whose last day is over, and so without their ways."""
        flows = tuple(flow for flow in self.flows if flow.until is None or day <= flow.until)
        return self if len(flows) == len(self.flows) else self.model_copy(update={"flows": flows})


def parse_mesh(table: Mapping[str, Any]) -> Mesh:
    """Return the mesh that *table*, a parsed TOML document, describes.

    Raises:
        MeshError: Wrong keys or values (all of them), or contradictions (all of them).
    """
    try:
        mesh = Mesh.model_validate(as_tuples(table))
    except pydantic.ValidationError as error:
        raise MeshError(lines_of(error)) from None
    if problems := tuple(contradictions(mesh)):
        raise MeshError(problems)
    return mesh


def load_mesh(path: Path) -> Mesh:
    """Return the mesh in the file *path*.

    Raises:
        MeshError: The file cannot be read, is not TOML, or :func:`parse_mesh` refuses it.
    """
    try:
        return parse_mesh(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MeshError((f"{path}: cannot be read: {error.strerror}",)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MeshError((f"{path}: not TOML: {error}",)) from None
