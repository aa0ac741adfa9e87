"""Envoy's identity header: ``By=...;Hash=...;URI=...``, one element for each proxy that forwarded a client certificate.

https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert. Our ingress runs
with SANITIZE_SET, so exactly one element is right; anything more came from somebody else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from blazen_peer.auth.refusal import CLIENT_CERT, Refused
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

__all__ = ["ClientCertificate", "parse_client_cert"]

MAX_HEADER_CHARS = 16 * 1024
# A value with a comma, semicolon or equals sign is quoted, with \" inside for a quote.
_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;=\\]*))(;|$)', re.ASCII | re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate that the sidecar checked: whose it is, and its SHA-256 in hex where Envoy gave it."""

    peer: PeerId
    hash: str | None = None


@lru_cache(maxsize=256)  # a connection's calls all carry the same one; refusals are not kept
def parse_client_cert(value: str) -> ClientCertificate:
    """Return what *value*, the one value of the identity header, says.

    Raises:
        Refused: PERMISSION_DENIED, unless it is exactly one element with exactly one URI, which names a peer.
    """
    found: dict[str, list[str]] = {}
    position, more = 0, len(value) <= MAX_HEADER_CHARS
    while more:
        pair = _PAIR.match(value, position)
        if pair is None:
            break
        name, quoted, plain, separator = pair.groups()
        found.setdefault(name.lower(), []).append(plain if quoted is None else quoted.replace('\\"', '"'))
        position, more = pair.end(), separator == ";"
    else:
        return _certificate(found)
    raise _refused("is not one element of Name=value pairs")


def _certificate(found: dict[str, list[str]]) -> ClientCertificate:
    uris, hashes = found.get("uri", []), found.get("hash", [])
    if len(uris) != 1:
        raise _refused(f"holds {len(uris)} URIs instead of one")
    if len(hashes) > 1 or not all(map(_HASH.fullmatch, hashes)):
        raise _refused("holds something else than one SHA-256 as its Hash")
    try:
        peer = PeerId.parse(uris[0])
    except ValidationError:
        raise _refused("names something else than spiffe://<trust domain>/peer/<node id>") from None
    return ClientCertificate(peer, hashes[0] if hashes else None)


def _refused(why: str) -> Refused:
    return Refused("PERMISSION_DENIED", f"{CLIENT_CERT} {why}")
