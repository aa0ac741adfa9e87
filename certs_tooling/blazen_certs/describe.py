"""What is in a PEM file, as plain values: what ``blazen-certs inspect`` shows. Key material never comes out of here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509

from blazen_certs.facts import (
    dns_names_of,
    extension,
    is_ca,
    key_type_text,
    name_text,
    public_key_sha256,
    purposes_of,
    sha256,
    time_text,
    uris_of,
)
from blazen_certs.pem import PemBlock, is_encrypted, load_certificate, load_crl, load_private_key, load_public_key, load_request
from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

__all__ = ["describe"]

_SAID_BY_THE_KEY = "EC PARAMETERS"  # openssl writes such a block in front of a key


def describe(blocks: Iterable[PemBlock], *, now: datetime) -> list[dict[str, Any]]:
    """Return what each of *blocks* holds, as a JSON object: ``kind``, ``source``, and what that kind has.

    ``kind`` is ``certificate``, ``private-key``, ``public-key``, ``request`` or ``crl``. Times are RFC 3339 texts;
    ``seconds_left``, from *now*, is negative once it is over; serials and hashes are lower-case hex.

    Raises:
        ValidationError: One does not decode, or its label is none that is known here.
    """
    return [{"source": block.where, **_describe(block, now)} for block in blocks if block.label != _SAID_BY_THE_KEY]


def _describe(block: PemBlock, now: datetime) -> dict[str, Any]:
    match block.label:
        case "CERTIFICATE":
            return _certificate(load_certificate(block), now)
        case "X509 CRL":
            return _crl(load_crl(block), now)
        case "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST":
            request = load_request(block)
            return {"kind": "request", "subject": name_text(request.subject), **_names(request), **_key(request.public_key())}
        case "PUBLIC KEY":
            return {"kind": "public-key", **_key(load_public_key(block))}
        case "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" | "ENCRYPTED PRIVATE KEY":
            if is_encrypted(block):
                return {"kind": "private-key", "encrypted": True}
            return {"kind": "private-key", "encrypted": False, **_key(load_private_key(block).public_key())}
        case _:
            raise ValidationError(f"{block.where}: {block.label} is none of certificate, key, request or CRL")


def _certificate(certificate: x509.Certificate, now: datetime) -> dict[str, Any]:
    return {
        "kind": "certificate",
        "ca": is_ca(certificate),
        "subject": name_text(certificate.subject),
        "issuer": name_text(certificate.issuer),
        **_names(certificate),
        "serial": f"{certificate.serial_number:x}",
        "not_before": time_text(certificate.not_valid_before_utc),
        "not_after": time_text(certificate.not_valid_after_utc),
        "seconds_left": int((certificate.not_valid_after_utc - now).total_seconds()),
        "purposes": purposes_of(certificate),
        **_limits(certificate),
        **_key(certificate.public_key()),
        "sha256": sha256(certificate),
    }


def _limits(certificate: x509.Certificate) -> dict[str, Any]:
    """Return what a CA may issue: how many CAs below it (None: any number), and which names (absent: any)."""
    basic, names = extension(certificate, x509.BasicConstraints), extension(certificate, x509.NameConstraints)
    found: dict[str, Any] = {"path_length": basic.value.path_length} if basic is not None and basic.value.ca else {}
    if names is not None:
        found["may_name"] = [str(name.value) for name in names.value.permitted_subtrees or []]
        found["may_not_name"] = [str(name.value) for name in names.value.excluded_subtrees or []]
        found["names_critical"] = names.critical
    return found


def _crl(crl: x509.CertificateRevocationList, now: datetime) -> dict[str, Any]:
    following = crl.next_update_utc
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = None
    return {
        "kind": "crl",
        "issuer": name_text(crl.issuer),
        "number": number,
        "last_update": time_text(crl.last_update_utc),
        "next_update": None if following is None else time_text(following),
        "seconds_left": None if following is None else int((following - now).total_seconds()),
        "revoked": [{"serial": f"{entry.serial_number:x}", "since": time_text(entry.revocation_date_utc)} for entry in crl],
    }


def _names(item: x509.Certificate | x509.CertificateSigningRequest) -> dict[str, Any]:
    uris = uris_of(item)
    spiffe_id = uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else None  # with two, it has none (X.509-SVID, 2)
    return {"spiffe_id": spiffe_id, "uris": uris, "dns_names": dns_names_of(item)}


def _key(key: PublicKeyTypes) -> dict[str, Any]:
    return {"key_type": key_type_text(key), "public_key_sha256": public_key_sha256(key)}
