"""The whole visit: the nodes whose files are here, the hops that can be walked from here, and what the logs tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blazen_mesh.address import Address
from blazen_mesh.doctor.calls import check_health
from blazen_mesh.doctor.configuration import digest_of, examine_configuration
from blazen_mesh.doctor.findings import Finding, Names, Report
from blazen_mesh.doctor.hops import Hop, hops_of
from blazen_mesh.doctor.identity import Identity, examine_identity, span_text
from blazen_mesh.doctor.logs import Entry, Logs, Seen, read_log_file
from blazen_mesh.doctor.places import NodeFiles
from blazen_mesh.doctor.probing import Probing
from blazen_mesh.doctor.sidecar import examine_sidecar
from blazen_mesh.doctor.way import walk
from blazen_mesh.mesh import Mesh

__all__ = ["Visit", "examine"]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Visit:
    """What is to be looked at, and how.

    Attributes:
        node: Whose hops; None for every one of the mesh.
        files: The nodes whose files are on this machine.
        log_files: Logs of sidecars, of any node.
        entries: More log entries, such as those that came by standard input.
        token: The environment in which ``blazen-peer`` finds the token; empty without one.
        since: How far back in the logs.
        timeout_secs: How long one probe may take.
        now: The time, timezone-aware.
        on_done: Called with the subject of whatever was looked at.
    """

    mesh: Mesh
    node: str | None = None
    files: Mapping[str, NodeFiles] = field(default_factory=dict)
    log_files: Sequence[Path] = ()
    entries: Sequence[Entry] = ()
    token: Mapping[str, str] = field(default_factory=dict, repr=False)
    since: timedelta = timedelta(hours=1)
    timeout_secs: float = 3.0
    now: Callable[[], datetime] = _now
    on_done: Callable[[str], None] = lambda _: None


async def examine(visit: Visit) -> Report:
    """Return all that can be found from this machine. It changes nothing and runs no workflow.

    Raises:
        MeshError: The mesh has no such node.
        OSError: A log file cannot be read.
    """
    if visit.node is not None:
        visit.mesh.peer(visit.node)
    mesh = visit.mesh.on(visit.now().date())
    hops = hops_of(mesh, visit.node)

    def read_logs() -> Logs:
        entries = [entry for path in visit.log_files for entry in read_log_file(path)]
        return Logs([*visit.entries, *entries], mesh, hops)

    probing = Probing(visit.now, visit.timeout_secs, visit.timeout_secs + 10, visit.token, read_logs, bool(visit.log_files))
    past = await asyncio.to_thread(read_logs)
    nodes = sorted({visit.node} if visit.node else mesh.peers)
    nodes += sorted({end for hop in hops for end in (hop.caller, hop.callee) if end in visit.files} - set(nodes))
    visited = await asyncio.gather(*(_examine_node(visit, probing, node) for node in nodes))
    identities = {node: identity for node, (_, identity) in zip(nodes, visited, strict=True)}
    walked = await asyncio.gather(*(_examine_hop(visit, probing, hop, identities.get(hop.caller)) for hop in hops))
    findings = [finding for found, _ in visited for finding in found]
    findings += [finding for found in walked for finding in found]
    sound = {
        hop
        for hop, found in zip(hops, walked, strict=True)
        if any(one.check == "call" and one.state == "fine" for one in found)
    }
    findings += _ended(visit)
    known = {(finding.subject, finding.cause) for finding in findings}
    told = _told(past.seen(visit.now() - visit.since), sound, visit.now())
    # What the walk has just met itself need not be told of the past as well.
    return Report((*findings, *(finding for finding in told if (finding.subject, finding.cause) not in known)))


async def _examine_node(visit: Visit, probing: Probing, node: str) -> tuple[list[Finding], Identity | None]:
    names = Names(node, node, node, node, str(visit.mesh.peer(node).sidecar))
    files = visit.files.get(node)
    if files is None:
        what = "its identity, sidecar and peer are on another machine"
        return [names.unseen("files", what, f"run there: blazen-mesh doctor --node {node} --config-dir DIR")], None
    found, identity = examine_identity(names, files, visit.mesh.identity(node), visit.now())
    found += await probing.bounded(examine_sidecar(names, files, identity))
    found += await probing.bounded(examine_configuration(names, files, visit.mesh, visit.now().date()))
    for address in visit.mesh.peer(node).listens:
        found.append(await _examine_peer(visit, probing, names, address))
    visit.on_done(node)
    return found, identity


async def _examine_peer(visit: Visit, probing: Probing, names: Names, address: Address) -> Finding:
    answer = await probing.bounded(check_health(address, visit.timeout_secs, visit.now))
    match answer.status:
        case "OK" if not answer.serving:
            return names.wrong("peer", "peer-not-serving", str(address))
        case "OK":
            return names.fine("peer", f"{address} is SERVING")
        case "UNIMPLEMENTED":
            return names.fine("peer", f"{address} answers, and has no health service")
        case "DEADLINE_EXCEEDED":
            return names.wrong("peer", "no-answer", str(address))
    return names.wrong("peer", "peer-down", f"{address}: {answer.text}")


async def _examine_hop(visit: Visit, probing: Probing, hop: Hop, identity: Identity | None) -> list[Finding]:
    if hop.caller not in visit.files:
        where = f"run on {hop.caller}'s machine: blazen-mesh doctor --node {hop.caller} --config-dir DIR"
        return [hop.names.unseen("hop", f"it can be walked from {hop.caller}'s machine alone", where)]
    today = visit.mesh.on(visit.now().date())
    policies = {digest_of(mesh, hop.callee) for mesh in (visit.mesh, today)}
    found = await walk(hop, visit.mesh.identity(hop.callee), identity, probing, policies=policies)
    visit.on_done(hop.names.subject)
    return found


def _ended(visit: Visit) -> list[Finding]:
    """Return the flows whose last day is over: their callers are refused, which some of them may not know."""
    today, found = visit.now().date(), []
    for flow in visit.mesh.flows:
        if flow.until is not None and flow.until < today and visit.node in (None, flow.caller, flow.callee):
            names = Names(f"{flow.caller} -> {flow.callee}", flow.callee, flow.caller, flow.callee)
            found.append(names.wrong("policy", "flow-ended", f"on {flow.until}: {flow.why.strip()}", state="warning"))
    return found


def _told(seen: Iterable[Seen], sound: set[Hop], now: datetime) -> list[Finding]:
    """Return what the logs tell: a problem, unless the same kind of call, or the walk just now, has gone well since."""
    found = []
    for one in seen:
        over = one.over or (not one.of_one_call and one.hop in sound)
        names = one.hop.names if one.hop else Names(f"{one.caller} -> {one.callee}", one.callee, one.caller, one.callee)
        often = "once" if one.times == 1 else f"{one.times} times"
        when = f"{often}, last {span_text(now - one.last)} ago" + (", and well again since" if over else "")
        found.append(names.wrong("log", one.cause, f"{one.detail} ({when})", state="warning" if over else "problem"))
    return found
