"""The shared token, and the JWTs that nodes mint from it (RFC 7519, HS256).

``now`` is always an argument, in seconds since the epoch: PyJWT checks the signature and that the claims are there, the times
are checked here. No error and no ``repr`` holds a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.types import Options

from blazen_peer.auth.refusal import Refused
from blazen_peer.errors import ValidationError
from blazen_peer.identity import check_node_id

__all__ = ["AUDIENCE", "Claims", "TokenKeys", "TokenMinter", "VerifiedTokens", "check_secret", "mint", "verify"]

AUDIENCE = "blazen.peer.v1"
LIFETIME_SECS = 60
LEEWAY_SECS = 30  # how far two nodes' clocks may differ
MIN_SECRET_CHARS = 32
MAX_BEARER_CHARS = 4096

MAX_PREVIOUS = 3
_ALGORITHM = "HS256"
_KEY_INFO = b"blazen.peer.v1 jwt HS256"  # part of the format: nodes that derive otherwise do not know each other
_SECRET = re.compile(r"[!-+\--~]+")  # visible ASCII without the comma, which joins duplicate headers
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # the library's base64 skips what does not belong
_JTI = re.compile(r"[!-~]{1,128}")
_MAX_TIME = 2**53  # beyond it a double cannot tell one second from the next
_OPTIONS: Options = {
    "require": ["iss", "aud", "iat", "exp", "jti"],
    "strict_aud": True,
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}


def check_secret(secret: str, name: str = "token") -> str:
    """Return *secret* when it may guard a peer: 32 to 4,096 visible ASCII characters, no space, no comma.

    Raises:
        ValidationError: Otherwise; the text calls it *name* and does not hold it.
    """
    if not secret:
        why = "is set but empty"
    elif len(secret) < MIN_SECRET_CHARS:
        why = f"has {len(secret)} characters and needs at least {MIN_SECRET_CHARS}"
    elif len(secret) > MAX_BEARER_CHARS:
        why = f"has over {MAX_BEARER_CHARS} characters"
    elif not _SECRET.fullmatch(secret):
        why = "holds a space, a comma, or something other than visible ASCII"
    else:
        return secret
    raise ValidationError(f"the {name} {why}; make one with: blazen-peer token")


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The tokens in force, and the keys derived from them; the first of each is current, the others are accepted too.

    Attributes:
        tokens: The tokens themselves, as they come in a raw bearer.
        signing: The HS256 keys, 32 bytes each.
    """

    tokens: tuple[bytes, ...] = field(repr=False)
    signing: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def from_tokens(cls, current: str, *previous: str) -> TokenKeys:
        """Return the keys of *current*, and of *previous* during a rotation: three at most.

        Raises:
            ValidationError: One of them is no good (see :func:`check_secret`), or there are more.
        """
        if len(previous) > MAX_PREVIOUS:
            raise ValidationError(
                f"there are {len(previous)} previous tokens and at most {MAX_PREVIOUS} count: drop the oldest"
            )
        tokens = [check_secret(current).encode()]
        tokens += [check_secret(token, "previous token").encode() for token in previous]
        return cls(tuple(tokens), tuple(map(_derive, tokens)))


def _derive(token: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_KEY_INFO).derive(token)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified JWT says: who minted it, when, until when (seconds since the epoch), and its id for logs."""

    iss: str
    iat: float
    exp: float
    jti: str


def mint(keys: TokenKeys, node_id: str, *, now: float, jti: str) -> str:
    """Return a JWT in the name of *node_id*, good for 60 seconds, signed with the current key."""
    issued = int(now)
    claims = {"iss": node_id, "aud": AUDIENCE, "iat": issued, "exp": issued + LIFETIME_SECS, "jti": jti}
    return jwt.encode(claims, keys.signing[0], algorithm=_ALGORITHM)


def verify(token: str, keys: TokenKeys, *, now: float) -> Claims:
    """Return the claims of the JWT *token*.

    Raises:
        Refused: UNAUTHENTICATED, for anything but a JWT of at most 4 KiB that one of *keys* signed with HS256, for this
            audience, from a valid node id, not issued after *now*, not expired, made for at most 60 seconds. Clocks may differ
            by 30 seconds.
    """
    claims = _claims(_signed(token, keys))
    _check_times(claims, now)
    return claims


def _signed(token: str, keys: TokenKeys) -> dict[str, object]:
    if len(token) > MAX_BEARER_CHARS:
        raise _unauthenticated(f"the JWT has over {MAX_BEARER_CHARS} characters")
    if not _JWT.fullmatch(token):
        raise _unauthenticated("the bearer is neither a token in force nor a JWT")
    why = ""
    for key in keys.signing:
        try:
            return jwt.decode(token, key, algorithms=[_ALGORITHM], audience=AUDIENCE, options=_OPTIONS)
        except jwt.MissingRequiredClaimError as error:
            why = f"the claim {error.claim} is missing"
        except Exception as error:  # untrusted bytes: whatever the library makes of them (RecursionError too) is a refusal
            why = type(error).__name__  # never its text, which may quote the token
    raise _unauthenticated(f"the JWT is not valid: {why}") from None


def _claims(payload: dict[str, object]) -> Claims:
    iss, jti = payload["iss"], payload["jti"]
    try:
        node_id = check_node_id(iss) if isinstance(iss, str) else None
    except ValidationError:
        node_id = None
    if node_id is None:
        raise _unauthenticated("the JWT's iss is not a node id")
    if not isinstance(jti, str) or not _JTI.fullmatch(jti):
        raise _unauthenticated("the JWT's jti is not 1 to 128 visible characters")
    return Claims(node_id, _time(payload, "iat"), _time(payload, "exp"), jti)


def _time(payload: dict[str, object], claim: str) -> float:
    value = payload[claim]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME:  # not: NaN fails too
        raise _unauthenticated(f"the JWT's {claim} is not a time")
    return value


def _check_times(claims: Claims, now: float) -> None:
    if not 0 < claims.exp - claims.iat <= LIFETIME_SECS:
        raise _unauthenticated(f"the JWT was not made for 1 to {LIFETIME_SECS} seconds")
    if not claims.iat <= now + LEEWAY_SECS:
        raise _unauthenticated("the JWT was issued in the future: compare the clocks of the two machines")
    if not now < claims.exp + LEEWAY_SECS:
        raise _unauthenticated("the JWT has expired")


def _unauthenticated(reason: str) -> Refused:
    return Refused("UNAUTHENTICATED", reason)


class TokenMinter:
    """The client's side: one JWT, used for half its life, then the next."""

    def __init__(self, node_id: str) -> None:
        self._node_id = check_node_id(node_id)
        self._minted: tuple[TokenKeys, float, str] | None = None

    def header_value(self, keys: TokenKeys, *, now: float, new_jti: Callable[[], str]) -> str:
        """Return the value for the ``authorization`` header; *new_jti* is asked for an id only when one is minted.

        Keys other than last time, and a clock that went back, mint anew. Threads may share a minter.
        """
        minted = self._minted
        if minted is not None and (minted[0] is keys or minted[0] == keys) and 0 <= now - minted[1] < LIFETIME_SECS / 2:
            return minted[2]
        value = f"Bearer {mint(keys, self._node_id, now=now, jti=new_jti())}"
        self._minted = (keys, now, value)
        return value


class VerifiedTokens:
    """The server's side: remembers the JWTs whose signature was good, the oldest forgotten first. For one event loop.

    Only the signature is remembered; the times are looked at on every use. Other keys forget everything.

    Args:
        capacity: How many are remembered.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._keys: TokenKeys | None = None
        self._claims: dict[str, Claims] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def verify(self, token: str, keys: TokenKeys, *, now: float) -> Claims:
        """Return the claims of *token*, as the function :func:`verify` does, with the same refusals."""
        if keys is not self._keys:
            if keys != self._keys:
                self._claims.clear()
            self._keys = keys
        claims = self._claims.get(token)
        if claims is not None:
            try:
                _check_times(claims, now)
            except Refused:
                del self._claims[token]
                raise
            return claims
        claims = verify(token, keys, now=now)
        if len(self._claims) >= self._capacity:
            del self._claims[next(iter(self._claims))]
        self._claims[token] = claims
        return claims
