"""Whether a call is allowed, by which flow, at which of the three places it is refused, and what would have to change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from blazen_mesh.mesh import Mesh
from blazen_mesh.mesh_tables import UNCLASSED
from blazen_peer.errors import ValidationError
from blazen_peer.policy import INVOKE, METHODS, Decision, Flow, Policy

__all__ = ["Call", "Explanation", "explain", "method_path"]


@dataclass(frozen=True, slots=True)
class Call:
    """The call that is asked about.

    Attributes:
        declares: The laxest class that the workflow declares; None: as lax as the call needs.
        method: Its gRPC path.
    """

    caller: str
    callee: str
    workflow: str
    data_class: str | None
    declares: str | None = None
    method: str = INVOKE


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of *call*.

    Attributes:
        decision: The first refusal, or the server's yes.
        places: What each place says by itself, in their order.
        where: The address of each place: the egress port (empty when there is none), the ingress, the peer.
        flow: Where the flow that allows it stands in the file; None when refused.
        assumes: What the mesh file cannot know and the yes depends on; empty when nothing.
        changes: What would have to change, a line each, with its place in the file; empty when allowed.
        instead: Callees that the caller may call this workflow on, with this data, when the call is refused.
    """

    call: Call
    decision: Decision
    places: tuple[Decision, ...]
    where: tuple[str, ...]
    flow: int | None
    assumes: str
    changes: tuple[str, ...]
    instead: tuple[str, ...]

    def to_object(self) -> dict[str, Any]:
        """Return it for JSON."""
        call, flow = self.call, self.decision.flow
        return {
            "allowed": self.decision.allowed,
            "place": self.decision.place,
            "reason": self.decision.reason,
            "changes": list(self.changes),
            "call": {
                "from": call.caller,
                "to": call.callee,
                "workflow": call.workflow,
                "data": call.data_class,
                "declares": call.declares,
                "method": call.method,
            },
            "flow": flow and {"index": self.flow, "why": flow.why, "until": flow.until.isoformat() if flow.until else None},
            "places": [
                {"place": one.place, "where": where or None, "allowed": one.allowed, "reason": one.reason}
                for one, where in zip(self.places, self.where, strict=True)
            ],
            "assumes": self.assumes or None,
            "instead": list(self.instead),
        }


def method_path(name: str) -> str:
    """Return the gRPC path of *name*: a path as it is, or the method of that name among those that flows open."""
    return next((path for path in METHODS if path.endswith(f"/{name}")), name)


def explain(mesh: Mesh, call: Call, day: date) -> Explanation:
    """Ask the evaluator about *call* on *day* (UTC).

    Raises:
        ValidationError: The mesh has no such peer.
    """
    for node in (call.caller, call.callee):
        if node not in mesh.peers:
            raise ValidationError(f"no peer is called {node!r}; there are: {', '.join(sorted(mesh.peers))}")
    whole = mesh.policy()
    policy = whole.on(day)
    decision = _decide(mesh, policy, call)
    changes: tuple[str, ...] = ()
    if not decision.allowed:
        if (before := _decide(mesh, whole, call)).flow:
            number = whole.flows.index(before.flow)
            reason = f"the flow that allowed it, flows[{number}] {before.flow}, ended on {before.flow.until}"
            changes = (f"give flows[{number}] a new `until`, and a reason for it",)
            decision = replace(decision, reason=reason, fix=changes[0])
        else:
            changes = tuple(_changes(mesh, policy, call, decision, day))
    return Explanation(
        call=call,
        decision=decision,
        places=tuple(_places(mesh, policy, call)),
        where=tuple(_where(mesh.on(day), call)),
        flow=whole.flows.index(decision.flow) if decision.flow else None,
        assumes=_assumes(mesh, call) if decision.allowed else "",
        changes=changes,
        instead=() if decision.allowed else tuple(_instead(mesh, policy, call)),
    )


def _laxest(call: Call) -> str | None:
    return call.declares if call.declares is not None else call.data_class


def _decide(mesh: Mesh, policy: Policy, call: Call) -> Decision:
    caller, callee = mesh.identity(call.caller), mesh.identity(call.callee)
    return policy.decide(caller, callee, call.workflow, call.data_class, laxest=_laxest(call), method=call.method)


def _places(mesh: Mesh, policy: Policy, call: Call) -> Iterator[Decision]:
    caller, callee = mesh.identity(call.caller), mesh.identity(call.callee)
    stamps = () if call.data_class is None else (call.data_class,)
    yield policy.at_egress(caller, callee, call.data_class)
    yield policy.at_ingress(caller, callee, stamps, call.method)
    yield policy.at_server(caller, callee, stamps, call.workflow, laxest=_laxest(call))


def _where(mesh: Mesh, call: Call) -> Iterator[str]:
    ways = [way for way in mesh.ways(call.caller) if (way.callee, way.data_class) == (call.callee, call.data_class)]
    yield ways[0].address if ways else ""
    callee = mesh.peers[call.callee]
    yield str(callee.sidecar)
    yield ", ".join(str(address) for address in callee.listens)


def _assumes(mesh: Mesh, call: Call) -> str:
    if call.data_class is None or call.declares is not None or call.data_class == next(iter(mesh.classes)):
        return ""
    return f"the workflow declares data_class={call.data_class!r} or laxer; one that declares nothing takes the strictest only"


def _changes(mesh: Mesh, policy: Policy, call: Call, decision: Decision, day: date) -> Iterator[str]:
    """Yield the smallest edits that allow the call: nothing else becomes allowed with it."""
    data = [] if call.data_class is None else [call.data_class]
    try:
        flow = Flow(mesh.identity(call.caller), mesh.identity(call.callee), frozenset({call.workflow}), frozenset(data))
        if decision.flow or not _decide(mesh, Policy(policy.classes, (*policy.flows, flow)), call).allowed:
            yield decision.fix
            return
    except ValidationError:  # a class outside its regions, a workflow's name that cannot be one: no flow helps
        yield decision.fix
        return
    for number, one in enumerate(mesh.flows):
        if (one.caller, one.callee) != (call.caller, call.callee) or (one.until and one.until < day):
            continue
        if one.workflows == (call.workflow,):
            yield f"flows[{number}].data: add {call.data_class!r}"
            break
        if list(one.data) == data:
            yield f"flows[{number}].workflows: add {call.workflow!r}"
            break
    else:
        keys = {"from": call.caller, "to": call.callee, "workflows": [call.workflow], **({"data": data} if data else {})}
        said = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items())
        yield f"add to [[flows]]: {said}, and why"
    if (call.data_class or UNCLASSED) not in mesh.peers[call.caller].egress.get(call.callee, {}):
        name = f"{call.callee}.{call.data_class}" if call.data_class else call.callee
        yield f"give peers.{call.caller}.egress.{name} a free port"


def _instead(mesh: Mesh, policy: Policy, call: Call) -> Iterator[str]:
    for node in sorted(mesh.peers):
        if _decide(mesh, policy, replace(call, callee=node)).allowed:
            yield node
