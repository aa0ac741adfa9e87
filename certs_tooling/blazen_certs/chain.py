"""From a leaf to a trusted CA (RFC 5280, section 6), as far as a mesh needs it: strict, short, and nothing from the network.

``cryptography.x509.verification`` refuses every chain with a name constraint on URIs, which is what keeps one region's CA from
minting another region's identities. So the path is walked here; signatures are its library's, and tests compare the verdicts
with OpenSSL's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from blazen_certs.facts import dns_names_of, extension, is_ca, name_text, time_text, uris_of

__all__ = ["ChainError", "find_chain", "names_forbidden_by"]

_MAX_CAS = 5  # Envoy's own limit is larger; no authority of a mesh needs more
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512, type(None))  # Ed25519 says none
_KNOWN_CRITICAL = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.NameConstraints,
)


class ChainError(Exception):
    """There is no chain; the text says what broke the likeliest one."""


def find_chain(
    leaf: x509.Certificate,
    between: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    at: datetime,
    names: bool = True,
) -> list[x509.Certificate]:
    """Return the chain from *leaf* to one of *anchors*, both included.

    Args:
        leaf: The certificate in question.
        between: CAs that were sent along with it.
        anchors: The trusted CAs.
        at: The moment to check the CAs for, timezone-aware. The leaf's own dates are not looked at.
        names: Whether name constraints count. Only who wants to say what is wrong turns them off.

    Raises:
        ChainError: There is none.
    """
    if leaf in anchors:
        raise ChainError("the bundle trusts the certificate itself, not its CA")
    problems: list[str] = []
    chain = _climb([leaf], between, anchors, at, names, problems)
    if chain is not None:
        return chain
    top = between[-1] if between else leaf
    missing = f"issued by {name_text(top.issuer)}, which is not in the bundle"
    raise ChainError(problems[0] if problems else missing)


def names_forbidden_by(ca: x509.Certificate, certificate: x509.Certificate) -> str | None:
    """Return the first name of *certificate* that *ca*'s name constraints do not admit, and why; None where all are."""
    found = extension(ca, x509.NameConstraints)
    if found is None:
        return None
    permitted, excluded = found.value.permitted_subtrees or [], found.value.excluded_subtrees or []
    kinds = (x509.UniformResourceIdentifier, x509.DNSName)
    if found.critical and any(not isinstance(name, kinds) for name in (*permitted, *excluded)):
        return f"{name_text(ca.subject)} has name constraints of a kind that is not known here"
    for kind, names, matches in (
        (x509.UniformResourceIdentifier, uris_of(certificate), _uri_within),
        (x509.DNSName, dns_names_of(certificate), _dns_within),
    ):
        allowed = [name.value for name in permitted if isinstance(name, kind)]
        denied = [name.value for name in excluded if isinstance(name, kind)]
        for name in names:
            if (allowed and not any(matches(name, rule) for rule in allowed)) or any(matches(name, rule) for rule in denied):
                return f"{name} is outside what {name_text(ca.subject)} may issue: {', '.join(allowed or denied)}"
    return None


def _climb(
    path: list[x509.Certificate],
    between: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    at: datetime,
    names: bool,
    problems: list[str],
) -> list[x509.Certificate] | None:
    if len(path) > _MAX_CAS:
        return None
    for ca in _named(path[-1], (*anchors, *between)):
        if ca in path:
            continue
        if (problem := _problem(ca, path, at) or (_forbidden(ca, path) if names else None)) is not None:
            problems.append(problem)
            continue
        longer = [*path, ca]
        found = longer if ca in anchors else _climb(longer, between, anchors, at, names, problems)
        if found is not None:
            return found
    return None


def _named(certificate: x509.Certificate, cas: Iterable[x509.Certificate]) -> Iterable[x509.Certificate]:
    return [ca for ca in cas if ca.subject == certificate.issuer]


def _problem(ca: x509.Certificate, path: Sequence[x509.Certificate], at: datetime) -> str | None:
    """Return why *ca* may not be what issued the last of *path*."""
    name, certificate = name_text(ca.subject), path[-1]
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return f"does not lead to {name} of the bundle: the signature is not that CA's"
    if not isinstance(certificate.signature_hash_algorithm, _HASHES):
        return f"signed with {certificate.signature_hash_algorithm.name}, which nobody trusts any more"
    if not is_ca(ca):
        return f"{name} is not a CA"
    if not ca.not_valid_before_utc <= at <= ca.not_valid_after_utc:
        return f"the CA {name} is valid from {time_text(ca.not_valid_before_utc)} to {time_text(ca.not_valid_after_utc)} only"
    constraints = extension(ca, x509.BasicConstraints)
    limit = None if constraints is None else constraints.value.path_length
    if limit is not None and len(path) - 1 > limit:
        return f"the CA {name} allows {limit} CAs below it, and there are {len(path) - 1}"
    for item in (ca, path[0]):
        if any(part.critical and not isinstance(part.value, _KNOWN_CRITICAL) for part in item.extensions):
            return f"{name_text(item.subject)} has a critical extension that is not known here"
    return None


def _forbidden(ca: x509.Certificate, path: Sequence[x509.Certificate]) -> str | None:
    return next((text for below in path if (text := names_forbidden_by(ca, below)) is not None), None)


def _uri_within(uri: str, rule: str) -> bool:
    """RFC 5280, section 4.2.1.10: a host stands for itself alone; with a leading dot, for what is below it."""
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return False
    if host is None:
        return False
    return host.endswith(rule.lower()) if rule.startswith(".") else host == rule.lower()


def _dns_within(name: str, rule: str) -> bool:
    rule, name = rule.lower().lstrip("."), name.lower()
    return not rule or name == rule or name.endswith(f".{rule}")
