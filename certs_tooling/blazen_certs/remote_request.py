"""A node's signing request (RFC 2986): its own name, its own key, and proof that it holds it. The key stays where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from blazen_certs.facts import key_type_text, uris_of
from blazen_certs.pem import load_request, split_pem
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

__all__ = ["MAX_REQUEST_CHARS", "read_request_pem", "request_pem"]

MAX_REQUEST_CHARS = 8192


def request_pem(peer: PeerId, key: EllipticCurvePrivateKey) -> bytes:
    """Return the request of *peer* for a certificate of *key*, PEM."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(peer))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_request_pem(text: str) -> tuple[PeerId, EllipticCurvePublicKey]:
    """Return whom a request is for, and the public key, whose private half its sender holds.

    Only these two are taken from it. What else it asks for (another name, a purpose, to be a CA) is refused, not left out.

    Raises:
        ValidationError: It does not decode, proves nothing, or asks for anything else.
    """
    blocks = split_pem(text.encode(), "the request")
    request = load_request(blocks[0])
    if len(blocks) != 1:
        raise ValidationError("the request must be one PEM block")
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValidationError(f"the request's key is {key_type_text(key)}: use P-256")
    if not request.is_signature_valid:
        raise ValidationError("the request is not signed by its own key")
    asked = [type(extension.value) for extension in request.extensions]
    names = uris_of(request)
    if asked != [x509.SubjectAlternativeName] or len(names) != 1 or list(request.subject):
        raise ValidationError("the request must ask for one URI name, and for nothing else")
    if len(list(request.extensions[0].value)) != 1:
        raise ValidationError("the request must ask for one URI name, and for nothing else")
    return PeerId.parse(names[0]), key
