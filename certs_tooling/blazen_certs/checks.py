"""Is a finished certificate right? One place, asked before anything is written and again by ``blazen-certs verify``.

Whether a chain leads to a trusted CA is ``chain``'s business. What a mesh asks beyond that (one SPIFFE name, purposes, dates,
the key, not revoked) is judged here, each as a ``Check`` of its own, so that one wrong thing makes one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from blazen_certs.chain import ChainError, find_chain
from blazen_certs.crl import is_revoked, list_of, list_problem, revoked_serials
from blazen_certs.errors import CertificateError
from blazen_certs.facts import (
    dns_names_of,
    extension,
    is_ca,
    key_type_text,
    name_text,
    public_key_sha256,
    purposes_of,
    time_text,
    timespan_text,
    uris_of,
)
from blazen_certs.profile import BACKDATING, LEAF_PURPOSES, MAX_LEAF_LIFETIME, trust_domain_uri
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

__all__ = [
    "Check",
    "check_bundle",
    "check_issuing",
    "check_leaf",
    "check_lists",
    "check_root",
    "require",
    "trust_domain_of",
]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: A stable word, for programs.
        ok: Whether it holds.
        detail: What was found, one line.
        fix: What to do; always empty when it holds.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.ok:
            object.__setattr__(self, "fix", "")


def require(checks: Sequence[Check]) -> None:
    """Raise ``CertificateError`` with those of *checks* that failed, if any did."""
    if failed := [check for check in checks if not check.ok]:
        raise CertificateError(failed)


def trust_domain_of(ca: x509.Certificate) -> str:
    """Return the trust domain that a CA's certificate is for.

    Raises:
        ValidationError: It does not hold exactly one URI, ``spiffe://<trust domain>``.
    """
    uris = uris_of(ca)
    if len(uris) == 1 and uris[0].startswith("spiffe://"):
        return PeerId(uris[0].removeprefix("spiffe://"), "any").trust_domain
    raise ValidationError(f"the CA {name_text(ca.subject)} does not say its trust domain: it must hold one URI, spiffe://NAME")


def check_root(ca: x509.Certificate, *, trust_domain: str, public_key: PublicKeyTypes) -> list[Check]:
    """Return every check of a root certificate but that of its dates; *public_key* is its key's."""
    fix = "make a CA with blazen-certs init"
    try:
        ca.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        signature = Check("signature", False, "it is not signed by its own key", fix)
    else:
        signature = Check("signature", True, "signed by its own key")
    uris = uris_of(ca)
    named = uris == [trust_domain_uri(trust_domain)]
    return [
        Check("authority", is_ca(ca), "may sign certificates" if is_ca(ca) else "it is not a CA's certificate", fix),
        Check("name", named, f"its names are {', '.join(uris) or 'none'}, expected {trust_domain_uri(trust_domain)}", fix),
        signature,
        _key_type(ca, fix),
        _key_match(ca, public_key, fix),
    ]


def check_issuing(
    ca: x509.Certificate, root: x509.Certificate, *, trust_domain: str, public_key: PublicKeyTypes | None
) -> list[Check]:
    """Return every check of an issuing CA's certificate but that of its dates.

    Args:
        ca: The issuing CA.
        root: What issued it.
        trust_domain: The issuing CA's own.
        public_key: That of its key; None where only the certificate is there.
    """
    fix = "make it anew with blazen-certs renew --issuing"
    uris, own = uris_of(ca), trust_domain_uri(trust_domain)
    try:
        find_chain(ca, [], [root], at=ca.not_valid_before_utc)
    except ChainError as error:
        chain = Check("chain", False, str(error), fix)
    else:
        chain = Check("chain", True, f"issued by {name_text(root.subject)}")
    constraints, basic = extension(ca, x509.NameConstraints), extension(ca, x509.BasicConstraints)
    bound = (
        constraints is not None
        and constraints.critical
        and constraints.value.permitted_subtrees == [x509.UniformResourceIdentifier(trust_domain)]
    )
    within = basic is not None and basic.value.path_length == 0 and ca.not_valid_after_utc <= root.not_valid_after_utc
    checks = [
        Check("authority", is_ca(ca), "may sign certificates" if is_ca(ca) else "it is not a CA's certificate", fix),
        Check("name", uris == [own], f"its names are {', '.join(uris) or 'none'}, expected {own}", fix),
        Check("constraint", bound, f"may name {trust_domain} only" if bound else f"is not bound to {trust_domain}", fix),
        Check(
            "limits", within, "no CA below it, within its root's life" if within else "may outlive its root or make CAs", fix
        ),
        chain,
        _key_type(ca, fix),
    ]
    return checks if public_key is None else [*checks, _key_match(ca, public_key, fix)]


def check_bundle(anchors: Sequence[x509.Certificate], *, must_hold: Sequence[x509.Certificate], fix: str) -> Check:
    """Return whether *anchors* are CAs, and all of *must_hold* are among them."""
    for anchor in anchors:
        if not is_ca(anchor):
            return Check("bundle", False, f"{name_text(anchor.subject)} in it is not a CA", fix)
    for ca in must_hold:
        if ca not in anchors:
            return Check("bundle", False, f"the root of this store, {name_text(ca.subject)}, is not in it", fix)
    return Check("bundle", True, "trusts " + " and ".join(name_text(anchor.subject) for anchor in anchors))


def check_lists(
    lists: Sequence[x509.CertificateRevocationList], issuers: Sequence[x509.Certificate], *, at: datetime, fix: str
) -> Check:
    """Return whether each of *issuers* has a list among *lists* that is signed by it and good at the moment *at*.

    A sidecar that checks revocation refuses everybody whose CA's list it lacks, or finds ended.
    """
    counted, until = 0, None
    for ca in issuers:
        crl = list_of(ca, list(lists))
        if crl is None:
            return Check("lists", False, f"there is none of {name_text(ca.subject)}, whose nodes are all refused", fix)
        if (problem := list_problem(crl, ca, at=at)) is not None:
            return Check("lists", False, f"that of {name_text(ca.subject)}: {problem}", fix)
        counted += len(revoked_serials(crl))
        end = crl.next_update_utc
        until = end if until is None or (end is not None and end < until) else until
    if until is None:
        return Check("lists", True, "none is needed")
    return Check("lists", True, f"{counted} revoked; good until {time_text(until)}, {timespan_text(until - at)} left")


def check_leaf(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    at: datetime,
    node_id: str | None,
    trust_domain: str | None,
    public_key: PublicKeyTypes | None,
    fix: str,
    lists: Sequence[x509.CertificateRevocationList] | None = None,
) -> list[Check]:
    """Return every check of a node's certificate.

    Args:
        chain: The leaf, then the CAs between it and a trusted one.
        anchors: The trusted CAs.
        at: The moment to check for, timezone-aware.
        node_id, trust_domain: Whose name it must be; None takes any.
        public_key: That of the node's key, which must match; None where there is none to compare.
        fix: What to do about a failure: how to get a new certificate.
        lists: The revocation lists; None where revocation is not looked at.
    """
    leaf = chain[0]
    issuer, chain_checks = _chain(chain, anchors, at, fix)
    checks = [
        *chain_checks,
        _name(leaf, node_id, trust_domain, fix),
        _critical_san(leaf, fix),
        _dns(leaf, fix),
        _purpose(leaf, fix),
        _dates(leaf, at, fix),
        _lifetime(leaf, issuer, fix),
        _key_type(leaf, fix),
    ]
    if public_key is not None:
        checks.append(_key_match(leaf, public_key, fix))
    if lists is not None:
        checks.append(_revocation(leaf, lists, fix))
    return checks


def _chain(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], at: datetime, fix: str
) -> tuple[x509.Certificate | None, list[Check]]:
    """Return the leaf's issuer (None when no chain holds), and the checks of its chain and of what its CAs may name."""
    leaf = chain[0]
    # Dates are the business of another check: outside the leaf's life, the chain is judged for the nearest moment within it.
    moment = min(max(at, leaf.not_valid_before_utc), leaf.not_valid_after_utc)
    names = Check("constraint", True, "its CA is bound to no trust domain")
    try:
        found = find_chain(leaf, chain[1:], anchors, at=moment)
    except ChainError as error:
        try:
            found = find_chain(leaf, chain[1:], anchors, at=moment, names=False)
        except ChainError:
            return None, [Check("chain", False, str(error), fix)]
        names = Check("constraint", False, str(error), fix)
    bound = extension(found[1], x509.NameConstraints)
    if names.ok and bound is not None:
        permitted = ", ".join(str(name.value) for name in bound.value.permitted_subtrees or []) or "everything"
        names = Check("constraint", True, f"its CA may name {permitted} only")
    return found[1], [Check("chain", True, f"issued by {' <- '.join(name_text(ca.subject) for ca in found[1:])}"), names]


def _revocation(leaf: x509.Certificate, lists: Sequence[x509.CertificateRevocationList], fix: str) -> Check:
    since = next((revoked_serials(crl)[leaf.serial_number] for crl in lists if _lists(crl, leaf)), None)
    if since is not None:
        return Check("revocation", False, f"revoked since {time_text(since)}", fix)
    return Check("revocation", True, "not revoked")


def _lists(crl: x509.CertificateRevocationList, leaf: x509.Certificate) -> bool:
    return crl.issuer == leaf.issuer and is_revoked(leaf.serial_number, crl)


def _name(leaf: x509.Certificate, node_id: str | None, trust_domain: str | None, fix: str) -> Check:
    uris = uris_of(leaf)
    if len(uris) != 1:
        return Check("name", False, f"exactly one URI must name the node, found {len(uris)}: {', '.join(uris) or 'none'}", fix)
    try:
        peer = PeerId.parse(uris[0])
    except ValidationError as error:
        return Check("name", False, str(error), fix)
    wanted = PeerId(trust_domain or peer.trust_domain, node_id or peer.node_id)
    if peer != wanted:
        return Check("name", False, f"it is {peer}, expected {wanted}", fix)
    return Check("name", True, str(peer))


def _critical_san(leaf: x509.Certificate, fix: str) -> Check:
    san = extension(leaf, x509.SubjectAlternativeName)
    if list(leaf.subject):  # others' authorities write one; nothing here reads it
        return Check("subject", True, f"{name_text(leaf.subject)}, which nobody reads")
    if san is None or not san.critical:  # RFC 5280, section 4.2.1.6
        return Check("subject", False, "the subject is empty and the alternative names are not critical", fix)
    return Check("subject", True, "empty, and the alternative names are critical")


def _dns(leaf: x509.Certificate, fix: str) -> Check:
    names = dns_names_of(leaf)
    return Check(
        "dns", bool(names), ", ".join(names) or "no DNS name, which the caller's sidecar sends as SNI", "" if names else fix
    )


def _purpose(leaf: x509.Certificate, fix: str) -> Check:
    usage, extended = extension(leaf, x509.KeyUsage), extension(leaf, x509.ExtendedKeyUsage)
    constraints = extension(leaf, x509.BasicConstraints)
    wrong = []
    if constraints is not None and constraints.value.ca:
        wrong.append("it is a CA's certificate")
    if usage is None or not usage.critical or not usage.value.digital_signature:
        wrong.append("critical digitalSignature is missing")
    if usage is not None and (usage.value.key_cert_sign or usage.value.crl_sign):  # X.509-SVID, section 4.3
        wrong.append("it may sign certificates or CRLs")
    if extended is None or any(purpose not in extended.value for purpose in LEAF_PURPOSES):
        wrong.append("serverAuth and clientAuth must both be there (a sidecar is both)")
    return Check("purpose", not wrong, "; ".join(wrong) or ", ".join(purposes_of(leaf)), fix)


def _dates(leaf: x509.Certificate, at: datetime, fix: str) -> Check:
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if at < start:
        detail = f"not valid yet: starts {time_text(start)}, in {timespan_text(start - at)}"
        return Check("dates", False, detail, f"compare the clocks of the two machines, or {fix}")
    if at > end:
        return Check("dates", False, f"expired {time_text(end)}, {timespan_text(at - end)} before", fix)
    return Check("dates", True, f"until {time_text(end)}, {timespan_text(end - at)} left")


def _lifetime(leaf: x509.Certificate, issuer: x509.Certificate | None, fix: str) -> Check:
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if end - start > MAX_LEAF_LIFETIME + BACKDATING:
        return Check("lifetime", False, f"{timespan_text(end - start)}, longer than {MAX_LEAF_LIFETIME.days} days", fix)
    if issuer is not None and not issuer.not_valid_before_utc <= start <= end <= issuer.not_valid_after_utc:
        return Check("lifetime", False, f"outside its issuer's life, which ends {time_text(issuer.not_valid_after_utc)}", fix)
    return Check("lifetime", True, timespan_text(end - start) + (", within its issuer's" if issuer is not None else ""))


def _key_type(certificate: x509.Certificate, fix: str) -> Check:
    kind = key_type_text(certificate.public_key())
    ok = kind == "P-256"
    return Check("key-type", ok, kind if ok else f"{kind}; a mesh uses P-256, which every sidecar accepts", fix)


def _key_match(certificate: x509.Certificate, public_key: PublicKeyTypes, fix: str) -> Check:
    ok = public_key_sha256(certificate.public_key()) == public_key_sha256(public_key)
    return Check("key", ok, "the private key is the certificate's" if ok else "the private key is another's", fix)
