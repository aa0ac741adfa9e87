"""The logs of both ends of a hop, joined: what happened to calls, and the reasons that TLS 1.3 keeps from a caller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from blazen_mesh import limits
from blazen_mesh.doctor.causes import cause_of_failure_text, readable
from blazen_mesh.doctor.findings import printable
from blazen_mesh.doctor.hops import Hop
from blazen_mesh.mesh import Mesh
from blazen_mesh.routes import STREAMING

__all__ = ["OF_LISTS", "Entry", "Logs", "Seen", "cause_at_callee", "cause_at_caller", "read_entries", "read_log_file"]

TAIL_BYTES = 16 * 1024 * 1024
"""What is read of the end of a log file."""

HEALTH = "/grpc.health.v1.Health/Check"

NEAR = timedelta(seconds=2)
"""How far apart both ends may log one failed connection, where addresses do not tell; clocks that differ more are a finding."""

_OF_ONE_CALL = {
    "deadline",
    "route-timeout",
    "overloaded",
    "peer-died",
    "bad-token",
    "peer-refuses",
    "call-failed",
    "unknown-peer",
}
OF_LISTS = frozenset({"crl-expired", "crl-missing", "crl-not-yet-valid"})
"""What is about the revocation list of the end that says it, and not about the other one's certificate."""

_OF_CERTIFICATES = {"expired", "not-yet-valid", "revoked", "unknown-authority", "forbidden-name"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a sidecar's log.

    Attributes:
        kind: ``call`` or ``connection``.
        hop: ``ingress``, or the name of an egress listener.
        fields: All that it holds.
    """

    kind: str
    node: str
    hop: str
    at: datetime
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return the field *name* as printable text; empty where there is none."""
        value = self.fields.get(name)
        return "" if value in (None, "-") else printable(str(value))


@dataclass(frozen=True, slots=True)
class Seen:
    """One kind of failure that the logs tell of.

    Attributes:
        hop: Where; None for a caller that the mesh file does not have.
        caller, callee: The nodes; a caller that no name is known of is its address.
        cause: A key of :data:`blazen_mesh.doctor.causes.CAUSES`.
        detail: The log's own words.
        times: How often.
        last: The last time.
        over: Whether a later call of the same kind went well.
    """

    hop: Hop | None
    caller: str
    callee: str
    cause: str
    detail: str
    times: int
    last: datetime
    over: bool

    @property
    def of_one_call(self) -> bool:
        """Whether it says nothing of the way to the callee, which a health check would have shown to be mended."""
        return self.cause in _OF_ONE_CALL


def read_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Return the log entries among *lines*; whatever stands in front of one (as `blazen-mesh up` writes) is cut off.

    Lines that are no entry of a sidecar of ours are passed over.
    """
    for line in lines:
        try:
            fields = json.loads(line[line.index("{") :])
            at = datetime.fromisoformat(fields["time"])
            entry = Entry(str(fields["log"]), str(fields["node"]), str(fields["hop"]), at, fields)
        except (ValueError, KeyError, TypeError):
            continue
        if entry.at.tzinfo is not None:
            yield entry


def read_log_file(path: Path) -> list[Entry]:
    """Return the entries at the end of the file *path* (its last 16 MiB).

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return list(read_entries(text.splitlines()))


class Logs:
    """Log entries of any number of nodes.

    Args:
        entries: In any order, each of them once or more often.
        hops: The hops that are looked at.
    """

    def __init__(self, entries: Iterable[Entry], mesh: Mesh, hops: Sequence[Hop]) -> None:
        self._stream_ms = limits.stream_secs(mesh.connection_age_secs) * 1000
        unique = {json.dumps(entry.fields, sort_keys=True): entry for entry in entries}
        self._entries = sorted(unique.values(), key=lambda entry: entry.at)
        self._names = {str(mesh.identity(node)): node for node in mesh.peers}
        self._hops = {(hop.caller, hop.listener): hop for hop in hops}
        self.nodes = {entry.node for entry in self._entries}
        self._ingress = {
            (entry.node, entry.text("request_id")): entry
            for entry in self._entries
            if entry.kind == "call" and entry.hop == "ingress" and entry.text("request_id")
        }
        self._refused = [entry for entry in self._entries if entry.kind == "connection" and entry.text("failure")]

    def refusal(self, callee: str, *, local: str) -> Entry | None:
        """Return how *callee*'s ingress logged the refused connection from the address *local*."""
        found = (entry for entry in reversed(self._refused) if entry.node == callee)
        return next((entry for entry in found if entry.text("from_address") == local), None)

    def refusal_since(self, callee: str, caller: str, since: datetime) -> Entry | None:
        """Return the last connection of *caller* that *callee*'s ingress has refused since then."""
        found = (entry for entry in reversed(self._refused) if entry.node == callee and entry.at >= since)
        return next((entry for entry in found if self._caller(entry) == caller), None)

    def seen(self, since: datetime) -> list[Seen]:
        """Return the failures since then, each kind on each hop once."""
        told: dict[int, None] = {}
        groups: dict[tuple[str, str, str], list[tuple[Entry, str, Hop | None]]] = {}
        good: dict[tuple[str, str, str], datetime] = {}
        for entry in self._entries:
            if entry.at < since or entry.kind != "call" or entry.hop == "ingress":
                continue
            hop = self._hops.get((entry.node, entry.hop))
            if hop is None or self._ended_as_streams_do(entry):
                continue
            if entry.text("grpc_status") == "OK":
                good[hop.caller, hop.callee, entry.text("method")] = entry.at
                good[hop.caller, hop.callee, ""] = entry.at
            elif (found := self._at_egress(entry, hop, told)) is not None:
                cause, detail = found
                groups.setdefault((hop.caller, hop.callee, cause), []).append((entry, detail, hop))
        for entry in self._entries:
            if entry.at < since or entry.hop != "ingress" or id(entry) in told or self._ended_as_streams_do(entry):
                continue
            if entry.text("method") == HEALTH:
                continue  # sidecars ask all the time, and log what failed alone; how it is now is looked at
            caller = self._caller(entry)
            if entry.kind == "call" and entry.text("grpc_status") == "OK":
                for method in (entry.text("method"), ""):
                    good[caller, entry.node, method] = max(entry.at, good.get((caller, entry.node, method), entry.at))
            elif (found := self._at_ingress(entry)) is not None:
                cause, detail = found
                hop = next((hop for hop in self._hops.values() if (hop.caller, hop.callee) == (caller, entry.node)), None)
                groups.setdefault((caller, entry.node, cause), []).append((entry, detail, hop))
        return [_summed(key, group, good) for key, group in groups.items()]

    def _at_egress(self, entry: Entry, hop: Hop, told: dict[int, None]) -> tuple[str, str] | None:
        """Return the cause of a failed call as the caller's sidecar logged it, by the other end's word where that is here."""
        flags, details, failure = _flags(entry), entry.text("details"), entry.text("upstream_failure")
        if "NR" in flags:
            return "unknown-peer", details
        if timed := _timed_out(entry):
            return timed
        if failure or "UF" in flags:
            return cause_at_caller(f"{failure} {details}"), readable(failure) or details
        if "UC" in flags or "connection_termination" in details:
            return self._hidden(entry, hop, told)
        other = self._ingress.get((hop.callee, entry.text("request_id")))
        if other is not None:
            told[id(other)] = None
            if (found := self._at_ingress(other)) is not None:
                return found
        return _by_status(entry, known=other is not None)

    def _hidden(self, entry: Entry, hop: Hop, told: dict[int, None]) -> tuple[str, str]:
        """Return why *hop*'s callee closed the connection of *entry*, from that one's log; the caller is not told."""
        local = entry.text("upstream_local")
        for other in self._refused:
            if other.node != hop.callee:
                continue
            same = other.text("from_address") == local if local else abs(other.at - entry.at) <= NEAR
            if same and self._caller(other) in (hop.caller, other.text("from_address")):
                told[id(other)] = None
                cause = cause_at_callee(other.text("failure"))
                return cause, readable(other.text("failure"))
        if hop.callee in self.nodes:
            return "peer-died", f"{entry.text('details')}, and nothing in the log of {hop.callee}'s sidecar"
        return "caller-refused", entry.text("details")

    def _at_ingress(self, entry: Entry) -> tuple[str, str] | None:
        """Return the cause of a refused connection or a failed call as the callee's sidecar logged it; None for a success."""
        if entry.kind == "connection":
            failure = entry.text("failure")
            # A connection that was given up before TLS had begun tells nothing: a port check, or a caller that ended.
            return None if not failure or "system_library" in failure else (cause_at_callee(failure), readable(failure))
        if entry.text("grpc_status") == "OK":
            return None
        flags, details, failure = _flags(entry), entry.text("details"), entry.text("upstream_failure")
        if details.startswith("rbac_access_denied"):
            return "policy-denies", details
        if timed := _timed_out(entry):
            return timed
        if "UF" in flags:
            return "peer-down", readable(failure) or details
        if "UC" in flags or "connection_termination" in details:
            return "peer-died", details
        if flags & {"UO", "RL"}:
            return "overloaded", details
        return _by_status(entry, known=True)

    def _ended_as_streams_do(self, entry: Entry) -> bool:
        """Say whether it is a stream that a sidecar has ended at its age; its client goes on where it stopped."""
        duration = entry.fields.get("duration_ms")
        long = isinstance(duration, int) and duration >= self._stream_ms
        return long and entry.text("method") in STREAMING

    def _caller(self, entry: Entry) -> str:
        uri = entry.text("peer_uri")
        return self._names.get(uri) or uri or entry.text("from_address")


def _flags(entry: Entry) -> set[str]:
    return set(entry.text("flags").split(","))


def _timed_out(entry: Entry) -> tuple[str, str] | None:
    details = entry.text("details")
    if "UT" in _flags(entry):
        return "route-timeout", details
    deadline = "max_duration_timeout" in details or entry.text("grpc_status") == "DeadlineExceeded"
    return ("deadline", details) if deadline else None


def _by_status(entry: Entry, *, known: bool) -> tuple[str, str] | None:
    """Return what the gRPC status alone tells; *known*: the callee's sidecar let the call through, so the peer said it."""
    details = entry.text("details")
    match entry.text("grpc_status"):
        case "Unauthenticated":
            return "bad-token", details
        case "PermissionDenied":
            return ("peer-refuses" if known else "policy-denies"), details
        case "ResourceExhausted":
            return "overloaded", details
        case "Unavailable":
            return ("peer-not-serving" if known else "peer-down"), details
    return None  # the workflow's own failures are answers, and other statuses are the application's to say


def cause_at_caller(failure: str) -> str:
    """Return the cause that the caller's sidecar means by *failure*."""
    what = cause_of_failure_text(failure)
    if what is None:
        return "remote-unreachable"
    renamed = {"refused": "remote-sidecar-down", "unreachable": "remote-unreachable", "missing": "tls-failed"}
    if what in OF_LISTS:
        return f"caller-{what}"
    return renamed.get(what) or (f"callee-{what}" if what in (*_OF_CERTIFICATES, "wrong-name") else what)


def cause_at_callee(failure: str) -> str:
    """Return the cause that the callee's sidecar means by *failure*."""
    what = cause_of_failure_text(failure)
    renamed = {"wrong-name": "caller-unknown-name", "missing": "caller-missing", "plain-text": "caller-plain-text"}
    renamed["tls-version"] = "tls-version"
    if what in OF_LISTS:
        return f"callee-{what}"
    return renamed.get(what or "") or (f"caller-{what}" if what in _OF_CERTIFICATES else "tls-failed")


def _summed(
    key: tuple[str, str, str], group: list[tuple[Entry, str, Hop | None]], good: Mapping[tuple[str, str, str], datetime]
) -> Seen:
    caller, callee, cause = key
    entry, detail, hop = group[-1]
    method = entry.text("method") if cause in _OF_ONE_CALL else ""
    later = good.get((caller, callee, method), datetime.min.replace(tzinfo=UTC))
    return Seen(hop, caller, callee, cause, detail, len(group), entry.at, over=later > entry.at)
