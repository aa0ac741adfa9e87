"""The decision about each call: who the caller is, or why it is not admitted.

1. The token. With keys, exactly one ``authorization: Bearer <x>``, where x is one of the tokens or a JWT signed with them.
   Without keys the header is ignored. Whatever fails here is UNAUTHENTICATED.
2. The sidecar's proof. Present, it must be exactly one value and a right one: a wrong or doubled proof is refused, whatever the
   settings, since it is either forged or a rotation gone wrong, and to go on as somebody lesser would hide both.
3. The identity header. It counts only beside a right proof, and then it must be exactly one valid value; without a proof it is
   ignored as if it were not there. ``require_identity`` refuses every call that has not both.
4. The two together. A JWT's ``iss`` must be the proven node. A raw bearer says nothing of a node, and needs not.
5. The data-class stamps, all that came, go on with the caller; beside a right proof alone. Whether they are right is the
   policy's to say.

Over direct mutual TLS the caller's own certificate stands in the place of 2 and 3: it must hold exactly one URI, which names a
peer. What such a caller sends as proof or identity header is not looked at: no sidecar stands between.

What fails in 2 to 4 is PERMISSION_DENIED.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest

from blazen_peer.auth.refusal import AUTHORIZATION, CLIENT_CERT, DATA_CLASS_STAMP, SIDECAR_PROOF, Refused
from blazen_peer.auth.sidecar import parse_client_cert
from blazen_peer.auth.tokens import MAX_BEARER_CHARS, TokenKeys, VerifiedTokens
from blazen_peer.errors import ValidationError
from blazen_peer.identity import ANONYMOUS, Caller, PeerId

__all__ = ["Gate", "Refused"]

_SCHEME = "Bearer "


class Gate:
    """Admits or refuses calls by their metadata. Stateless but for its memory of verified JWTs; for one event loop.

    Args:
        require_identity: Whether only calls that came through the sidecar are admitted.
    """

    def __init__(self, *, require_identity: bool) -> None:
        self._require_identity = require_identity
        self._verified = VerifiedTokens()

    def admit(
        self,
        metadata: Sequence[tuple[str, str | bytes]],
        *,
        keys: TokenKeys | None,
        proofs: tuple[str, ...],
        now: float,
        certificate_uris: Sequence[bytes] | None = None,
    ) -> Caller:
        """Return who makes the call with *metadata* (names in lower case, as gRPC gives them).

        Args:
            keys: The tokens in force; None admits callers without one.
            proofs: The sidecar's secrets in force; empty means that no sidecar vouches for anybody.
            now: Seconds since the epoch.
            certificate_uris: The URI names in the certificate that the caller showed to this very process, by mutual TLS;
                None where the connection is plain.

        Raises:
            Refused: See the rules above.
        """
        authorization: list[str | bytes] = []
        certificates: list[str | bytes] = []
        sent_proofs: list[str | bytes] = []
        stamps: tuple[str, ...] = ()
        for name, value in metadata:
            if name == AUTHORIZATION:
                authorization.append(value)
            elif name == CLIENT_CERT:
                certificates.append(value)
            elif name == SIDECAR_PROOF:
                sent_proofs.append(value)
            elif name == DATA_CLASS_STAMP:
                stamps = (*stamps, value if isinstance(value, str) else "")

        claimed = None if keys is None else self._authenticate(authorization, keys, now)
        if certificate_uris is not None:
            peer: PeerId | None = _named_by(certificate_uris)
            stamps = ()
        else:
            peer = _proven(certificates) if _vouched_for(sent_proofs, proofs) else None
        if peer is None:
            if self._require_identity:
                raise Refused("PERMISSION_DENIED", "the call did not come through the sidecar with a client certificate")
            return ANONYMOUS if claimed is None else Caller.claimed(claimed)
        if claimed is not None and claimed != peer.node_id:
            raise Refused("PERMISSION_DENIED", f"the token is of node {claimed}, the certificate of {peer}")
        return Caller.proven(peer, stamps)

    def _authenticate(self, values: list[str | bytes], keys: TokenKeys, now: float) -> str | None:
        """Return the node id that a JWT claims; None for a raw bearer."""
        value = _only(values)
        if value is None:
            raise Refused("UNAUTHENTICATED", f"{len(values)} {AUTHORIZATION} values instead of one")
        bearer = value[len(_SCHEME) :]
        if not value.startswith(_SCHEME) or not bearer or len(bearer) > MAX_BEARER_CHARS or "," in bearer or " " in bearer:
            raise Refused("UNAUTHENTICATED", f"{AUTHORIZATION} is not 'Bearer ' and one token")
        if _is_one_of(bearer, keys.tokens):
            return None
        return self._verified.verify(bearer, keys, now=now).iss


def _vouched_for(values: list[str | bytes], proofs: tuple[str, ...]) -> bool:
    if not values:
        return False
    value = _only(values)
    if not value or not _is_one_of(value, [proof.encode() for proof in proofs]):
        raise Refused("PERMISSION_DENIED", f"{SIDECAR_PROOF} is wrong: forged, or the sidecar's secret is not this peer's")
    return True


def _proven(values: list[str | bytes]) -> PeerId | None:
    if not values:
        return None
    value = _only(values)
    if value is None:
        raise Refused("PERMISSION_DENIED", f"{len(values)} {CLIENT_CERT} values instead of one")
    return parse_client_cert(value).peer


def _named_by(uris: Sequence[bytes]) -> PeerId:
    if len(uris) != 1:
        raise Refused("PERMISSION_DENIED", f"the client's certificate holds {len(uris)} URIs instead of one")
    try:
        return PeerId.parse(uris[0].decode("ascii"))
    except (UnicodeDecodeError, ValidationError):
        raise Refused(
            "PERMISSION_DENIED", "the client's certificate names something else than spiffe://<trust domain>/peer/<node id>"
        ) from None


def _only(values: list[str | bytes]) -> str | None:
    """Return the one text value; None for none, several, or bytes."""
    value = values[0] if len(values) == 1 else None
    return value if isinstance(value, str) else None


def _is_one_of(text: str, secrets: Sequence[bytes]) -> bool:
    """Compare in constant time, with each of *secrets*, right or not."""
    raw = text.encode("utf-8", "surrogatepass")
    found = False
    for secret in secrets:
        found |= compare_digest(raw, secret)
    return found
