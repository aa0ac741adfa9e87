"""Signing requests: the sender's own name and key, proven; whatever else is asked for is refused."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from blazen_certs.facts import public_key_sha256
from blazen_certs.remote_request import read_request_pem, request_pem
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

PEER = PeerId("mesh.test", "analyst")
URI = x509.UniformResourceIdentifier(str(PEER))
KEY = ec.generate_private_key(ec.SECP256R1())


def made(*names: x509.GeneralName, key: Any = KEY, subject: str = "", more: x509.ExtensionType | None = None) -> str:
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if more is not None:
        builder = builder.add_extension(more, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def test_our_own_request_is_read() -> None:
    """What ``request_pem`` makes, ``read_request_pem`` takes: the name and the public key."""
    peer, key = read_request_pem(request_pem(PEER, KEY).decode())
    assert peer == PEER
    assert public_key_sha256(key) == public_key_sha256(KEY.public_key())


def test_a_request_proves_the_key() -> None:
    """With one bit of the signature changed, nothing is proven."""
    der = bytearray(x509.load_pem_x509_csr(request_pem(PEER, KEY)).public_bytes(Encoding.DER))
    der[-1] ^= 1
    changed = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(ValidationError, match="not signed by its own key"):
        read_request_pem(changed)


WRONG = [
    pytest.param(lambda: "", "no PEM", id="empty"),
    pytest.param(lambda: made(URI) * 2, "one PEM block", id="two"),
    pytest.param(lambda: made(URI).replace("CERTIFICATE REQUEST", "CERTIFICATE"), "found CERTIFICATE", id="label"),
    pytest.param(lambda: made(URI)[:200] + "\n-----END CERTIFICATE REQUEST-----", "does not decode", id="cut"),
    pytest.param(lambda: made(URI, key=rsa.generate_private_key(65537, 2048)), "RSA 2048: use P-256", id="rsa"),
    pytest.param(lambda: made(URI, key=ec.generate_private_key(ec.SECP384R1())), "P-384: use P-256", id="p384"),
    pytest.param(made, "one URI name, and for nothing else", id="no-name"),
    pytest.param(lambda: made(URI, URI), "one URI name", id="two-uris"),
    pytest.param(lambda: made(URI, x509.DNSName("x.test")), "one URI name", id="dns-too"),
    pytest.param(lambda: made(URI, subject="admin"), "one URI name", id="subject"),
    pytest.param(lambda: made(URI, more=x509.BasicConstraints(True, None)), "nothing else", id="wants-to-be-a-ca"),
    pytest.param(lambda: made(x509.UniformResourceIdentifier("spiffe://mesh.test")), "is not spiffe", id="trust-domain"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_refused(text: Any, message: str) -> None:
    """Another key, another name, a wish besides: each is refused with its reason."""
    with pytest.raises(ValidationError, match=message):
        read_request_pem(text())
