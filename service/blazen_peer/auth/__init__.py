"""Who may call: the shared token, the sidecar's identity header, and the decision about both."""

from blazen_peer.auth.gate import Gate
from blazen_peer.auth.refusal import AUTHORIZATION, CLIENT_CERT, DATA_CLASS_STAMP, SIDECAR_PROOF, Refused
from blazen_peer.auth.sidecar import ClientCertificate, parse_client_cert
from blazen_peer.auth.tokens import Claims, TokenKeys, TokenMinter, VerifiedTokens, check_secret, mint, verify

__all__ = [
    "AUTHORIZATION",
    "CLIENT_CERT",
    "DATA_CLASS_STAMP",
    "SIDECAR_PROOF",
    "Claims",
    "ClientCertificate",
    "Gate",
    "Refused",
    "TokenKeys",
    "TokenMinter",
    "VerifiedTokens",
    "check_secret",
    "mint",
    "parse_client_cert",
    "verify",
]
