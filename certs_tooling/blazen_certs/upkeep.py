"""Keeping identities good: renew what is due, bring new bundles and lists to every node, revoke. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.codes import CodeBook
from blazen_certs.crl import revoked_serials
from blazen_certs.errors import CertificateError, StoreError
from blazen_certs.facts import dns_names_of, time_text
from blazen_certs.issued import known_nodes, read_issued, record_locked
from blazen_certs.issuing import remove_ended, sign_list, sign_lists
from blazen_certs.node_state import NodeState, node_state
from blazen_certs.profile import DEFAULT_LEAF_LIFETIME, check_time
from blazen_certs.publish import publish_identity, read_material
from blazen_certs.renewal import asked_lifetime, renewal_time
from blazen_certs.trust import Issuer, Trust
from blazen_certs.verify import verify_identity
from blazen_peer.errors import BlazenError
from blazen_peer.identity import check_node_id

__all__ = [
    "Kept",
    "Revocation",
    "keep_lists",
    "keep_node",
    "keep_nodes",
    "local_nodes",
    "revoke_node",
    "revoke_serial",
    "why_due",
]


@dataclass(frozen=True, slots=True)
class Kept:
    """What was done for one node.

    Attributes:
        node: Its id.
        action: ``renewed`` (new key and certificate), ``republished`` (the same, beside a new bundle or new lists), ``kept``,
            ``revoked`` (it gets nothing new) or ``failed``.
        detail: Why, one line.
        version: What is current now; None where nothing is.
        certificate: What it shows now; None where that is not known.
    """

    node: str
    action: str
    detail: str
    version: int | None
    certificate: x509.Certificate | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation did.

    Attributes:
        revoked: The certificates that are on a list now, and were not before.
        already: Those that had been.
        published: What became of the new lists at each node of this store.
        codes: How many join codes of the node were ended.
    """

    revoked: tuple[x509.Certificate, ...]
    already: tuple[x509.Certificate, ...]
    published: tuple[Kept, ...]
    codes: int = 0


def local_nodes(authority: Authority) -> list[str]:
    """Return the nodes whose identity is in the store, by name."""
    return [
        node
        for node in known_nodes(authority.directory)
        if store.current_version(store.node_directory(authority.directory, node)) is not None
    ]


def why_due(state: NodeState, trust: Trust, *, now: datetime) -> str | None:
    """Return why the node needs a new certificate at *now*; None where it needs none."""
    if state.problem is not None or state.certificate is None:
        return state.problem or "it has none"
    issuer = trust.issuer_of(state.certificate)
    if issuer is None:
        return "its certificate comes from a CA that is not trusted any more"
    if issuer.generation != trust.generation:
        return "the root is being replaced"
    due = renewal_time(state.certificate)
    return f"due since {time_text(due)}" if now >= due else None


def keep_lists(authority: Authority, *, now: datetime, force: bool = False) -> list[Issuer]:
    """Sign again the lists that are due, or all of them; remove issuing CAs that ended. Return whose lists were signed.

    Raises: as ``issuing.sign_lists``.
    """
    trust = authority.trust()
    remove_ended(trust, now=now)
    return sign_lists(trust, now=check_time(now), force=force)


def keep_node(
    authority: Authority, node_id: str, *, now: datetime, force: bool = False, lifetime: timedelta | None = None
) -> Kept:
    """Give the node what it lacks: a new certificate where that is due, otherwise the present bundle and lists.

    Args:
        authority: The store.
        node_id: A node whose identity is in it.
        now: Current time, timezone-aware.
        force: Renew even if it is not due.
        lifetime: Of a new certificate; None keeps the old one's.

    Raises:
        StoreError: There is no such node here, or the issuing CA's key is not on this machine.
        CertificateError: A finished certificate failed its checks; what was current still is.
        OSError: The disk, or the rights, do not allow it; what was current still is.
    """
    now = check_time(now)
    if store.current_version(store.node_directory(authority.directory, check_node_id(node_id))) is None:
        raise StoreError(f"{node_id} has no identity in {authority.directory}: make one with blazen-certs issue {node_id}")
    with record_locked(authority.directory, node_id):  # or a revocation could slip in between the look and what is published
        return _keep_node(authority, node_id, authority.fresh_trust(now), now=now, force=force, lifetime=lifetime)


def keep_nodes(authority: Authority, nodes: Iterable[str], *, now: datetime, force: bool = False) -> list[Kept]:
    """Do ``keep_node`` for each of *nodes*; a failure at one is its ``failed``, and does not keep the others."""
    done = []
    for node in nodes:
        try:
            done.append(keep_node(authority, node, now=now, force=force))
        except BlazenError as error:
            done.append(Kept(node, "failed", str(error), None, None))
        except OSError as error:
            done.append(Kept(node, "failed", f"{error.filename or 'input or output'}: {error.strerror}", None, None))
    return done


def revoke_node(authority: Authority, node_id: str, *, now: datetime) -> Revocation:
    """Revoke every certificate of the node that is still good, and bring the new list to every node of the store.

    Its join codes end too, those of a node that has not joined yet among them.

    Raises:
        StoreError: There is no such node and no code for it, or the key of its issuing CA is not on this machine.
        CertificateError: A finished list failed its checks; the old one stands.
        OSError: The disk, or the rights, do not allow it.
    """
    codes = CodeBook.of(authority.directory).end(check_node_id(node_id), now=now)
    # A record without anything in it may be that of a node which is joining now: it is waited for.
    if node_id not in known_nodes(authority.directory) and not store.issued_directory(authority.directory, node_id).is_dir():
        if codes:
            return Revocation((), (), (), codes)
        raise StoreError(f"nothing was ever issued to {node_id} from {authority.directory}: see blazen-certs status")
    with record_locked(authority.directory, node_id):
        issued = read_issued(authority.directory, node_id)
        good = [certificate for certificate in issued if now <= certificate.not_valid_after_utc]
        listed = _list_revoked(authority, good, now=check_time(now))
    return replace(listed, published=tuple(keep_nodes(authority, local_nodes(authority), now=now)), codes=codes)


def revoke_serial(authority: Authority, serial: int, *, now: datetime) -> Revocation:
    """Revoke the one certificate with that serial number, and bring the new list to every node of the store.

    Raises: as ``revoke_node``; ``StoreError`` too where there is no such certificate.
    """
    for node in known_nodes(authority.directory):
        found = [item for item in read_issued(authority.directory, node) if item.serial_number == serial]
        if found:
            with record_locked(authority.directory, node):  # or whoever shows it now could still get the next one
                listed = _list_revoked(authority, found, now=check_time(now))
            return replace(listed, published=tuple(keep_nodes(authority, local_nodes(authority), now=now)))
    raise StoreError(f"no certificate {serial:x} was issued from {authority.directory}, or it ended long ago")


def _list_revoked(authority: Authority, certificates: Iterable[x509.Certificate], *, now: datetime) -> Revocation:
    trust = authority.trust()
    fresh: dict[int, list[x509.Certificate]] = {}
    already = []
    for certificate in certificates:
        place = next((index for index, ca in enumerate(trust.issuers) if ca.certificate.subject == certificate.issuer), None)
        if place is None:
            continue  # its CA is not trusted any more, and so nobody trusts it
        if certificate.serial_number in revoked_serials(trust.issuers[place].crl):
            already.append(certificate)
        else:
            fresh.setdefault(place, []).append(certificate)
    for place, found in fresh.items():
        sign_list(trust.issuers[place], now=now, revoke={certificate.serial_number: now for certificate in found})
    return Revocation(tuple(certificate for found in fresh.values() for certificate in found), tuple(already), ())


def _keep_node(
    authority: Authority, node_id: str, trust: Trust, *, now: datetime, force: bool, lifetime: timedelta | None
) -> Kept:
    state = node_state(authority.directory, trust, node_id)
    if state.revoked is not None:
        published = None
        with suppress(CertificateError):  # its certificate ended, or its root is dropped: then nothing has to come to it
            published = _bring_trust(authority, node_id, trust, now)
        detail = f"revoked since {time_text(state.revoked)}: to let it in again, blazen-certs issue {node_id}"
        return Kept(node_id, "revoked", detail, published or _version(authority, node_id), state.certificate)
    reason = why_due(state, trust, now=now) or _wrong(authority, node_id, trust, now) or ("asked for" if force else None)
    if reason is None:
        try:
            published = _bring_trust(authority, node_id, trust, now)
        except CertificateError as error:
            reason = str(error)  # what is there is not right: a new one takes its place, never an older version
        else:
            due = f"due {time_text(renewal_time(state.certificate))}" if state.certificate is not None else ""
            return Kept(
                node_id,
                "kept" if published is None else "republished",
                due,
                published or _version(authority, node_id),
                state.certificate,
            )
    last = state.certificate or next(reversed(read_issued(authority.directory, node_id)), None)
    issuer = None if last is None else trust.issuer_of(last)
    if lifetime is None:
        lifetime = (
            DEFAULT_LEAF_LIFETIME if last is None else asked_lifetime(last, None if issuer is None else issuer.certificate)
        )
    names = () if last is None else tuple(dns_names_of(last))
    issued = authority.issue(node_id, now=now, lifetime=lifetime, dns_names=names)
    return Kept(node_id, "renewed", reason, issued.version, issued.certificate)


def _wrong(authority: Authority, node_id: str, trust: Trust, now: datetime) -> str | None:
    """Return what is wrong with the node's files that new lists and a new bundle beside them would not put right."""
    report = verify_identity(store.node_directory(authority.directory, node_id), at=now, node_id=node_id, trust=trust)
    brought = ("bundle", "lists", store.CRL)
    return next(
        (f"{check.name}: {check.detail}" for check in report.checks if not check.ok and check.name not in brought), None
    )


def _version(authority: Authority, node_id: str) -> int | None:
    return store.current_version(store.node_directory(authority.directory, node_id))


def _bring_trust(authority: Authority, node_id: str, trust: Trust, now: datetime) -> int | None:
    """Publish the present bundle and lists beside the node's certificate and key; None where it has them already."""
    path = store.node_directory(authority.directory, node_id)
    material = read_material(path)
    if (material.bundle_pem, material.crl_pem) == (trust.bundle_pem, trust.crl_pem):
        return None
    return publish_identity(
        path,
        material.beside(bundle_pem=trust.bundle_pem, crl_pem=trust.crl_pem),
        node_id=node_id,
        trust_domain=None,
        now=now,
        roots=trust.root_certificates,
        issuers=[issuer.certificate for issuer in trust.issuers_at(now)],
        even_revoked=True,
    )
