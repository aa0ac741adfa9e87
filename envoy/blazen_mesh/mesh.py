"""``mesh.toml``: the peers of a mesh, where they are, and who may call whom. Read once into frozen values.

    trust_domain = "mesh.example"

    [peers.intake]                    # the node id
    sidecar = "127.0.0.1:15001"       # where its ingress is dialled; an IP address or a name
    listen = "127.0.0.1:50051"        # its peer's plain-text port on loopback, or "unix:/absolute/path"
    egress.analyst = 16001            # the loopback port on which intake reaches analyst
    run.app = "examples.intake"       # what `blazen-mesh up` starts

    [[flows]]                         # default deny: no flows means nobody may call anybody
    from = "intake"
    to = "analyst"
    why = "hands documents over for analysis"

Unknown keys are refused. Every problem of a kind is reported at once, with its place.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

from blazen_mesh.address import Address, TcpAddress, UnixAddress, parse_address, parse_tcp
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId, check_node_id

__all__ = ["Egress", "Flow", "Mesh", "MeshError", "Peer", "Run", "Telemetry", "load_mesh", "parse_mesh"]

MAX_CONNECTION_AGE_SECS = 6 * 3600  # a quarter of a leaf's 24 h: an open connection outlives its certificate by no more


class MeshError(ValidationError):
    """The mesh file is wrong. ``problems`` holds one line each, beginning with the place in the file."""

    kind = "Mesh"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


def _node_id(text: str) -> str:
    try:
        return check_node_id(text)
    except ValidationError as error:
        raise ValueError(str(error)) from None


def _trust_domain(text: str) -> str:
    try:
        return PeerId(text, "x").trust_domain
    except ValidationError as error:
        raise ValueError(str(error)) from None


def _loopback(address: Address) -> Address:
    if isinstance(address, TcpAddress) and not address.is_loopback:
        raise ValueError(f"{address} is not on loopback: peers speak plain text, so only their own sidecar may reach them")
    return address


def _ip(address: TcpAddress) -> TcpAddress:
    if not address.is_ip:
        raise ValueError(f"{address} is a name: a sidecar binds to an IP address, such as 0.0.0.0:{address.port}")
    return address


def _port_alone(value: object) -> object:
    return {"port": value} if isinstance(value, int) and not isinstance(value, bool) else value


NodeId = Annotated[str, AfterValidator(_node_id)]
Tcp = Annotated[TcpAddress, PlainValidator(parse_tcp)]


class _Table(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(_Table):
    """What ``blazen-mesh up`` starts as a node's peer: a Python module of steps, and more environment for it.

    ``require_identity = false`` lets local programs that hold the token call the peer directly, past its sidecar.
    """

    app: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    require_identity: bool = True
    env: dict[str, str] = {}


class Egress(_Table):
    """One loopback port that leads to one callee.

    ``inject_token`` makes the sidecar write the ``authorization`` header itself, for clients that cannot. Every process that
    reaches the port is the node then.
    """

    port: Annotated[int, Field(ge=1, le=65535)]
    inject_token: bool = False


class Peer(_Table):
    """One node: its sidecar's address for others, its plain-text peer, and its egress ports by callee.

    ``bind`` is for an ingress that cannot bind to the address it is dialled at; see :attr:`ingress_bind`.
    """

    sidecar: Tcp
    listen: Annotated[Address, PlainValidator(parse_address), AfterValidator(_loopback)]
    bind: Annotated[TcpAddress, PlainValidator(parse_tcp), AfterValidator(_ip)] | None = None
    egress: dict[NodeId, Annotated[Egress, BeforeValidator(_port_alone)]] = {}
    run: Run | None = None

    @property
    def ingress_bind(self) -> TcpAddress:
        """``bind``; without it, the sidecar's own IP address, or every interface where that is a name."""
        return self.bind or (self.sidecar if self.sidecar.is_ip else TcpAddress("0.0.0.0", self.sidecar.port))  # noqa: S104


class Flow(_Table):
    """One permission: *caller* may call *callee*, and why."""

    caller: Annotated[NodeId, Field(alias="from")]
    callee: Annotated[NodeId, Field(alias="to")]
    why: Annotated[str, Field(pattern=r"\S")]

    def __str__(self) -> str:
        return f"{self.caller} -> {self.callee}"


class Telemetry(_Table):
    """Where sidecars send their spans: an OTLP/gRPC receiver in plain text."""

    otlp: Tcp


class Mesh(_Table):
    """A whole mesh file, free of contradictions.

    ``connection_age_secs`` bounds how long a sidecar keeps a connection to another: certificates are looked at when one opens.
    """

    trust_domain: Annotated[str, AfterValidator(_trust_domain)]
    peers: Annotated[dict[NodeId, Peer], Field(min_length=1)]
    flows: tuple[Flow, ...] = ()
    telemetry: Telemetry | None = None
    connection_age_secs: Annotated[int, Field(ge=1, le=MAX_CONNECTION_AGE_SECS)] = 3600

    def identity(self, node: str) -> PeerId:
        """Return the SPIFFE identity of *node*."""
        return PeerId(self.trust_domain, node)

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
        return tuple(sorted(flow.caller for flow in self.flows if flow.callee == node))

    def callees(self, node: str) -> tuple[str, ...]:
        """Return whom *node* may call, sorted."""
        return tuple(sorted(flow.callee for flow in self.flows if flow.caller == node))


def parse_mesh(table: Mapping[str, Any]) -> Mesh:
    """Return the mesh that *table*, a parsed TOML document, describes.

    Raises:
        MeshError: Wrong keys or values (all of them), or contradictions (all of them).
    """
    # A TOML array is a list; frozen values hold tuples.
    flows = table.get("flows")
    try:
        mesh = Mesh.model_validate({**table, "flows": tuple(flows)} if isinstance(flows, list) else dict(table))
    except pydantic.ValidationError as error:
        raise MeshError(tuple(_line(found) for found in error.errors(include_url=False))) from None
    if problems := tuple(_contradictions(mesh)):
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


def _line(found: Any) -> str:
    place = ""
    for part in found["loc"]:
        if part != "[key]":
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    texts = {"extra_forbidden": "unknown key", "missing": "missing", "too_short": "at least one is needed"}
    texts["model_type"] = "a port, or a table with a port, is needed" if ".egress." in place else "a table is needed"
    texts["string_pattern_mismatch"] = "must not be empty" if place.endswith("why") else "not the name of a Python module"
    return f"{place or 'mesh'}: {texts.get(found['type'], found['msg'].removeprefix('Value error, '))}"


def _contradictions(mesh: Mesh) -> Iterator[str]:
    known = ", ".join(sorted(mesh.peers))
    allowed: set[tuple[str, str]] = set()
    for index, flow in enumerate(mesh.flows):
        place, pair = f"flows[{index}]", (flow.caller, flow.callee)
        for key, name in (("from", flow.caller), ("to", flow.callee)):
            if name not in mesh.peers:
                yield f"{place}.{key}: no peer is called {name!r}; there are: {known}"
        if flow.caller == flow.callee:
            yield f"{place}: {flow.caller} calls itself; a peer runs its own workflows without the mesh"
        if pair in allowed:
            yield f"{place}: {flow} is there already"
        allowed.add(pair)
        if flow.caller in mesh.peers and flow.callee not in mesh.peers[flow.caller].egress:
            yield f"peers.{flow.caller}.egress: no port for {flow.callee}, which {place} lets it call"
    for node, peer in mesh.peers.items():
        for callee in peer.egress:
            if (node, callee) not in allowed:
                yield f"peers.{node}.egress.{callee}: no flow lets {node} call {callee}"
    yield from _shared_addresses(mesh)


def _shared_addresses(mesh: Mesh) -> Iterator[str]:
    dialled = Counter(str(peer.sidecar) for peer in mesh.peers.values())
    for shared in (shared for shared, times in dialled.items() if times > 1):
        nodes = (f"peers.{node}.sidecar" for node, peer in mesh.peers.items() if str(peer.sidecar) == shared)
        yield f"{', '.join(nodes)}: {shared} is given to more than one"
    taken: dict[tuple[str, str], str] = {}
    for node, peer in mesh.peers.items():
        # Nodes whose sidecars are dialled at one host, or on loopback, share a machine, and so its ports.
        machine = "" if peer.sidecar.is_loopback else peer.sidecar.host
        places: list[tuple[str, Address]] = [(f"peers.{node}.{'bind' if peer.bind else 'sidecar'}", peer.ingress_bind)]
        places.append((f"peers.{node}.listen", peer.listen))
        places += [(f"peers.{node}.egress.{name}", TcpAddress("127.0.0.1", way.port)) for name, way in peer.egress.items()]
        for place, address in places:
            # By port alone: 0.0.0.0 takes it on every address, and two loopback addresses are seldom meant.
            key = (machine, address.path if isinstance(address, UnixAddress) else str(address.port))
            first = taken.setdefault(key, place)
            same_sidecar = first.endswith(".sidecar") and place.endswith(".sidecar")
            if first != place and not same_sidecar:
                yield f"{place}: {address} is taken by {first}"
