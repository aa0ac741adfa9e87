"""The failure dictionary: every cause that the doctor can name, what it is, and what mends it.

A cause is about the caller's certificate or the callee's, whichever machine the doctor runs on. ``{caller}`` and ``{callee}``
stand for nodes, ``{node}`` for the one that was looked at, ``{address}`` for the place that was dialled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ALERTS", "CAUSES", "VERIFY_CODES", "Cause", "cause_of_failure_text", "readable"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One entry of the dictionary.

    Attributes:
        key: A stable word for programs.
        title: What is wrong, in a few words.
        fix: What to do, with nodes and addresses to be filled in.
    """

    key: str
    title: str
    fix: str


_ISSUE = "issue it anew: blazen-certs issue {0} where the authority is, or blazen-certs code {0} there and join on {0}"
_LIST = "sign it anew where the authority is: blazen-certs crl --force; on {0}, see to `blazen-certs watch`"
_ISSUE_NODE, _ISSUE_CALLER, _ISSUE_CALLEE = (_ISSUE.replace("{0}", name) for name in ("{node}", "{caller}", "{callee}"))
_CRL_NODE, _CRL_CALLER, _CRL_CALLEE = (_LIST.replace("{0}", name) for name in ("{node}", "{caller}", "{callee}"))
_CLOCK = "set both machines' clocks by NTP (timedatectl status)"

_ENTRIES = (
    # what a node's own files and sidecar say
    Cause("identity-missing", "the identity is not there", _ISSUE_NODE),
    Cause("identity-unreadable", "the identity cannot be read", "run the doctor as the user that the sidecar runs as"),
    Cause("identity-broken", "the identity's files do not fit together", _ISSUE_NODE),
    Cause("identity-of-another", "the certificate names another node", _ISSUE_NODE),
    Cause("certificate-expired", "the certificate has expired", _ISSUE_NODE),
    Cause("certificate-not-yet-valid", "the certificate begins in the future by this machine's clock", _CLOCK),
    Cause("certificate-revoked", "the certificate is revoked", "if it is to be trusted again, " + _ISSUE_NODE),
    Cause("certificate-unknown-authority", "the node does not trust the authority of its own certificate", _ISSUE_NODE),
    Cause("crl-expired", "the revocation list has expired, so the sidecar refuses everybody", _CRL_NODE),
    Cause("crl-missing", "no revocation list covers the issuer, so the sidecar refuses everybody", _CRL_NODE),
    Cause("crl-not-yet-valid", "the revocation list begins in the future by this machine's clock", _CLOCK),
    Cause(
        "certificate-expires-soon",
        "the certificate ends soon, and was not renewed in time",
        "see to `blazen-certs watch`, or: blazen-certs renew {node}",
    ),
    Cause("crl-expires-soon", "the revocation list ends soon; without it every caller is refused", _CRL_NODE),
    Cause("sidecar-down", "the sidecar does not run", "start it: blazen-mesh sidecar --node {node} (or blazen-mesh up)"),
    Cause("sidecar-not-ready", "the sidecar runs and cannot serve", "read its log; mend what it names, then restart it"),
    Cause(
        "old-certificate",
        "the sidecar serves another certificate than the newest on disk",
        "publish anew with blazen-certs renew {node} --force; if it stays, restart the sidecar of {node}",
    ),
    Cause(
        "rejected-secret",
        "the sidecar has refused a new secret and keeps the former: revocations may not be in force",
        "run blazen-certs verify {node}, issue anew (never put the old files back), then restart the sidecar of {node}",
    ),
    Cause("supervisor", "the supervisor of the sidecar is not content", "do what it names; blazen-mesh ready asks it again"),
    Cause(
        "stale-configuration",
        "the sidecar does not run what the mesh file says",
        "render {node} anew from this mesh file, on its machine",
    ),
    # the way to the callee
    Cause(
        "unknown-peer",
        "no egress port of {caller} leads there",
        "give {caller} a flow to it in the mesh file, render {caller} anew, and dial the port that `blazen-mesh check` shows",
    ),
    Cause(
        "egress-port-closed",
        "nothing listens on the egress port",
        "start the sidecar of {caller}; if it runs, render it anew from this mesh file",
    ),
    Cause(
        "dns",
        "the name of the callee's sidecar does not resolve",
        "mend peers.{callee}.sidecar in the mesh file, or the name server of {caller}'s machine",
    ),
    Cause(
        "remote-sidecar-down",
        "the callee's sidecar does not run",
        "on {callee}'s machine: start its sidecar; then blazen-mesh doctor --node {callee}",
    ),
    Cause(
        "remote-unreachable",
        "no answer from the callee's sidecar",
        "open {address} in the firewalls and routes between {caller} and {callee}",
    ),
    Cause(
        "plain-text",
        "what listens there does not speak TLS",
        "let peers.{callee}.sidecar name the sidecar's ingress, not the peer's own port",
    ),
    Cause(
        "tls-version",
        "the two ends have no TLS version in common",
        "both sidecars must be rendered by blazen-mesh (TLS 1.3 only)",
    ),
    Cause(
        "alpn", "the callee did not choose HTTP/2", "let peers.{callee}.sidecar name a sidecar that blazen-mesh has rendered"
    ),
    Cause("tls-failed", "the TLS handshake failed", "look at the connection lines in the log of {callee}'s sidecar"),
    # the callee's certificate, as the caller sees it
    Cause(
        "callee-wrong-name",
        "the callee's certificate names somebody else",
        "let peers.{callee}.sidecar lead to {callee}; if it does, issue {callee} its own: blazen-certs issue {callee}",
    ),
    Cause("callee-expired", "the callee's certificate has expired", _ISSUE_CALLEE),
    Cause("callee-not-yet-valid", "the callee's certificate is not valid yet", _CLOCK),
    Cause("callee-revoked", "the callee's certificate is revoked", "if it is to be trusted again, " + _ISSUE_CALLEE),
    Cause(
        "callee-unknown-authority",
        "the caller does not trust the authority of the callee's certificate",
        "issue {callee} from the authority in {caller}'s bundle, or renew {caller} to get the new bundle",
    ),
    Cause(
        "callee-forbidden-name",
        "the callee's authority may not issue that name",
        "issue {callee} from its own region's authority",
    ),
    Cause("caller-crl-expired", "the revocation list of {caller} has expired, so it refuses everybody", _CRL_CALLER),
    Cause("caller-crl-not-yet-valid", "the revocation list of {caller} begins in the future by its clock", _CLOCK),
    Cause(
        "caller-crl-missing", "the revocation list of {caller} does not cover the issuer, so it refuses everybody", _CRL_CALLER
    ),
    # the caller's certificate, as the callee sees it
    Cause(
        "caller-plain-text",
        "somebody spoke plain text to the callee's sidecar",
        "let callers dial their own egress port, never a sidecar's ingress",
    ),
    Cause(
        "caller-missing",
        "the caller showed no certificate",
        "let {caller} call through its own egress port; if it does, look at its sidecar's certificate",
    ),
    Cause(
        "caller-unknown-name",
        "the callee's sidecar knows no node of that name",
        "put the caller into the mesh file and render {callee} anew, on its machine",
    ),
    Cause("caller-expired", "the caller's certificate has expired", _ISSUE_CALLER),
    Cause("caller-not-yet-valid", "the caller's certificate is not valid yet at the callee", _CLOCK),
    Cause("caller-revoked", "the caller's certificate is revoked", "if it is to be trusted again, " + _ISSUE_CALLER),
    Cause(
        "caller-unknown-authority",
        "the callee does not trust the authority of the caller's certificate",
        "issue {caller} from the authority in {callee}'s bundle, or renew {callee} to get the new bundle",
    ),
    Cause(
        "caller-forbidden-name",
        "the caller's authority may not issue that name",
        "issue {caller} from its own region's authority",
    ),
    Cause("callee-crl-expired", "the revocation list of {callee} has expired, so it refuses everybody", _CRL_CALLEE),
    Cause("callee-crl-not-yet-valid", "the revocation list of {callee} begins in the future by its clock", _CLOCK),
    Cause(
        "callee-crl-missing", "the revocation list of {callee} does not cover the issuer, so it refuses everybody", _CRL_CALLEE
    ),
    Cause(
        "caller-refused",
        "the callee refused the caller's certificate, and TLS 1.3 hides why",
        "on {callee}'s machine: blazen-mesh doctor --node {callee}",
    ),
    # the call itself
    Cause("clock-skew", "the two machines' clocks differ", _CLOCK),
    Cause(
        "policy-denies",
        "the callee's sidecar has no flow that lets this call in",
        "if the mesh file allows it, render {callee} anew, on its machine; if not, it needs a flow there",
    ),
    Cause(
        "flow-ended",
        "the flow was an exception, and its last day is over",
        "take it out of the mesh file, or give it a later `until`",
    ),
    Cause(
        "peer-refuses",
        "the peer refused the call, token and all",
        "read the peer's log: its policy, its --sidecar-proof-file, or the token's node does not fit",
    ),
    Cause("no-token", "there is no token to call with", "set BLAZEN_PEER_TOKEN_FILE (blazen-mesh up keeps it in its --dir)"),
    Cause(
        "bad-token",
        "the peer does not take the token",
        "give {caller} and {callee} the same token; the log of {callee}'s peer says what was wrong",
    ),
    Cause(
        "no-policy",
        "the peer enforces no policy: any workflow that it has can be called, with any data that the sidecars let in",
        "start {callee}'s peer with --policy, and the policy.json that was rendered for it",
    ),
    Cause(
        "policy-not-read",
        "the peer cannot read its policy file, and goes on with the former",
        "render {callee} anew, on its machine",
    ),
    Cause(
        "stale-policy",
        "the peer enforces another policy than this mesh file gives it",
        "render {callee} anew from this mesh file, on its machine, or use the file that it was rendered from",
    ),
    Cause(
        "no-lane",
        "calls go alone, which is slower: no lane opens",
        "upgrade {callee}'s peer, and render {caller} and {callee} anew by the same version",
    ),
    Cause(
        "peer-down",
        "the peer behind the callee's sidecar does not run",
        "on {callee}'s machine: start its peer where peers.{callee}.listen says",
    ),
    Cause(
        "peer-not-serving",
        "the peer says that it does not serve",
        "it drains or has just started: wait, or start it again on {callee}'s machine",
    ),
    Cause(
        "peer-died",
        "the connection to the peer broke during a call",
        "read the end of the log of {callee}'s peer; the call may have run",
    ),
    Cause("no-answer", "no answer in time", "look at the load of {callee}'s machine, and at the log of its peer"),
    Cause(
        "deadline",
        "the caller's own deadline ended the call",
        "give the call more time (timeout_secs), or see why {callee} takes so long",
    ),
    Cause(
        "route-timeout",
        "a sidecar's time limit ended the call",
        "render both sidecars with blazen-mesh: it sets no limit but the caller's deadline",
    ),
    Cause("overloaded", "a limit was reached", "call less at once, or raise the limit that the log names"),
    Cause("call-failed", "the call failed", "read the log of {callee}'s peer"),
)

CAUSES: dict[str, Cause] = {cause.key: cause for cause in _ENTRIES}
"""By key, in the order in which a call meets them."""

VERIFY_CODES = {
    2: "unknown-authority",
    3: "crl-missing",
    9: "not-yet-valid",
    10: "expired",
    11: "crl-not-yet-valid",
    12: "crl-expired",
    18: "unknown-authority",
    19: "unknown-authority",
    20: "unknown-authority",
    21: "unknown-authority",
    23: "revoked",
    47: "forbidden-name",
}
"""What OpenSSL's verification found (x509_vfy.h, ``X509_V_ERR_``): without ``caller-`` or ``callee-`` in front."""

ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "caller-missing",
    "TLSV1_ALERT_UNKNOWN_CA": "caller-unknown-authority",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "caller-expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "caller-revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "caller-unknown-name",
    "TLSV1_ALERT_PROTOCOL_VERSION": "tls-version",
    "UNSUPPORTED_PROTOCOL": "tls-version",
    "WRONG_VERSION_NUMBER": "plain-text",
}
"""What our own handshake met (OpenSSL's reason). An alert is coarser than the other end's log, which wins where we have it."""

_TEXTS = (
    (r"certificate_has_expired", "expired"),
    (r"certificate_is_not_yet_valid", "not-yet-valid"),
    (r"certificate_revoked", "revoked"),
    (r"CRL_has_expired", "crl-expired"),
    (r"CRL_is_not_yet_valid", "crl-not-yet-valid"),
    (r"unable_to_get_certificate_CRL", "crl-missing"),
    (r"permitted_subtree_violation|excluded_subtree_violation", "forbidden-name"),
    (r"SAN_matcher", "wrong-name"),
    (r"unable_to_get_(local_)?issuer|self_signed_certificate|unable_to_verify", "unknown-authority"),
    (r"PEER_DID_NOT_RETURN_A_CERTIFICATE", "missing"),
    (r"WRONG_VERSION_NUMBER|HTTP_REQUEST", "plain-text"),
    (r"UNSUPPORTED_PROTOCOL|ALERT_PROTOCOL_VERSION", "tls-version"),
    (r"[Cc]onnection_refused|[Nn]o_such_file", "refused"),
    (r"timeout|timed_out|[Nn]o_route|unreachable", "unreachable"),
)


def cause_of_failure_text(text: str) -> str | None:
    """Return what Envoy's *text* of a failed handshake or connection tells, without whose certificate it is; None for nothing.

    ``DOWNSTREAM_TRANSPORT_FAILURE_REASON`` and ``UPSTREAM_TRANSPORT_FAILURE_REASON``, with blanks or with their underscores.
    """
    joined = text.replace(" ", "_")
    return next((what for pattern, what in _TEXTS if re.search(pattern, joined)), None)


def readable(text: str) -> str:
    """Return Envoy's *text* of a failed handshake for people: blanks for its underscores, and without its library's numbers."""
    return re.sub(r"\|[0-9]+:[^:|]*:OPENSSL internal:|:?TLS error( end)?:?", "", text.replace("_", " ")).strip()
