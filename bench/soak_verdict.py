"""What the soak found: every call's end explained, by evidence and not by time alone, or named as wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.soak_load import Call, Load
from bench.soak_mesh import PeerProcess, SoakMesh
from blazen_peer import TransportError

LEAST_SHARE = 0.98  # of the rate asked for
LEAST_BY_LANES = 0.5  # of the calls, where lanes are on
NOTICED_SECS = 1.0  # within which a sidecar notices that a process on its own machine is dead
MAX_PEER_MIB = 256.0

MAX_TEXTS = 20


@dataclass
class Ends:
    """The calls that failed, and why.

    Attributes:
        ran_there: Tied to a kill: the killed process's own journal says that it had begun the call.
        sent_there: Tied to a kill: the call had been sent to the killed process, by a lane to it or, as the sidecar's log says,
            alone; its journal does not have it.
        sent_late: Those of ``sent_there`` that were begun after the process's end, before a sidecar or the client had noticed.
        unexplained: All others.
        lies: Of those tied, calls that were said not to have run, and ran.
    """

    ran_there: list[Call]
    sent_there: list[Call]
    sent_late: list[Call]
    unexplained: list[Call]
    lies: list[Call]

    @property
    def tied(self) -> list[Call]:
        """The calls whose failure a kill explains."""
        return self.ran_there + self.sent_there


def explained(load: Load, mesh: SoakMesh, executed: Counter[str]) -> Ends:
    """Tie each failed call to the killed process that it was in flight on, where there is one."""
    upstreams: dict[str, set[str]] = {}
    if any(not call.lanes for call in load.failed):
        wanted = {invocation_id for call in load.failed for invocation_id in call.invocation_ids}
        for entry in mesh.log("analyst-sidecar"):
            if entry.get("log") == "call" and (invocation_id := entry.get("invocation_id")) in wanted:
                upstreams.setdefault(invocation_id, set()).add(str(entry.get("upstream")))
    killed = [(peer, set(peer.executed())) for peer in mesh.processes if peer.killed is not None]
    ends = Ends([], [], [], [], [])
    for call in load.failed:
        there = [(peer, names) for peer, names in killed if _open_at_its_end(call, peer)]
        if not isinstance(call.error, TransportError):
            ends.unexplained.append(call)
        elif any(call.name in names for _, names in there):
            ends.ran_there.append(call)
        elif any(_sent_to(call, peer, upstreams) for peer, _ in there) and not executed[call.name]:
            ends.sent_there.append(call)
            if all(peer.killed is None or call.begun > peer.killed[1] for peer, _ in there):
                ends.sent_late.append(call)
        else:
            ends.unexplained.append(call)
    ends.lies = [call for call in ends.tied if not _may_have_run(call) and executed[call.name]]
    return ends


def _open_at_its_end(call: Call, peer: PeerProcess) -> bool:
    """Say whether the call was open when the process was killed, or sent before anybody can have noticed."""
    if peer.killed is None:
        return False
    began, ended = peer.killed
    return call.begun <= ended + NOTICED_SECS and call.ended >= began


def _sent_to(call: Call, peer: PeerProcess, upstreams: dict[str, set[str]]) -> bool:
    if call.lanes:
        return peer.instance_id in call.lanes
    return any(peer.listen in upstreams.get(invocation_id, ()) for invocation_id in call.invocation_ids)


def _may_have_run(call: Call) -> bool:
    return isinstance(call.error, TransportError) and call.error.may_have_run


def judge_calls(load: Load, mesh: SoakMesh, *, lanes: bool, kills: bool, peak_mib: float) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers of the calls, and what of them is not as it must be."""
    executed = Counter(name for peer in mesh.processes for name in peer.executed())
    ends = explained(load, mesh, executed)
    ids, tied = {f"call-{number}" for number in range(1, load.sent + 1)}, {call.name for call in ends.tied}
    numbers: dict[str, Any] = {
        "seconds": round(load.secs, 1),
        "calls": load.sent,
        "calls a second": round(load.sent / load.secs, 1),
        "streams read to their end": load.streamed,
        "by lanes": load.by_lanes,
        "by lanes, moved to another": load.moved,
        "alone": load.sent - load.by_lanes,
        "answered with their own id": load.answered,
        "executed once": sum(times == 1 for name, times in executed.items() if name in ids),
        "executed more than once": sum(times > 1 for times in executed.values()),
        "never executed": len(ids - set(executed) - tied),
        "without an end": load.without_end,
        "TransportError, in flight on a killed peer": len(tied),
        "of them: begun there": len(ends.ran_there),
        "of them: sent there, not begun": len(ends.sent_there),
        "of them: sent before its end was noticed": len(ends.sent_late),
        "of them: may have run": sum(_may_have_run(call) for call in ends.tied),
        "of them: has not run": sum(not _may_have_run(call) for call in ends.tied),
        "unexplained": len(ends.unexplained),
        "median, ms": round(load.percentile(0.5), 1),
        "99th percentile, ms": round(load.percentile(0.99), 1),
        "slowest, ms": round(load.percentile(0.999999), 1),
        "slowest TransportError, ms": round(max((call.ended - call.begun for call in ends.tied), default=0.0) * 1000, 1),
        "a peer's memory at most, MiB": round(peak_mib, 1),
    }
    wrong = [f"unexplained: {text}" for text in _told(ends.unexplained, mesh)]
    wrong += [f"said not to have run, and ran: {call.name}" for call in ends.lies[:MAX_TEXTS]]
    wrong += [f"answered with {text!r} ({times} times)" for text, times in load.wrong_answers.items() if times]
    sound = load.sent - len(tied)
    least = {"answered with their own id": sound, "executed once": sound, "calls a second": load.rate * LEAST_SHARE}
    if lanes:
        least["by lanes"] = load.sent * LEAST_BY_LANES
    if kills:
        least["TransportError, in flight on a killed peer"] = 1  # otherwise the kills met nothing
    wrong += [f"{what}: {numbers[what]}, not {bound:g}" for what, bound in least.items() if numbers[what] < bound]
    for what in ("executed more than once", "never executed", "without an end"):
        if numbers[what]:
            wrong.append(f"{what}: {numbers[what]}")
    if peak_mib > MAX_PEER_MIB:
        wrong.append(f"a peer had {peak_mib:.0f} MiB, more than {MAX_PEER_MIB:g}")
    wrong += [f"replica {number} ended by itself" for number, peer in mesh.peers.items() if peer.process.poll() is not None]
    return numbers, wrong


def _told(calls: list[Call], mesh: SoakMesh) -> list[str]:
    """Say what is known of the first of each kind."""
    first: dict[str, Call] = {}
    times: Counter[str] = Counter()
    for call in calls:
        text = f"{type(call.error).__name__}: {call.error}"
        first.setdefault(text, call)
        times[text] += 1
    processes = mesh.processes

    def about(call: Call) -> str:
        ran = [peer.instance_id[:6] for peer in processes if call.name in peer.executed()]
        sent = [instance_id[:6] for instance_id in call.lanes]
        return (
            f"{call.name}, begun at {call.begun:.3f}, ended at {call.ended:.3f}, "
            f"sent to {', '.join(sent) or 'no lane'}, ran on {', '.join(ran) or 'none'}, may_have_run {_may_have_run(call)}"
        )

    return [f"{text} ({times[text]} times; {about(call)})" for text, call in list(first.items())[:MAX_TEXTS]]
