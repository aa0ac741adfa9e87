"""Who may call which workflow on whom, with data of which class: the one evaluator of it.

``blazen-mesh`` compiles the same flows into the sidecars; ``explain``, the server and the tests ask here. Default deny: what no
flow names is refused, and nothing here can say "everything". Pure: today's date is an argument (:meth:`Policy.on`).

Three places look at a call, in this order, each knowing only what it can see:

    egress    caller, callee, data class      the caller's own sidecar: one loopback port for each allowed pair and class
    ingress   the same, proven, and the method  the callee's sidecar: the certificate's name, the stamp of the remote egress
    server    the same, and the workflow      the peer: the name in the payload, and the class that the workflow declares
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Final, Literal, TypeAlias

from blazen_peer.errors import ValidationError
from blazen_peer.flows import DataClass, Flow, check_calls_per_sec, read_document, region_of, write_document
from blazen_peer.identity import PeerId

__all__ = ["INVOKE", "METHODS", "DataClass", "Decision", "Flow", "Place", "Policy"]

Place: TypeAlias = Literal["egress", "ingress", "server"]

INVOKE: Final = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
METHODS: Final = (
    INVOKE,
    "/blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents",
    "/blazen.peer.v1.BlazenPeer/DerefSessionRef",
    "/blazen.peer.v1.BlazenPeer/ReleaseSessionRef",
    "/blazen_peer.control.v1.PeerControl/Describe",
    "/blazen_peer.control.v1.PeerControl/Cancel",
    "/blazen_peer.control.v1.PeerControl/Attach",
    "/blazen_peer.control.v1.PeerControl/DerefChunks",
    "/blazen_peer.control.v1.PeerControl/ListRefs",
    "/blazen_peer.control.v1.PeerControl/Lane",
    "/blazen_peer.control.v1.PeerControl/ParentEnded",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
)
"""The gRPC paths that a flow opens. Reflection is not among them: it is for the peer's own machine."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one place says of a call.

    Attributes:
        place: Who decided; of a call that is allowed, the last one asked.
        reason: One line.
        fix: What would have to change, one line; empty when allowed.
        flow: What allows it; None when refused.
    """

    allowed: bool
    place: Place
    reason: str
    fix: str = ""
    flow: Flow | None = None


@dataclass(frozen=True)
class Policy:
    """The flows of a mesh, or of one of its nodes, and its data classes, strictest first.

    ``until`` is not looked at when a call is decided: ask ``policy.on(today)``.

    Attributes:
        calls_per_sec: What a peer takes from one caller by lanes, in one burst or spread; None: as much as comes. Calls that
            come alone are counted by the ingress.

    Raises:
        ValidationError: A class comes twice or is unknown, a flow lacks classes or has one that may not be in both regions,
            the rate is not 1 to 10,000,000.
    """

    classes: tuple[DataClass, ...] = ()
    flows: tuple[Flow, ...] = ()
    calls_per_sec: int | None = None

    def __post_init__(self) -> None:
        if self.calls_per_sec is not None:
            check_calls_per_sec(self.calls_per_sec)
        for problem in self._contradictions():
            raise ValidationError(problem)

    def stricter_or_equal(self, a: str, than: str) -> bool:
        """Return whether class *a* is at least as strict as class *than*; False when either is unknown."""
        order = self._order
        return a in order and than in order and order[a] <= order[than]

    def on(self, day: date) -> Policy:
        """Return the policy of *day* (UTC): without the flows whose last day is over."""
        if all(flow.until is None or day <= flow.until for flow in self.flows):
            return self
        return replace(self, flows=tuple(flow for flow in self.flows if flow.until is None or day <= flow.until))

    def of(self, peer: PeerId) -> Policy:
        """Return the flows to and from *peer*, every data class and the rate: all that its node needs to know."""
        return replace(self, flows=tuple(flow for flow in self.flows if peer in (flow.caller, flow.callee)))

    def at_egress(self, caller: PeerId, callee: PeerId, data_class: str | None) -> Decision:
        """Say whether *caller*'s sidecar has a port that leads to *callee* and stamps *data_class* (None: stamps nothing)."""
        return self._pair("egress", caller, callee, () if data_class is None else (data_class,))

    def at_ingress(self, caller: PeerId, callee: PeerId, stamps: Sequence[str], method: str) -> Decision:
        """Say whether *callee*'s sidecar lets *method* in from *caller*.

        Args:
            caller: As its certificate proves.
            stamps: Every value of the stamp that came. Without data classes they are taken away, and do not count.
            method: The path of the call, such as ``/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow``.
        """
        found = self._pair("ingress", caller, callee, stamps if self.classes else ())
        if found.allowed and method not in METHODS:
            fix = "call a method of the peer's own services; reflection and others answer on the peer's own machine only"
            return Decision(False, "ingress", f"no flow opens the method {method[:200]!r}", fix)
        return found

    def at_server(
        self,
        caller: PeerId,
        callee: PeerId,
        stamps: Sequence[str],
        workflow: str,
        *,
        laxest: str | None,
        said_workflow: str | None = None,
        run_class: str | None = None,
    ) -> Decision:
        """Say whether the peer *callee* may run *workflow* for *caller*.

        Args:
            stamps: Every value of the stamp that came beside the sidecar's proof.
            workflow: The name in the payload.
            laxest: The laxest class that the workflow declares; None (it declares nothing) means the strictest alone.
            said_workflow: The name in the call's metadata, if any.
            run_class: The class of the run that makes the call, as the client says, if it does.
        """
        found = self._pair("server", caller, callee, stamps)
        if not found.allowed:
            return found
        if said_workflow is not None and said_workflow != workflow:
            reason = f"the metadata names the workflow {said_workflow[:70]!r}, the payload {workflow[:70]!r}"
            return Decision(False, "server", reason, "send one name")
        stamp = stamps[0] if stamps else None
        pair = self._flows(caller, callee)
        flows = [flow for flow in pair if workflow in flow.workflows]
        if not flows:
            who = self._pair_name(caller, callee)
            may = _words(name for flow in pair for name in flow.workflows)
            reason = f"{who}: no flow names the workflow {workflow[:70]!r}; the flows name {may}"
            return Decision(False, "server", reason, f"add {workflow[:70]!r} to the workflows of the flow {who}")
        by = next((flow for flow in flows if stamp is None or stamp in flow.classes), None)
        if by is None:
            who, may = self._pair_name(caller, callee), self._class_words(flows)
            reason = f"{who}: the workflow {workflow[:70]!r} may be called with {may} data, not with {stamp}"
            return Decision(
                False, "server", reason, f"add {stamp!r} to the data of the flow {who} that names {workflow[:70]!r}"
            )
        if refused := self._declared(workflow, stamp, laxest) or self._said(stamp, run_class):
            return refused
        return Decision(True, "server", f"allowed by the flow {by}" + (f": {by.why}" if by.why else ""), flow=by)

    def decide(
        self,
        caller: PeerId,
        callee: PeerId,
        workflow: str,
        data_class: str | None,
        *,
        laxest: str | None,
        method: str = INVOKE,
        said_workflow: str | None = None,
        run_class: str | None = None,
    ) -> Decision:
        """Ask the three places in order about a call through both sidecars; return the first refusal, or the server's yes."""
        stamps = () if data_class is None else (data_class,)
        for found in (self.at_egress(caller, callee, data_class), self.at_ingress(caller, callee, stamps, method)):
            if not found.allowed:
                return found
        return self.at_server(caller, callee, stamps, workflow, laxest=laxest, said_workflow=said_workflow, run_class=run_class)

    def to_json(self) -> str:
        """Return the policy as JSON; equal policies give equal text."""
        return write_document(self.classes, self.flows, self.calls_per_sec)

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Return the policy in *text*.

        Raises:
            ValidationError: It is not what :meth:`to_json` gives; one line, with its place.
        """
        try:
            return cls(*read_document(text))
        except ValidationError as error:
            raise ValidationError(f"policy: {error}") from None

    @cached_property
    def _order(self) -> dict[str, int]:
        return {each.name: place for place, each in enumerate(self.classes)}

    @cached_property
    def _by_pair(self) -> dict[tuple[PeerId, PeerId], tuple[Flow, ...]]:
        found: dict[tuple[PeerId, PeerId], tuple[Flow, ...]] = {}
        for flow in self.flows:
            found[flow.caller, flow.callee] = (*found.get((flow.caller, flow.callee), ()), flow)
        return found

    @cached_property
    def _peers(self) -> frozenset[PeerId]:
        return frozenset(peer for flow in self.flows for peer in (flow.caller, flow.callee))

    def _flows(self, caller: PeerId, callee: PeerId) -> tuple[Flow, ...]:
        return self._by_pair.get((caller, callee), ())

    def _name(self, peer: PeerId) -> str:
        # The whole identity where a flow has that node id in another trust domain.
        return str(peer) if any(one.node_id == peer.node_id and one != peer for one in self._peers) else peer.node_id

    def _pair_name(self, caller: PeerId, callee: PeerId) -> str:
        return f"{self._name(caller)} -> {self._name(callee)}"

    def _class_words(self, flows: Iterable[Flow]) -> str:
        names = {name for flow in flows for name in flow.classes}
        return ", ".join(each.name for each in self.classes if each.name in names)

    def _pair(self, place: Place, caller: PeerId, callee: PeerId, stamps: Sequence[str]) -> Decision:
        """Decide what every place can see: the two peers, and the stamp."""
        flows = self._flows(caller, callee)
        if not self.classes:
            if stamps:
                reason = f"the data class {stamps[0][:70]!r} is said, and this mesh has none"
                return Decision(False, place, reason, "declare it under [[data]], or leave it out")
        elif len(stamps) != 1:
            reason = f"one data class must be said, and {len(stamps)} are"
            return Decision(False, place, reason, f"say one of {', '.join(self._order)}: each has a port of its own")
        elif stamps[0] not in self._order:
            reason = f"no data class is called {stamps[0][:70]!r}"
            return Decision(False, place, reason, f"declare it under [[data]], or say one of {', '.join(self._order)}")
        elif outside := self._outside(stamps[0], caller, callee):
            return Decision(False, place, *outside)
        if not flows:
            reason = f"no flow lets {self._name(caller)} call {self._name(callee)}"
            who = self._pair_name(caller, callee)
            return Decision(False, place, reason, f"add a flow {who} that names the workflow and says why")
        by = next((flow for flow in flows if not stamps or stamps[0] in flow.classes), None)
        if by is None:
            who = self._pair_name(caller, callee)
            reason = f"{who}: {self._class_words(flows)} data may flow there, {stamps[0]} may not"
            return Decision(False, place, reason, f"add {stamps[0]!r} to the data of the flow {who}")
        return Decision(True, place, f"allowed by the flow {by}", flow=by)

    def _outside(self, name: str, caller: PeerId, callee: PeerId) -> tuple[str, str] | None:
        regions = self.classes[self._order[name]].regions
        for peer in (caller, callee):
            if regions and region_of(peer) not in regions:
                where = ", ".join(regions)
                reason = f"{name} data may be in {where} only, and {self._name(peer)} is in {region_of(peer)}"
                return reason, f"use a peer in {where}; no flow can allow it while [[data]] {name} has these regions"
        return None

    def _declared(self, workflow: str, stamp: str | None, laxest: str | None) -> Decision | None:
        if stamp is None:
            if laxest is None:
                return None
            reason = f"the workflow {workflow[:70]!r} declares the data class {laxest!r}, and this mesh has none"
            return Decision(False, "server", reason, "declare it under [[data]], or leave it out of the workflow")
        if laxest is not None and laxest not in self._order:
            reason = f"the workflow {workflow[:70]!r} declares the data class {laxest[:70]!r}, which this mesh does not have"
            return Decision(False, "server", reason, f"declare one of {', '.join(self._order)}")
        bound = self.classes[0].name if laxest is None else laxest
        if self.stricter_or_equal(stamp, bound):
            return None
        says = f"declares {bound!r}" if laxest is not None else f"declares no data class, so {bound!r} alone is taken"
        reason = f"the workflow {workflow[:70]!r} {says}; {stamp} is laxer"
        return Decision(False, "server", reason, f"call it with {bound} data, or give the workflow data_class={stamp!r}")

    def _said(self, stamp: str | None, run_class: str | None) -> Decision | None:
        if run_class is None:
            return None
        if stamp is None:
            reason = f"the call comes from a run with {run_class[:70]!r} data, and this mesh has no data classes"
            return Decision(False, "server", reason, "declare it under [[data]], or leave it out")
        if self.stricter_or_equal(stamp, run_class):
            return None
        if run_class not in self._order:
            reason = f"the call comes from a run with {run_class[:70]!r} data, a class that this mesh does not have"
            return Decision(False, "server", reason, f"declare one of {', '.join(self._order)}")
        reason = f"the call comes from a run with {run_class} data, through a port that stamps {stamp}, which is laxer"
        return Decision(False, "server", reason, f"call through the port that stamps {run_class}")

    def _contradictions(self) -> Iterator[str]:
        if len(self._order) < len(self.classes):
            yield "a data class is there twice"
        if len({bool(each.regions) for each in self.classes}) > 1:
            yield "some data classes have regions and some have none: all must, or none"
        for flow in self.flows:
            if bool(flow.classes) != bool(self.classes):
                yield f"{flow}: " + ("no data classes" if self.classes else "data classes, in a policy that declares none")
            for name in sorted(flow.classes):
                if name not in self._order:
                    yield f"{flow}: no data class is called {name[:70]!r}"
                elif outside := self._outside(name, flow.caller, flow.callee):
                    yield f"{flow}: {outside[0]}"


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
