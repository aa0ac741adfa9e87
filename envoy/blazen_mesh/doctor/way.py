"""One hop, walked from the caller's machine: its port, the way to the callee's sidecar, TLS, policy, token, the peer behind."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from blazen_mesh.address import TcpAddress
from blazen_mesh.doctor.calls import Answer, Described, check_health, describe, secure_channel
from blazen_mesh.doctor.causes import ALERTS, VERIFY_CODES, readable
from blazen_mesh.doctor.findings import Finding
from blazen_mesh.doctor.handshake import CLOSED, SILENT, Handshake, connect, look_up, shake_hands
from blazen_mesh.doctor.hops import Hop
from blazen_mesh.doctor.identity import Identity, dns_names_of, span_text, uris_of
from blazen_mesh.doctor.logs import OF_LISTS, cause_at_callee, cause_at_caller
from blazen_mesh.doctor.probing import Probing
from blazen_peer.identity import PeerId

__all__ = ["walk"]

CLOCKS_APART_MOST = timedelta(seconds=30)
"""A token's own leeway; certificates are backdated by more."""

_REASON = "transport failure reason:"  # as the egress listener's local reply writes it
CLASS_HEADER = "x-blazen-data-class"


async def walk(
    hop: Hop, callee: PeerId, identity: Identity | None, probing: Probing, *, policies: Collection[str]
) -> list[Finding]:
    """Return what is found on *hop*, station by station; the first that is broken ends the walk.

    Args:
        callee: Whom the other end must be.
        identity: The caller's own; None where it cannot be read.
        policies: The digests of the policies that the callee's peer may rightly enforce.
    """
    walker = _Walk(hop, callee, identity, probing, policies)
    found = await walker.port()
    found += await walker.to_the_sidecar()
    if not any(finding.state == "problem" for finding in found):
        found += await walker.through_the_port()
    return found


@dataclass
class _Walk:
    hop: Hop
    callee: PeerId
    identity: Identity | None
    probing: Probing
    policies: Collection[str]

    async def port(self) -> list[Finding]:
        try:
            await self.probing.in_thread(connect, self.hop.egress, self.probing.timeout_secs)
        except OSError as error:
            return [self.hop.names.wrong("port", "egress-port-closed", f"{self.hop.egress}: {_reason(error)}")]
        return [self.hop.names.fine("port", f"{self.hop.egress} listens")]

    async def to_the_sidecar(self) -> list[Finding]:
        """Go straight to the callee's sidecar, by the caller's own certificate."""
        names, address = self.hop.names, self.hop.sidecar
        found = []
        try:
            ips = await look_up(address, self.probing.timeout_secs)
        except (OSError, TimeoutError) as error:
            return [names.wrong("dns", "dns", f"{address.host}: {_reason(error)}")]
        if not address.is_ip:
            found.append(names.fine("dns", f"{address.host} is {', '.join(ips)}"))
        for ip in ips:
            found += await self._to_place(TcpAddress(ip, address.port))
        return found

    async def through_the_port(self) -> list[Finding]:
        """Make the calls that a client makes: health, then one that needs the token."""
        names = self.hop.names
        begun = self.probing.now()
        answer = await self.probing.bounded(check_health(self.hop.egress, self.probing.timeout_secs, self.probing.now))
        if answer.status != "OK":
            return [await self._not_through(answer, begun)]
        found = [names.fine("call", "a health check through the egress port is answered by the peer")]
        return found + await self._token()

    async def _to_place(self, place: TcpAddress) -> list[Finding]:
        """Go to one of the addresses of the callee's sidecar."""
        names, secs = self.hop.names, self.probing.timeout_secs
        try:
            if self.identity is None:
                took = await self.probing.in_thread(connect, place, secs)
            else:
                shake = await self.probing.in_thread(shake_hands, place, self.identity.directory, secs)
                took = shake.connect_secs
        except ssl.SSLError as error:
            return [names.wrong("tls", "identity-broken", f"{self.hop.caller}'s files: {error.reason or error}")]
        except ConnectionRefusedError as error:
            return [names.wrong("tcp", "remote-sidecar-down", f"{place}: {_reason(error)}")]
        except OSError as error:
            return [names.wrong("tcp", "remote-unreachable", f"{place}: {_reason(error)}")]
        found = [names.fine("tcp", f"{place} answers in {took * 1000:.0f} ms")]
        if self.identity is None:
            where = f"see {self.hop.caller}, above"
            return [*found, names.unseen("tls", "there is no identity of the caller to go on with", where)]
        return found + await self._judge(self.identity, place, shake)

    async def _judge(self, identity: Identity, place: TcpAddress, shake: Handshake) -> list[Finding]:
        if problems := [one for one in (self._their_certificate(shake), await self._our_certificate(shake)) if one]:
            return problems
        assert shake.leaf is not None  # noqa: S101 - it was verified
        ends = span_text(shake.leaf.not_valid_after_utc - self.probing.now())
        lists = ", not revoked" if identity.crls else ""
        found = [self.hop.names.fine("tls", f"{shake.version} {shake.alpn}, {self.callee}, {ends} left{lists}")]
        return found + await self._at_the_ingress(identity, place, shake)

    def _their_certificate(self, shake: Handshake) -> Finding | None:
        names = self.hop.names
        if shake.leaf is None:
            cause = ALERTS.get(shake.failure or "", "plain-text" if shake.failure == CLOSED else "tls-failed")
            return names.wrong("tls", cause, shake.failure or "no certificate came")
        said = ", ".join(uris_of(shake.leaf)) or "nobody"
        if shake.verify_code:
            what = VERIFY_CODES.get(shake.verify_code)
            if what in OF_LISTS:
                return names.wrong("tls", f"caller-{what}", shake.verify_message)
            cause = f"callee-{what}" if what else "tls-failed"
            return names.wrong("tls", cause, f"{said}: {shake.verify_message}")
        if uris_of(shake.leaf) != [str(self.callee)]:
            return names.wrong("tls", "callee-wrong-name", f"it names {said}, not {self.callee}")
        if shake.failure is None and shake.alpn != "h2":
            return names.wrong("tls", "alpn", shake.alpn or "no protocol was chosen")
        return None

    async def _our_certificate(self, shake: Handshake) -> Finding | None:
        """Return why the other end refused us: its log's word, where that is here; else its alert, which is coarser."""
        if shake.failure is None or shake.leaf is None:
            return None
        entry = await self.probing.refusal(self.hop.callee, shake.local)
        if entry is not None:
            failure = entry.text("failure")
            return self.hop.names.wrong("tls", cause_at_callee(failure), f"{self.hop.callee}'s log says {readable(failure)}")
        cause, at = self._told_by_alert(shake), f"{self.probing.now():%H:%M:%SZ}"
        hidden = f"it broke off with {shake.failure}; its log has the reason at {at}, from_address {shake.local}"
        return self.hop.names.wrong("tls", cause, hidden)

    def _told_by_alert(self, shake: Handshake) -> str:
        cause = ALERTS.get(shake.failure or "", "caller-refused")
        if shake.failure == SILENT:
            return "no-answer"
        if cause == "caller-expired" and self.identity is not None:
            # One alert stands for both, and for the other end's own list: only where the leaf has expired is it plain.
            if self.identity.leaf.not_valid_before_utc > self.probing.now():
                return "caller-not-yet-valid"
            if self.identity.leaf.not_valid_after_utc > self.probing.now():
                return "caller-refused"
        return cause

    async def _at_the_ingress(self, identity: Identity, place: TcpAddress, shake: Handshake) -> list[Finding]:
        """Make a real call straight at the ingress, as the caller's sidecar would: what the flows there say, and the peer."""
        names = self.hop.names
        dns_names = dns_names_of(shake.leaf) if shake.leaf else []
        if not dns_names:
            return [names.unseen("policy", "the callee's certificate has no DNS name for a call of our own", "see `call`")]
        channel = secure_channel(place, identity.directory, dns_names[0])
        stamp = [(CLASS_HEADER, self.hop.data_class)] if self.hop.data_class else []
        answer = await self.probing.bounded(check_health(channel, self.probing.timeout_secs, self.probing.now, stamp))
        found = self._clock(answer)
        if answer.status == "PERMISSION_DENIED":
            return [*found, names.wrong("policy", "policy-denies", answer.text)]
        found.append(names.fine("policy", f"{self.hop.callee}'s sidecar lets it in"))
        if answer.status != "OK":
            return [*found, self._unanswered("peer", answer)]
        if not answer.serving:
            return [*found, names.wrong("peer", "peer-not-serving")]
        return [*found, names.fine("peer", "SERVING")]

    def _clock(self, answer: Answer) -> list[Finding]:
        names = self.hop.names
        if answer.date is None:
            return [names.unseen("clock", "the other end did not tell its time", "compare `date -u` on both machines")]
        # Dates have whole seconds: half of one is the best guess.
        apart = answer.date + timedelta(seconds=0.5) - answer.asked_at
        ahead = f"{self.hop.callee}'s is {span_text(apart)} {'ahead' if apart > timedelta() else 'behind'}"
        if abs(apart) > CLOCKS_APART_MOST:
            return [names.wrong("clock", "clock-skew", ahead)]
        return [names.fine("clock", "both within a second" if abs(apart) < timedelta(seconds=1.5) else ahead)]

    def _unanswered(self, check: str, answer: Answer) -> Finding:
        """Return what a failed health check tells; the callee's sidecar is known to let calls in."""
        cause = {
            "UNAVAILABLE": "peer-down",
            "DEADLINE_EXCEEDED": "no-answer",
            "PERMISSION_DENIED": "policy-denies",
            "RESOURCE_EXHAUSTED": "overloaded",
            "UNIMPLEMENTED": "call-failed",
        }.get(answer.status, "call-failed")
        return self.hop.names.wrong(check, cause, f"{answer.status} {answer.text}".strip())

    async def _not_through(self, answer: Answer, begun: datetime) -> Finding:
        """Return why the caller's own sidecar does not get through where the caller's files do."""
        names, callee = self.hop.names, self.hop.callee
        if answer.status != "UNAVAILABLE":
            return self._unanswered("call", answer)
        _, _, reason = answer.text.partition(_REASON)
        if reason:
            return names.wrong("call", cause_at_caller(reason), f"{self.hop.caller}'s sidecar says {readable(reason)}")
        entry = await self.probing.refusal_since(callee, self.hop.caller, begun)
        if entry is not None:
            failure = entry.text("failure")
            serial = f"the certificate {entry.text('peer_serial')} that {self.hop.caller}'s sidecar serves"
            return names.wrong("call", cause_at_callee(failure), f"{callee}'s log says of {serial}: {readable(failure)}")
        return names.wrong("call", "caller-refused", f"{answer.text}; the identity on disk would be taken")

    async def _token(self) -> list[Finding]:
        names, hop = self.hop.names, self.hop
        environment = {} if hop.inject_token else self.probing.token
        for _ in range(2):  # the way is known to be good: what breaks on it now may hold the next time
            done = await self.probing.bounded(describe(hop.egress, hop.caller, self.probing.command_secs, environment))
            if done.kind != "Transport":
                break
        if done.kind is None:
            how = "the port adds the token" if hop.inject_token else "the token is good"
            return [names.fine("token", f"{how}; {done.text} answers"), self._enforced(done), self._lane(done)]
        match done.kind:
            case "Unauthenticated":
                return [names.wrong("token", "bad-token" if environment or hop.inject_token else "no-token", done.text)]
            case "PermissionDenied":
                return [names.wrong("token", "peer-refuses", done.text)]
            case "Unsupported":
                return [names.unseen("token", "the peer has no describe call to try the token with", "run a workflow on it")]
            case "NoAnswer":
                return [names.wrong("token", "no-answer", done.text)]
        return [names.wrong("token", "call-failed", f"{done.kind}: {done.text}")]

    def _lane(self, done: Described) -> Finding:
        """Return whether calls can go by a lane; where not, they go alone."""
        if done.why_alone is None:
            return self.hop.names.fine("lane", "a lane opens: calls go by it")
        return self.hop.names.wrong("lane", "no-lane", done.why_alone, state="warning")

    def _enforced(self, done: Described) -> Finding:
        """Return whether the peer itself enforces the policy that this mesh file gives it."""
        names = self.hop.names
        if done.policy is None:
            return names.wrong("enforced", "no-policy", state="warning")
        if done.policy["problem"]:
            return names.wrong("enforced", "policy-not-read", str(done.policy["problem"]))
        if done.policy["digest"] not in self.policies:
            return names.wrong("enforced", "stale-policy", f"its digest is {done.policy['digest'][:12]}")
        return names.fine("enforced", f"the peer enforces this mesh file's policy ({done.policy['digest'][:12]})")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "no answer in time"
