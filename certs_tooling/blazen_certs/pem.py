"""The one door for files that somebody else may have written: PEM in, typed values or ``ValidationError`` out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

__all__ = [
    "PemBlock",
    "certificates_pem",
    "is_encrypted",
    "load_certificate",
    "load_certificates",
    "load_crl",
    "load_encrypted_key",
    "load_private_key",
    "load_public_key",
    "load_request",
    "private_key_pem",
    "read_pem_file",
    "split_pem",
]

MAX_PEM_BYTES = 1 << 20  # a bundle of a thousand CAs fits
# Anywhere in a line: where a file cut in mid-line is followed by another, readers differ, and so it must be refused.
_LINE = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,64})-----")
_T = TypeVar("_T")
_UNDECODABLE = (
    ValueError,
    TypeError,
    OverflowError,
    Warning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class PemBlock:
    """One block of a PEM file, not decoded yet. ``label`` is what stands after BEGIN; ``where`` names file and line."""

    label: str
    text: bytes
    where: str

    def __repr__(self) -> str:
        return f"PemBlock(label={self.label!r}, where={self.where!r})"  # the text may be a private key


def split_pem(data: bytes, source: str) -> list[PemBlock]:
    """Return the blocks of *data*, at least one; text around them is let pass, as every reader of PEM does.

    Raises:
        ValidationError: There is no block, or one is cut short or wrongly nested. *source* names the file in the text.
    """
    blocks: list[PemBlock] = []
    opened: re.Match[bytes] | None = None
    for line in _LINE.finditer(data):
        if line[1] == b"BEGIN":
            if opened is not None:
                raise ValidationError(
                    f"{_where(data, opened.start(), source)}: {_label(opened)} has no END line; the file is damaged"
                )
            opened = line
        elif opened is None or opened[2] != line[2]:
            raise ValidationError(
                f"{_where(data, line.start(), source)}: END {_label(line)} has no BEGIN line; the file is damaged"
            )
        else:
            blocks.append(
                PemBlock(_label(line), data[opened.start() : line.end()] + b"\n", _where(data, opened.start(), source))
            )
            opened = None
    if opened is not None:
        raise ValidationError(
            f"{_where(data, opened.start(), source)}: {_label(opened)} has no END line; the file is cut short"
        )
    if not blocks:
        raise ValidationError(f"{source}: no PEM in it (no -----BEGIN line)" + ("; it is empty" if not data.strip() else ""))
    return blocks


def read_pem_file(path: Path) -> list[PemBlock]:
    """Return the blocks of the file at *path*.

    Raises:
        ValidationError: As ``split_pem``, or the file is larger than 1 MiB.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_PEM_BYTES + 1)
    if len(data) > MAX_PEM_BYTES:
        raise ValidationError(f"{path}: larger than 1 MiB, which is no certificate file")
    return split_pem(data, str(path))


def load_certificate(block: PemBlock) -> x509.Certificate:
    """Return the certificate in *block*, each part of it decoded once, so that none can fail later."""

    def load() -> x509.Certificate:
        certificate = x509.load_pem_x509_certificate(block.text)
        _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number)
        return certificate

    return _decode(block, ("CERTIFICATE",), load)


def load_certificates(blocks: Sequence[PemBlock]) -> list[x509.Certificate]:
    """Return the certificates of a file that must hold nothing else."""
    return [load_certificate(block) for block in blocks]


def is_encrypted(block: PemBlock) -> bool:
    """Return whether a private key's block is encrypted, in PKCS #8's way or in OpenSSL's older one."""
    return block.label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in block.text


def load_private_key(block: PemBlock) -> PrivateKeyTypes:
    """Return the unencrypted private key in *block*."""
    if is_encrypted(block):
        raise ValidationError(f"{block.where}: the private key is encrypted, which a sidecar cannot read")
    labels = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY")
    return _decode(block, labels, lambda: load_pem_private_key(block.text, password=None))


def load_encrypted_key(block: PemBlock, passphrase: bytes) -> PrivateKeyTypes:
    """Return the private key in *block*, which is encrypted with *passphrase*.

    Raises:
        ValidationError: The passphrase is not the one, or the block does not decode.
    """
    try:
        return load_pem_private_key(block.text, password=passphrase)
    except (*_UNDECODABLE, InvalidKey) as error:
        raise ValidationError(f"{block.where}: the passphrase is not this key's, or the file is damaged") from error


def load_public_key(block: PemBlock) -> PublicKeyTypes:
    """Return the public key in *block*."""
    return _decode(block, ("PUBLIC KEY",), lambda: load_pem_public_key(block.text))


def load_crl(block: PemBlock) -> x509.CertificateRevocationList:
    """Return the revocation list in *block*."""

    def load() -> x509.CertificateRevocationList:
        crl = x509.load_pem_x509_crl(block.text)
        _ = (crl.issuer, crl.extensions, crl.last_update_utc, crl.next_update_utc, len(crl))
        return crl

    return _decode(block, ("X509 CRL",), load)


def load_request(block: PemBlock) -> x509.CertificateSigningRequest:
    """Return the signing request in *block*."""

    def load() -> x509.CertificateSigningRequest:
        request = x509.load_pem_x509_csr(block.text)
        _ = (request.subject, request.extensions, request.public_key())
        return request

    return _decode(block, ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"), load)


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return *certificates* as one PEM text, in their order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def private_key_pem(key: EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return *key* as PKCS #8: encrypted with *passphrase*, or (None) guarded by its file's mode alone."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _decode(block: PemBlock, labels: tuple[str, ...], load: Callable[[], _T]) -> _T:
    if block.label not in labels:
        raise ValidationError(f"{block.where}: found {block.label}, expected {labels[0]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what the decoder merely dislikes, such as a negative serial, is refused here
            return load()
    except _UNDECODABLE as error:
        raise ValidationError(f"{block.where}: the {block.label} does not decode; the file is damaged or cut short") from error


def _label(line: re.Match[bytes]) -> str:
    return line[2].decode("ascii")


def _where(data: bytes, offset: int, source: str) -> str:
    line = data.count(b"\n", 0, offset) + 1
    return f"{source} line {line}"
