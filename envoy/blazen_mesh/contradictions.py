"""What the tables of a mesh file say against each other, one line each, beginning with the place in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from blazen_mesh.address import Address, TcpAddress, UnixAddress
from blazen_mesh.mesh_tables import UNCLASSED, Flow
from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from blazen_mesh.mesh import Mesh

__all__ = ["contradictions"]


def contradictions(mesh: Mesh) -> Iterator[str]:
    """Yield what is wrong with *mesh*; nothing when it is sound."""
    yield from _regions(mesh)
    yield from _data(mesh)
    yield from _flows(mesh)
    yield from _workflows_twice(mesh)
    yield from _ports(mesh)
    yield from _shared_addresses(mesh)


def _twice(names: tuple[str, ...]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _regions(mesh: Mesh) -> Iterator[str]:
    for name in _twice(mesh.regions):
        yield f"regions: {name} is there twice"
    for node, peer in mesh.peers.items():
        if peer.region is None:
            if mesh.regions:
                yield f"peers.{node}.region: missing; say one of {', '.join(mesh.regions)}"
        elif not mesh.regions:
            yield f"peers.{node}.region: this mesh has no regions; list them in regions = [...], or leave it out"
        elif peer.region not in mesh.regions:
            yield f"peers.{node}.region: no region is called {peer.region!r}; there are: {', '.join(mesh.regions)}"
        try:
            mesh.identity(node)
        except ValidationError as error:
            yield f"peers.{node}: {error}"


def _data(mesh: Mesh) -> Iterator[str]:
    for name in _twice(tuple(each.name for each in mesh.data)):
        yield f"data: {name} is there twice"
    for index, each in enumerate(mesh.data):
        place = f"data[{index}].regions"
        if mesh.regions and not each.regions:
            yield f"{place}: say where {each.name} data may be: {', '.join(mesh.regions)}"
        if not mesh.regions and each.regions:
            yield f"{place}: this mesh has no regions; list them in regions = [...], or leave it out"
        for region in each.regions:
            if mesh.regions and region not in mesh.regions:
                yield f"{place}: no region is called {region!r}; there are: {', '.join(mesh.regions)}"
        for region in _twice(each.regions):
            yield f"{place}: {region} is there twice"


def _flows(mesh: Mesh) -> Iterator[str]:
    known, classes = ", ".join(sorted(mesh.peers)), ", ".join(each.name for each in mesh.data)
    for index, flow in enumerate(mesh.flows):
        place = f"flows[{index}]"
        for key, name in (("from", flow.caller), ("to", flow.callee)):
            if name not in mesh.peers:
                yield f"{place}.{key}: no peer is called {name!r}; there are: {known}"
        if flow.caller == flow.callee:
            yield f"{place}: {flow.caller} calls itself; a peer runs its own workflows without the mesh"
        if mesh.data and not flow.data:
            yield f"{place}.data: say which data may flow: {classes}"
        if flow.data and not mesh.data:
            yield f"{place}.data: this mesh has no data classes; declare them under [[data]], or leave it out"
        for name in flow.data:
            if mesh.data and name not in mesh.classes:
                yield f"{place}.data: no data class is called {name!r}; there are: {classes}"
            yield from _outside(mesh, place, flow, name)
        for name in _twice(flow.data):
            yield f"{place}.data: {name} is there twice"
        for name in _twice(flow.workflows):
            yield f"{place}.workflows: {name} is there twice"


def _outside(mesh: Mesh, place: str, flow: Flow, name: str) -> Iterator[str]:
    regions = mesh.classes[name].regions if name in mesh.classes else ()
    for node in (flow.caller, flow.callee):
        region = mesh.peers[node].region if node in mesh.peers else None
        if regions and region and region not in regions:
            yield f"{place}.data: {name} data may be in {', '.join(regions)} only, and {node} is in {region}"


def _workflows_twice(mesh: Mesh) -> Iterator[str]:
    first: dict[tuple[str, str, str, str], int] = {}
    for index, flow in enumerate(mesh.flows):
        for workflow in dict.fromkeys(flow.workflows):
            for name in dict.fromkeys(flow.data or (UNCLASSED,)):
                before = first.setdefault((flow.caller, flow.callee, workflow, name), index)
                if before != index:
                    data = f" with {name} data" if name else ""
                    yield f"flows[{index}]: {flow} {workflow}{data} is allowed by flows[{before}] already"


def _ports(mesh: Mesh) -> Iterator[str]:
    needed: dict[tuple[str, str], dict[str, int]] = {}
    for index, flow in enumerate(mesh.flows):
        for name in flow.data or (UNCLASSED,):
            needed.setdefault((flow.caller, flow.callee), {}).setdefault(name, index)
    for (caller, callee), classes in needed.items():
        given = mesh.peers[caller].egress.get(callee) if caller in mesh.peers else {}
        if given is None:
            yield f"peers.{caller}.egress: no port for {callee}, which flows[{min(classes.values())}] lets it call"
        elif given.keys() == {UNCLASSED} and UNCLASSED not in classes:
            like = ", ".join(f"{name} = PORT" for name in classes)
            yield f"peers.{caller}.egress.{callee}: give each data class a port of its own, like {{ {like} }}"
        elif caller in mesh.peers:
            for name, index in classes.items():
                if name and name not in given:
                    yield f"peers.{caller}.egress.{callee}: no port for {name} data, which flows[{index}] lets flow"
    for node, peer in mesh.peers.items():
        for callee, given in peer.egress.items():
            place = f"peers.{node}.egress.{callee}"
            if (node, callee) not in needed:
                yield f"{place}: no flow lets {node} call {callee}"
                continue
            for name in given:
                if not name or name in needed[node, callee]:
                    continue
                if not mesh.data:
                    yield f"{place}.{name}: this mesh has no data classes; give one port, or declare them under [[data]]"
                elif name not in mesh.classes:
                    yield f"{place}.{name}: no data class is called {name!r}; there are: {', '.join(mesh.classes)}"
                else:
                    yield f"{place}.{name}: no flow lets {node} send {callee} {name} data"


def _shared_addresses(mesh: Mesh) -> Iterator[str]:
    dialled = Counter(str(peer.sidecar) for peer in mesh.peers.values())
    for shared in (shared for shared, times in dialled.items() if times > 1):
        nodes = (f"peers.{node}.sidecar" for node, peer in mesh.peers.items() if str(peer.sidecar) == shared)
        yield f"{', '.join(nodes)}: {shared} is given to more than one"
    taken: dict[tuple[str, str], tuple[int, str]] = {}
    entries = (entry for node in mesh.peers for entry in _addresses(mesh, node))
    for number, (machine, place, address) in enumerate(entries):
        # By port alone: 0.0.0.0 takes it on every address, and two loopback addresses are seldom meant.
        key = (machine, address.path if isinstance(address, UnixAddress) else str(address.port))
        first, owner = taken.setdefault(key, (number, place))
        same_sidecar = owner.endswith(".sidecar") and place.endswith(".sidecar")
        if first != number and not same_sidecar:
            yield f"{place}: {address} is taken by {owner}"


def _addresses(mesh: Mesh, node: str) -> Iterator[tuple[str, str, Address]]:
    """Yield all that *node* listens on: the machine, the place in the file, the address."""
    peer = mesh.peers[node]
    # Nodes whose sidecars are dialled at one host, or on loopback, share a machine, and so its ports.
    machine = "" if peer.sidecar.is_loopback else peer.sidecar.host
    yield machine, f"peers.{node}.{'bind' if peer.bind else 'sidecar'}", peer.ingress_bind
    for index, address in enumerate(peer.listens):
        yield machine, f"peers.{node}.listen" + (f"[{index}]" if len(peer.listens) > 1 else ""), address
    for callee, ways in peer.egress.items():
        for name, way in ways.items():
            yield machine, f"peers.{node}.egress.{callee}" + (f".{name}" if name else ""), TcpAddress("127.0.0.1", way.port)
