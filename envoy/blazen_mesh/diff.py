"""What a change of the mesh file lets happen that was refused before, what it refuses now, and what it merely moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from blazen_mesh.mesh import Mesh
from blazen_mesh.mesh_tables import UNCLASSED

__all__ = ["Change", "diff"]

FOREVER: Final = date.max
Kind: TypeAlias = Literal["widened", "narrowed", "moved"]
Line: TypeAlias = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Change:
    """Lines for people: what the new file allows more, what it allows less, and what is only elsewhere or said otherwise."""

    widened: tuple[str, ...]
    narrowed: tuple[str, ...]
    moved: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``"widened"`` as soon as anything did; else ``"narrowed"``, ``"moved"`` or ``"same"``."""
        return next((name for name in ("widened", "narrowed", "moved") if getattr(self, name)), "same")

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        lines = {"widened": list(self.widened), "narrowed": list(self.narrowed), "moved": list(self.moved)}
        return {"verdict": self.verdict, **lines}


def diff(old: Mesh, new: Mesh, day: date) -> Change:
    """Compare what *old* and *new* allow on *day* (UTC) and later; what ended before counts for nothing."""
    sources = (_permissions(old, new, day), _identities(old, new), _classes(old, new), _safeguards(old, new), _places(old, new))
    lines: dict[Kind, list[str]] = {"widened": [], "narrowed": [], "moved": []}
    for source in sources:
        for kind, line in source:
            lines[kind].append(line)
    return Change(tuple(lines["widened"]), tuple(lines["narrowed"]), tuple(lines["moved"]))


def _all(kind: Kind, lines: Iterable[str]) -> Iterator[Line]:
    return ((kind, line) for line in lines)


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# --- what may be called ---


class _Permission(NamedTuple):
    """The smallest thing that a flow allows. Regions are in it: a peer that moves elsewhere is another one."""

    caller: str
    callee: str
    workflow: str
    data_class: str


class _Terms(NamedTuple):
    until: date
    why: str


def _permissions(old: Mesh, new: Mesh, day: date) -> Iterator[Line]:
    before, after = _allowed(old.on(day)), _allowed(new.on(day))
    both = before.keys() & after.keys()
    later = {key for key in both if after[key].until > before[key].until}
    earlier = {key for key in both if after[key].until < before[key].until}
    reworded = {key for key in both - later - earlier if after[key].why != before[key].why}
    yield from _all("widened", _sentences("may now call", after, after.keys() - before.keys()))
    yield from _all("widened", _sentences("may for longer call", after, later))
    yield from _all("narrowed", _sentences("may no longer call", before, before.keys() - after.keys()))
    yield from _all("narrowed", _sentences("may for a shorter time call", after, earlier))
    yield from _all("moved", _sentences("may as before, for another reason, call", after, reworded))
    for mesh, other, word in ((old, new, "is gone"), (new, old, "is new, and over")):
        in_force = mesh.on(day).flows
        for flow in mesh.flows:
            if flow not in in_force and flow not in other.flows:
                yield "moved", f"the flow {flow} that ended on {flow.until} {word}"


def _allowed(mesh: Mesh) -> dict[_Permission, _Terms]:
    return {
        _Permission(_who(mesh, flow.caller), _who(mesh, flow.callee), workflow, name): _Terms(
            flow.until or FOREVER, flow.reason
        )
        for flow in mesh.flows
        for workflow in flow.workflows
        for name in flow.data or (UNCLASSED,)
    }


def _who(mesh: Mesh, node: str) -> str:
    region = mesh.peers[node].region
    return f"{node} ({region})" if region else node


def _sentences(verb: str, terms: Mapping[_Permission, _Terms], keys: Collection[_Permission]) -> Iterator[str]:
    """Yield one sentence for all that two peers may do with the same data, end and reason: not one for each permission."""
    classes: dict[tuple[str, str, str, _Terms], list[str]] = {}
    for key in sorted(keys):
        classes.setdefault((key.caller, key.callee, key.workflow, terms[key]), []).append(key.data_class)
    workflows: dict[tuple[str, str, tuple[str, ...], _Terms], list[str]] = {}
    for (caller, callee, workflow, said), names in classes.items():
        workflows.setdefault((caller, callee, tuple(names), said), []).append(workflow)
    for (caller, callee, data, said), called in workflows.items():
        with_data = f" with {_and(data)} data" if data != (UNCLASSED,) else ""
        until = f" until {said.until}" if said.until != FOREVER else ""
        yield f"{caller} {verb} {_and(called)} on {callee}{with_data}{until}: {said.why}"


# --- who is who, where data may be, and which is stricter ---


def _identities(old: Mesh, new: Mesh) -> Iterator[Line]:
    if old.trust_domain != new.trust_domain:
        yield "widened", f"the trust domain is {new.trust_domain}, not {old.trust_domain}: every identity is another one"
    for node in sorted(old.peers.keys() & new.peers.keys()):
        before, after = old.peers[node].region, new.peers[node].region
        if before != after:
            yield "moved", f"{node} is in {after or 'no region'}, not in {before or 'no region'}: it is another identity"


def _classes(old: Mesh, new: Mesh) -> Iterator[Line]:
    both = [name for name in new.classes if name in old.classes]
    for name in both:
        before, after = old.classes[name].regions, new.classes[name].regions
        if before and not after:
            yield "widened", f"{name} data may be anywhere, not in {_and(before)} alone"
        elif after and not before:
            yield "narrowed", f"{name} data may be in {_and(after)} alone"
        elif more := [region for region in after if region not in before]:
            yield "widened", f"{name} data may be in {_and(more)} too"
        if after and (less := [region for region in before if region not in after]):
            yield "narrowed", f"{name} data may no longer be in {_and(less)}"
        if old.classes[name].reason != new.classes[name].reason:
            yield "moved", f"{name} data is described otherwise: {new.classes[name].reason}"
    order = list(old.classes)
    for stricter, laxer in combinations(both, 2):
        if order.index(stricter) > order.index(laxer):
            yield (
                "widened",
                f"{stricter} is stricter than {laxer} now: workflows that declare {laxer} take {stricter} data too",
            )
    was, now = next(iter(old.classes), None), next(iter(new.classes), None)
    if now != was and now in old.classes:
        yield "widened", f"{now} is the strictest data class now: workflows that declare none take it"
    elif now != was and was in new.classes:
        yield "narrowed", f"{now} is the strictest data class now: workflows that declare none take no {was} data any more"
    yield from _all("moved", (f"the data class {name} is new" for name in new.classes if name not in old.classes))
    yield from _all("moved", (f"the data class {name} is gone" for name in old.classes if name not in new.classes))


# --- what keeps others out ---


def _safeguards(old: Mesh, new: Mesh) -> Iterator[Line]:
    if old.crl and not new.crl:
        yield "widened", "sidecars no longer look at revocation lists: a stolen certificate is good until it ends"
    if new.crl and not old.crl:
        yield "narrowed", "sidecars look at revocation lists"
    numbers = (
        (
            "a revoked node keeps an open connection for up to {} s",
            old.connection_age_secs,
            new.connection_age_secs,
        ),
        ("one caller may make {} calls a second", old.calls_per_sec, new.calls_per_sec),
    )
    for words, before, after in numbers:
        if before != after:
            yield "widened" if after > before else "narrowed", f"{words.format(after)}, not {before}"
    for node in sorted(new.peers):
        injects, did = _injects(new, node), _injects(old, node)
        for way in sorted(injects.keys() - did.keys()):
            yield "widened", f"every process that reaches {injects[way]} is {node}: its way to {way} injects the token"
        for way in sorted(did.keys() - injects.keys()):
            yield "narrowed", f"the way of {node} to {way} no longer injects the token"
        opened, was = _open_past_sidecar(new, node), _open_past_sidecar(old, node)
        if opened and not was:
            yield "widened", f"local programs that hold the token may call {node} past its sidecar"
        if was and not opened:
            yield "narrowed", f"local programs may no longer call {node} past its sidecar"


def _injects(mesh: Mesh, node: str) -> dict[str, str]:
    ways = mesh.ways(node) if node in mesh.peers else ()
    return {way.name.removeprefix("egress "): way.address for way in ways if way.inject_token}


def _open_past_sidecar(mesh: Mesh, node: str) -> bool:
    run = mesh.peers[node].run if node in mesh.peers else None
    return run is not None and not run.require_identity


# --- where things are ---


def _places(old: Mesh, new: Mesh) -> Iterator[Line]:
    yield from _all("moved", (f"the peer {node} is new" for node in sorted(new.peers.keys() - old.peers.keys())))
    yield from _all("moved", (f"the peer {node} is gone" for node in sorted(old.peers.keys() - new.peers.keys())))
    for node in sorted(old.peers.keys() & new.peers.keys()):
        before, after = dict(_addresses(old, node)), dict(_addresses(new, node))
        for what, address in after.items():
            if before.get(what, address) != address:
                yield "moved", f"{node}: {what} is {address}, not {before[what]}"
        if old.peers[node].run != new.peers[node].run:
            yield "moved", f"{node}: `up` starts its peer otherwise"
    if old.telemetry != new.telemetry:
        yield "moved", f"spans go to {new.telemetry.otlp if new.telemetry else 'nobody'}"


def _addresses(mesh: Mesh, node: str) -> Iterator[tuple[str, str]]:
    peer = mesh.peers[node]
    yield "its sidecar", str(peer.sidecar)
    yield "its ingress", str(peer.ingress_bind)
    yield "its peer", _and(str(address) for address in peer.listens)
    for way in mesh.ways(node):
        yield f"its way to {way.name.removeprefix('egress ')}", way.address
