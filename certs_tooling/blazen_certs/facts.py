"""What stands in a certificate, read out as plain values and as text for people. Judges nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

__all__ = [
    "dns_names_of",
    "extension",
    "is_ca",
    "key_type_text",
    "name_text",
    "printable",
    "public_key_sha256",
    "purposes_of",
    "sha256",
    "time_text",
    "timespan_text",
    "uris_of",
]

_ExtensionType = TypeVar("_ExtensionType", bound=x509.ExtensionType)
_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "contentCommitment",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_EXTENDED_USAGES = {ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}


def extension(
    item: x509.Certificate | x509.CertificateSigningRequest, kind: type[_ExtensionType]
) -> x509.Extension[_ExtensionType] | None:
    """Return the extension of that *kind*, or None where there is none."""
    try:
        return item.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def uris_of(item: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the URIs among the alternative names."""
    san = extension(item, x509.SubjectAlternativeName)
    return [] if san is None else san.value.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names_of(item: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the DNS names among the alternative names."""
    san = extension(item, x509.SubjectAlternativeName)
    return [] if san is None else san.value.get_values_for_type(x509.DNSName)


def is_ca(certificate: x509.Certificate) -> bool:
    """Return whether the certificate says that it is a CA's, and may sign certificates."""
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.value.ca and usage is not None and usage.value.key_cert_sign


def purposes_of(item: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return key usages, then extended ones, under the names of RFC 5280; a dotted number where we know no name."""
    usage, extended = extension(item, x509.KeyUsage), extension(item, x509.ExtendedKeyUsage)
    purposes = [name for attribute, name in _USAGES.items() if usage is not None and getattr(usage.value, attribute)]
    return purposes + [_EXTENDED_USAGES.get(oid, oid.dotted_string) for oid in (extended.value if extended is not None else ())]


def name_text(name: x509.Name) -> str:
    """Return *name* in RFC 4514's form, or ``(empty)``."""
    return name.rfc4514_string() or "(empty)"


def key_type_text(key: PublicKeyTypes) -> str:
    """Return what kind of key it is: ``P-256``, ``RSA 2048``, ``Ed25519``."""
    match key:
        case ec.EllipticCurvePublicKey():
            return {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name, key.curve.name)
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
        case _:
            return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def public_key_sha256(key: PublicKeyTypes) -> str:
    """Return the SHA-256, in hex, of the key's SubjectPublicKeyInfo: equal for a certificate and its key."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def sha256(certificate: x509.Certificate) -> str:
    """Return the certificate's fingerprint, as Envoy writes it into ``Hash=`` of its identity header: lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def printable(text: str) -> str:
    """Return *text* with what is not printable escaped: a name in somebody's certificate must not steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def time_text(moment: datetime) -> str:
    """Return *moment* in UTC, as ``2026-11-23T13:00:00Z``."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def timespan_text(span: timedelta) -> str:
    """Return *span*, not negative, in its two largest fitting units: ``89 d 23 h``; below two days in hours."""
    seconds = int(span.total_seconds())
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days >= 730:
        return f"{days / 365.25:.1f} years"
    if days >= 2:
        return f"{days} d {hours} h"
    if days or hours:
        return f"{days * 24 + hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
