"""The door for files: right PEM gives values, anything else gives ``ValidationError`` with the place, and nothing else."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from blazen_certs import Authority
from blazen_certs.describe import describe
from blazen_certs.pem import (
    certificates_pem,
    load_certificate,
    load_private_key,
    private_key_pem,
    read_pem_file,
    split_pem,
)
from blazen_peer.errors import ValidationError

BLOCK = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


def test_blocks_are_found_with_their_lines() -> None:
    """Text around blocks is let pass; each block knows file and line, with either kind of line end."""
    data = b"subject=x\n" + BLOCK + b"\r\n" + BLOCK.replace(b"\n", b"\r\n") + b"rest"
    assert [(block.label, block.where) for block in split_pem(data, "f")] == [
        ("CERTIFICATE", "f line 2"),
        ("CERTIFICATE", "f line 6"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b"\x30\x82\x01\x00", "no PEM in it", id="der"),
        pytest.param(BLOCK[:40], "line 1: CERTIFICATE has no END line; the file is cut short", id="cut-in-the-middle"),
        pytest.param(BLOCK + BLOCK[:30], "line 4: CERTIFICATE has no END", id="second-cut"),
        pytest.param(BLOCK[:30] + BLOCK, "line 1: CERTIFICATE has no END", id="begin-in-begin"),
        pytest.param(BLOCK[28:], "END CERTIFICATE has no BEGIN", id="only-the-end"),
        pytest.param(BLOCK.replace(b"END CERTIFICATE", b"END X509 CRL"), "END X509 CRL has no BEGIN", id="other-end"),
    ],
)
def test_damaged_file_is_refused_with_its_place(data: bytes, message: str) -> None:
    """Each kind of damage says which file, which line, and what."""
    with pytest.raises(ValidationError, match=message):
        split_pem(data, "f.pem")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BLOCK, id="der-is-no-certificate"),
        pytest.param(BLOCK.replace(b"MAA=", b"!!!!"), id="no-base64"),
        pytest.param(BLOCK.replace(b"MAA=\n", b""), id="nothing-inside"),
    ],
)
def test_block_that_does_not_decode_is_refused(text: bytes) -> None:
    """A well-formed block around rubbish is refused by one clear line."""
    with pytest.raises(ValidationError, match="line 1: the CERTIFICATE does not decode"):
        load_certificate(split_pem(text, "f")[0])


def test_key_where_a_certificate_belongs(authority: Authority) -> None:
    """A key file given as a certificate says what was found."""
    block = read_pem_file(authority.directory / "root/v1/root.key")[0]
    with pytest.raises(ValidationError, match="found PRIVATE KEY, expected CERTIFICATE"):
        load_certificate(block)


def test_encrypted_key_is_refused() -> None:
    """A passphrase cannot be asked for by a sidecar."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(ValidationError, match="encrypted"):
        load_private_key(split_pem(pem, "f")[0])


def test_block_does_not_show_its_text() -> None:
    """The repr of a block, which may stand in a traceback, holds no key material."""
    pem = private_key_pem(ec.generate_private_key(ec.SECP256R1()))
    block = split_pem(pem, "f")[0]
    assert pem.splitlines()[1].decode() not in repr(block)


def test_oversized_file_is_not_read(tmp_path: Path) -> None:
    """A file above 1 MiB is refused."""
    path = tmp_path / "big.pem"
    path.write_bytes(BLOCK * 20_000)
    with pytest.raises(ValidationError, match="larger than 1 MiB"):
        read_pem_file(path)


def test_every_prefix_is_refused(authority: Authority) -> None:
    """A certificate file cut anywhere is refused; only the last line end may be missing."""
    whole = certificates_pem(authority.trust().root_certificates)
    for end in range(len(whole) - 1):
        with pytest.raises(ValidationError):
            split_pem(whole[:end], "f")
    assert load_certificate(split_pem(whole[:-1], "f")[0]) == authority.trust().root.certificate


LABELS = ["CERTIFICATE", "PRIVATE KEY", "EC PRIVATE KEY", "PUBLIC KEY", "X509 CRL", "CERTIFICATE REQUEST", "OTHER"]


@given(label=st.sampled_from(LABELS), body=st.binary(max_size=200))
def test_any_bytes_are_described_or_refused(label: str, body: bytes) -> None:
    """Whatever stands between BEGIN and END, nothing but ``ValidationError`` comes out."""
    data = f"-----BEGIN {label}-----\n".encode() + body + f"\n-----END {label}-----\n".encode()
    with suppress(ValidationError):
        describe(split_pem(data, "f"), now=datetime.fromisoformat("2026-01-01T00:00:00Z"))


def test_unknown_version_is_refused(leaf_der: bytes) -> None:
    """A certificate of a version that X.509 does not know (its 13th byte says it) is refused, as what does not decode."""
    der = leaf_der[:12] + b"\x01" + leaf_der[13:]
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(ValidationError, match="does not decode"):
        load_certificate(split_pem(pem, "f")[0])


@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_described_or_refused(leaf_der: bytes, changes: list[tuple[int, int]]) -> None:
    """A real certificate with some bytes changed is still described, or refused; it never crashes."""
    der = bytearray(leaf_der)
    for place, value in changes:
        der[place % len(der)] = value
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    with suppress(ValidationError):
        describe(split_pem(pem, "f"), now=datetime.fromisoformat("2026-01-01T00:00:00Z"))


@pytest.fixture(scope="module")
def leaf_der(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A right leaf, made once."""
    authority = Authority.create(tmp_path_factory.mktemp("ca"), "mesh.test")
    return authority.issue("analyst").certificate.public_bytes(Encoding.DER)
