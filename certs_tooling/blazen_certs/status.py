"""How the whole store stands, as plain values: what ``blazen-certs status`` shows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from blazen_certs.authority import Authority
from blazen_certs.crl import revoked_serials
from blazen_certs.facts import name_text, time_text
from blazen_certs.issuing_renewal import coming_issuer
from blazen_certs.node_state import NodeState, node_states
from blazen_certs.profile import WHOLE_MESH
from blazen_certs.renewal import is_due, renewal_time
from blazen_certs.rotation import read_rotation
from blazen_certs.trust import Issuer, Trust, read_trust

__all__ = ["read_status"]

_TROUBLE = ("broken", "expired", "due")


def read_status(directory: Path, *, now: datetime) -> dict[str, Any]:
    """Return how the store at *directory* stands, as a JSON object: ``ok``, ``at``, ``roots``, ``issuing``, ``rotation``, ...

    Times are RFC 3339 texts; ``seconds_left``, from *now*, is negative once it is over; serials are lower-case hex. On a node's
    own machine, which has no authority, ``roots`` and ``issuing`` are empty and ``rotation`` is null; ``nodes`` is there.

    Raises: as ``read_trust``.
    """
    trust = read_trust(directory)
    nodes = [_node(state, now) for state in node_states(directory, trust)]
    roots, issuing, rotation = [], [], None
    if trust is not None:
        roots = [
            {"generation": root.generation, "subject": name_text(root.certificate.subject), **_times(root.certificate, now)}
            for root in trust.roots
        ]
        issuing = [_issuing(issuer, trust, now) for issuer in trust.issuers]
        found = read_rotation(Authority(directory, trust.trust_domain), now=now)
        rotation = {"phase": found.phase, "old": found.old, "new": found.new, "blocking": dict(found.blocking)}
    trouble = any(item["condition"] in _TROUBLE for item in _flat(nodes, issuing))
    return {"ok": not trouble, "at": time_text(now), "roots": roots, "issuing": issuing, "rotation": rotation, "nodes": nodes}


def _flat(*groups: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (item for group in groups for item in group)


def _node(state: NodeState, now: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {
        "node": state.node,
        "condition": state.condition(now),
        "here": state.here,
        "spiffe_id": state.uri,
        "root_generation": state.generation,
        "revoked": None if state.revoked is None else time_text(state.revoked),
        "seen": None if state.seen is None else time_text(state.seen),
        "problem": state.problem,
        "serial": None,
        "lists_signed": None if state.lists_from is None else time_text(state.lists_from),
        "lists_until": None if state.lists_until is None else time_text(state.lists_until),
        "lists_age_seconds": None if state.lists_from is None else int((now - state.lists_from).total_seconds()),
    }
    if state.certificate is not None:
        found |= {
            "serial": f"{state.certificate.serial_number:x}",
            "renewal": time_text(renewal_time(state.certificate)),
            **_times(state.certificate, now),
        }
    return found


def _issuing(issuer: Issuer, trust: Trust, now: datetime) -> dict[str, Any]:
    current = trust.current[issuer.region]
    coming = coming_issuer(trust, issuer.region)
    ended = now > issuer.certificate.not_valid_after_utc
    list_ended = issuer.crl.next_update_utc is None or now > issuer.crl.next_update_utc
    condition = "ok"
    if issuer.version != current:
        condition = "coming" if issuer.version > current else "retired"
    elif ended:
        condition = "expired"
    elif is_due(issuer.certificate, now=now) and coming is None:
        condition = "due"
    if list_ended and not ended:
        condition = "expired"
    return {
        "region": None if issuer.region == WHOLE_MESH else issuer.region,
        "version": issuer.version,
        "condition": condition,
        "trust_domain": issuer.trust_domain,
        "root_generation": issuer.generation,
        "subject": name_text(issuer.certificate.subject),
        "key_here": issuer.has_key,
        "revoked": len(revoked_serials(issuer.crl)),
        "list_until": None if issuer.crl.next_update_utc is None else time_text(issuer.crl.next_update_utc),
        "renewal": time_text(renewal_time(issuer.certificate)),
        **_times(issuer.certificate, now),
    }


def _times(certificate: x509.Certificate, now: datetime) -> dict[str, Any]:
    end = certificate.not_valid_after_utc
    return {"not_after": time_text(end), "seconds_left": int((end - now).total_seconds())}
