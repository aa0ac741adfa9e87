"""The identity that a sidecar reads: is it there, is it whole, which one is it. Made by ``blazen-certs``, SPIRE or step-ca."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

__all__ = ["Identity", "IdentityFileError", "read_identity"]

CERTIFICATE, KEY, BUNDLE, CRL = "tls.crt", "tls.key", "bundle.crt", "crl.pem"
T = TypeVar("T")


class IdentityFileError(Exception):
    """The identity cannot be used; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a directory's ``current`` holds.

    Attributes:
        serial: The leaf's serial number.
        expires: When the leaf ends.
        digest: Of all of the files' bytes: another version, another digest.
    """

    serial: int
    expires: datetime
    digest: str


def read_identity(directory: Path, *, name: str, crl: bool, now: datetime) -> Identity:
    """Return the identity in ``<directory>/current``, which is about to be given to Envoy.

    Whether Envoy could load it is looked at, and whose it is; the chain and the revocations are for ``blazen-certs verify``.

    Args:
        directory: The directory that holds the link ``current``.
        name: The SPIFFE id that the leaf must carry.
        crl: Whether revocation lists must be there too.
        now: Current time, timezone-aware.

    Raises:
        IdentityFileError: A file is missing or does not decode, the key is another's, the name differs, or the time is not
            within the leaf's life.
    """
    names = [CERTIFICATE, KEY, BUNDLE, *([CRL] if crl else [])]
    files: dict[str, bytes] = {}
    for file in names:
        try:
            files[file] = (directory / "current" / file).read_bytes()
        except OSError as error:
            raise IdentityFileError(f"no {file} in {directory / 'current'}: {error.strerror}") from None
    leaf = _decoded(CERTIFICATE, x509.load_pem_x509_certificates, files)[0]
    key = _decoded(KEY, lambda data: load_pem_private_key(data, None), files)
    _decoded(BUNDLE, x509.load_pem_x509_certificates, files)
    if crl:
        _decoded(CRL, x509.load_pem_x509_crl, files)
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise IdentityFileError(f"{KEY} is not the key of {CERTIFICATE}")
    if name not in (found := _uris(leaf)):
        raise IdentityFileError(f"{CERTIFICATE} is for {', '.join(found) or 'nobody'}, and this node is {name}")
    if now < leaf.not_valid_before_utc:
        raise IdentityFileError(f"{CERTIFICATE} begins at {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}: is this clock right?")
    if now >= leaf.not_valid_after_utc:
        raise IdentityFileError(f"{CERTIFICATE} expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    digest = sha256(b"".join(sha256(files[file]).digest() for file in names)).hexdigest()
    return Identity(leaf.serial_number, leaf.not_valid_after_utc, digest)


def _decoded(file: str, load: Callable[[bytes], T], files: Mapping[str, bytes]) -> T:
    try:
        return load(files[file])
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityFileError(f"{file} does not decode: {str(error).partition('.')[0]}") from None


def _uris(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
