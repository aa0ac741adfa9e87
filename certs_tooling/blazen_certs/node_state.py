"""What this store knows of each node now: its certificate, what it trusts, and the lists it has. Read only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from blazen_certs import store
from blazen_certs.crl import revoked_serials
from blazen_certs.facts import sha256, uris_of
from blazen_certs.issued import known_nodes, read_issued, read_shown
from blazen_certs.pem import load_certificates, load_crl, split_pem
from blazen_certs.publish import read_material
from blazen_certs.renewal import renewal_time
from blazen_certs.trust import Trust
from blazen_peer.errors import ValidationError

__all__ = ["NodeState", "node_state", "node_states"]


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node, as far as this store knows.

    Attributes:
        node: Its id.
        here: Whether its identity is in this store; otherwise it fetches from here.
        certificate: What it shows; None where nothing readable is known.
        uri: The name in it.
        generation: That of the root which its certificate comes from; None where that root is not trusted, or not known here.
        roots: SHA-256 of each root that it trusts.
        lists: The issuers, in RFC 4514's form, of the revocation lists that it has.
        lists_from, lists_until: When the oldest of them was signed, and when the first of them ends; None where unknown.
        revoked: Since when its certificate is; None: it is not.
        seen: When a node elsewhere last showed all this; None for one that is here, or that never showed anything.
        problem: Why its files cannot be used; None where they can.
    """

    node: str
    here: bool
    certificate: x509.Certificate | None
    uri: str
    generation: int | None
    roots: frozenset[str]
    lists: frozenset[str]
    lists_from: datetime | None
    lists_until: datetime | None
    revoked: datetime | None
    seen: datetime | None
    problem: str | None

    def condition(self, now: datetime) -> str:
        """Return ``broken``, ``revoked``, ``expired``, ``due`` or ``ok``."""
        if self.certificate is None or self.problem is not None:
            return "broken"
        if self.revoked is not None:
            return "revoked"
        if now > self.certificate.not_valid_after_utc:
            return "expired"
        lists_ended = self.lists_until is not None and now > self.lists_until
        return "due" if now >= renewal_time(self.certificate) or lists_ended else "ok"

    def is_live(self, now: datetime) -> bool:
        """Return whether anybody may still be convinced by its certificate."""
        return self.certificate is not None and self.revoked is None and now <= self.certificate.not_valid_after_utc


def node_states(directory: Path, trust: Trust | None) -> list[NodeState]:
    """Return the state of every node that the store at *directory* knows, by name; *trust* is the store's, if it has one."""
    return [node_state(directory, trust, node) for node in known_nodes(directory)]


def node_state(directory: Path, trust: Trust | None, node: str) -> NodeState:
    """Return the state of one node. What cannot be read is a ``problem``, not an error."""
    try:
        if store.current_version(store.node_directory(directory, node)) is not None:
            return _here(directory, trust, node)
        return _elsewhere(directory, trust, node)
    except (ValidationError, OSError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        empty: frozenset[str] = frozenset()
        return NodeState(node, True, None, "", None, empty, empty, None, None, None, None, text)


def _here(directory: Path, trust: Trust | None, node: str) -> NodeState:
    material = read_material(store.node_directory(directory, node))
    certificate = load_certificates(split_pem(material.chain_pem, store.CERTIFICATE))[0]
    roots = load_certificates(split_pem(material.bundle_pem, store.BUNDLE))
    lists = [load_crl(block) for block in split_pem(material.crl_pem, store.CRL)] if material.crl_pem else []
    ends = [crl.next_update_utc for crl in lists if crl.next_update_utc is not None]
    issuer = None if trust is None else trust.issuer_of(certificate)
    return NodeState(
        node,
        True,
        certificate,
        _uri(certificate),
        None if issuer is None else issuer.generation,
        frozenset(map(sha256, roots)),
        frozenset(crl.issuer.rfc4514_string() for crl in lists),
        min((crl.last_update_utc for crl in lists), default=None),
        min(ends, default=None),
        _revoked(certificate, trust, lists),
        None,
        None,
    )


def _elsewhere(directory: Path, trust: Trust | None, node: str) -> NodeState:
    issued, shown = read_issued(directory, node), read_shown(directory, node)
    certificate = next((item for item in issued if shown is not None and item.serial_number == shown.serial), None)
    if certificate is None and issued:
        certificate = issued[-1]
    issuer = None if trust is None or certificate is None else trust.issuer_of(certificate)
    return NodeState(
        node,
        False,
        certificate,
        "" if certificate is None else _uri(certificate),
        None if issuer is None else issuer.generation,
        frozenset() if shown is None else shown.roots,
        frozenset() if shown is None else shown.lists,
        None,
        None,
        None if certificate is None else _revoked(certificate, trust, ()),
        None if shown is None else shown.at,
        None if certificate is not None else "nothing of what was issued to it is recorded",
    )


def _revoked(
    certificate: x509.Certificate, trust: Trust | None, lists: Iterable[x509.CertificateRevocationList]
) -> datetime | None:
    issuer = None if trust is None else trust.issuer_of(certificate)
    own = [crl for crl in lists if crl.issuer == certificate.issuer]
    for crl in [*own, *([] if issuer is None else [issuer.crl])]:
        if (since := revoked_serials(crl).get(certificate.serial_number)) is not None:
            return since
    return None


def _uri(certificate: x509.Certificate) -> str:
    return next(iter(uris_of(certificate)), "")
