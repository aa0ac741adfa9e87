"""Tokens: one wrong claim at a time, and no message or repr that holds one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import pickle
import secrets
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.auth.refusal import Refused
from blazen_peer.auth.tokens import AUDIENCE, Claims, TokenKeys, TokenMinter, VerifiedTokens, check_secret, mint, verify
from blazen_peer.errors import ValidationError

NOW = 1_700_000_000.0
TOKEN = "current-token-of-forty-three-characters-abc"
PREVIOUS = "previous-token-of-forty-three-characters-ab"
KEYS = TokenKeys.from_tokens(TOKEN)
GOOD: dict[str, Any] = {"iss": "node-a", "aud": AUDIENCE, "iat": int(NOW), "exp": int(NOW) + 60, "jti": "id-1"}


def signed(claims: dict[str, Any], key: bytes = KEYS.signing[0], headers: dict[str, Any] | None = None) -> str:
    return jwt.encode(claims, key, algorithm="HS256", headers=headers)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


def signed_by_hand(header: object, payload: object, key: bytes = KEYS.signing[0], digest: str = "sha256") -> str:
    body = f"{part(header)}.{part(payload)}"
    return f"{body}.{part(hmac.new(key, body.encode(), digest).digest())}"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        pytest.param("", "is set but empty", id="empty"),
        pytest.param("a" * 31, "has 31 characters and needs at least 32", id="short"),
        pytest.param("a" * 4097, "over 4096", id="long"),
        pytest.param("canary " + "a" * 32, "holds a space", id="space"),
        pytest.param("canary," + "a" * 32, "holds a space, a comma", id="comma"),
        pytest.param("canary" + "a" * 32 + "\n", "visible ASCII", id="newline"),
        pytest.param("canary\x7f" + "a" * 32, "visible ASCII", id="delete"),
        pytest.param("canaryé" + "a" * 32, "visible ASCII", id="not-ascii"),
        pytest.param("canary\ud800" + "a" * 32, "visible ASCII", id="surrogate"),
    ],
)
def test_bad_tokens_are_refused(token: str, why: str) -> None:
    """Each is refused at start, as current and as previous, without being shown; the text says what to do."""
    for name, make in (
        ("token", lambda: TokenKeys.from_tokens(token)),
        ("previous token", lambda: TokenKeys.from_tokens(TOKEN, token)),
    ):
        with pytest.raises(ValidationError, match=f"^the {name} .*{why}") as refused:
            make()
        assert str(refused.value).endswith("make one with: blazen-peer token")
        assert "canary" not in repr(refused.value)


def test_a_secret_of_another_name() -> None:
    """The same rules guard the sidecar's proof, under its own name."""
    assert check_secret("x" * 32, "sidecar's proof") == "x" * 32
    with pytest.raises(ValidationError, match=r"^the sidecar's proof has 1 characters"):
        check_secret("x", "sidecar's proof")


def test_keys_show_nothing() -> None:
    """Neither the tokens nor what is derived from them stand in a repr."""
    keys = TokenKeys.from_tokens(TOKEN, PREVIOUS)
    shown = f"{keys!r} {keys}"
    for secret in (*keys.tokens, *keys.signing):
        assert secret.decode("latin-1") not in shown
        assert repr(secret) not in shown
    assert pickle.loads(pickle.dumps(keys)) == keys  # noqa: S301 - our own bytes


def test_keys_are_derived() -> None:
    """Known answer: HKDF-SHA256 (RFC 5869) without salt, one block; nodes that differ here would not know each other."""
    extracted = hmac.new(b"\0" * 32, TOKEN.encode(), "sha256").digest()
    assert KEYS.signing == (hmac.new(extracted, b"blazen.peer.v1 jwt HS256" + b"\1", "sha256").digest(),)


def test_minted_is_verified() -> None:
    """A minted JWT carries exactly the five claims, and is verified by the same token."""
    token = mint(KEYS, "node-a", now=NOW + 0.9, jti="id-1")
    assert verify(token, KEYS, now=NOW) == Claims("node-a", NOW, NOW + 60, "id-1")
    assert jwt.decode(token, options={"verify_signature": False}) == GOOD
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


@pytest.mark.parametrize(
    ("keys", "admitted"),
    [
        pytest.param(TokenKeys.from_tokens(PREVIOUS), False, id="another-token"),
        pytest.param(TokenKeys.from_tokens(PREVIOUS, TOKEN), True, id="as-previous"),
        pytest.param(TokenKeys.from_tokens(TOKEN, PREVIOUS), True, id="as-current"),
        pytest.param(TokenKeys.from_tokens("x" * 32, PREVIOUS), False, id="neither"),
    ],
)
def test_rotation(keys: TokenKeys, admitted: bool) -> None:
    """A JWT of the previous token is accepted while that one is in force, and not after."""
    if admitted:
        assert verify(signed(GOOD), keys, now=NOW).iss == "node-a"
    else:
        with pytest.raises(Refused, match="InvalidSignatureError"):
            verify(signed(GOOD), keys, now=NOW)


VALID_TIMES = [
    pytest.param(NOW - 30, id="30-s-before-its-issue"),
    pytest.param(NOW, id="at-its-issue"),
    pytest.param(NOW + 60, id="at-its-end"),
    pytest.param(NOW + 89.9, id="within-the-leeway"),
]
INVALID_TIMES = [
    pytest.param(NOW - 30.1, "issued in the future", id="before-the-leeway"),
    pytest.param(NOW + 90, "expired", id="after-the-leeway"),
    pytest.param(NOW + 10**9, "expired", id="long-after"),
]


@pytest.mark.parametrize("now", VALID_TIMES)
def test_times_within(now: float) -> None:
    """Clocks may differ by 30 seconds."""
    assert verify(signed(GOOD), KEYS, now=now).jti == "id-1"


@pytest.mark.parametrize(("now", "why"), INVALID_TIMES)
def test_times_without(now: float, why: str) -> None:
    """And by no more."""
    with pytest.raises(Refused, match=why):
        verify(signed(GOOD), KEYS, now=now)


@pytest.mark.parametrize(
    ("claim", "value", "why"),
    [
        *[pytest.param(name, None, name, id=f"no-{name}") for name in GOOD],
        pytest.param("iss", "", "iss is not a node id", id="empty-iss"),
        pytest.param("iss", "../b", "iss is not a node id", id="path-iss"),
        pytest.param("iss", "node-a\n", "iss is not a node id", id="newline-iss"),
        pytest.param("iss", "spiffe://mesh.test/peer/node-a", "iss is not a node id", id="uri-iss"),
        pytest.param("iss", 7, "iss is not|Invalid", id="number-iss"),
        pytest.param("iss", ["node-a"], "iss is not|Invalid", id="list-iss"),
        pytest.param("aud", "blazen.peer.v2", "Audience", id="other-aud"),
        pytest.param("aud", [AUDIENCE], "Audience", id="list-aud"),
        pytest.param("aud", [AUDIENCE, "x"], "Audience", id="longer-list-aud"),
        pytest.param("aud", AUDIENCE + "x", "Audience", id="prefix-aud"),
        pytest.param("iat", str(int(NOW)), "iat is not a time", id="text-iat"),
        pytest.param("iat", True, "iat is not a time", id="bool-iat"),
        pytest.param("iat", float("nan"), "iat is not a time", id="nan-iat"),
        pytest.param("iat", -1, "iat is not a time", id="negative-iat"),
        pytest.param("iat", [int(NOW)], "iat is not a time", id="list-iat"),
        pytest.param("iat", int(NOW) + 31, "issued in the future", id="future-iat"),
        pytest.param("iat", int(NOW) - 1, "not made for 1 to 60", id="61-seconds"),
        pytest.param("iat", int(NOW) + 60, "not made for 1 to 60", id="no-seconds"),
        pytest.param("exp", int(NOW) + 61, "not made for 1 to 60", id="late-exp"),
        pytest.param("exp", int(NOW) + 30 * 365 * 86400, "not made for 1 to 60", id="30-years"),
        pytest.param("exp", int(NOW) - 1, "not made for 1 to 60", id="exp-before-iat"),
        pytest.param("exp", float("inf"), "exp is not a time", id="infinite-exp"),
        pytest.param("exp", 10**400, "exp is not a time", id="absurd-exp"),
        pytest.param("exp", False, "exp is not a time", id="bool-exp"),
        pytest.param("exp", "9999999999", "exp is not a time", id="text-exp"),
        pytest.param("jti", "", "jti", id="empty-jti"),
        pytest.param("jti", "x" * 129, "jti", id="long-jti"),
        pytest.param("jti", "a\nb", "jti", id="newline-jti"),
        pytest.param("jti", 7, "jti|Invalid", id="number-jti"),
    ],
)
def test_one_wrong_claim(claim: str, value: object, why: str) -> None:
    """Everything else right, one claim missing or wrong: refused, for that reason."""
    claims = {**GOOD, claim: value}
    if value is None:
        del claims[claim]
    with pytest.raises(Refused, match=why) as refused:
        verify(signed_by_hand({"alg": "HS256", "typ": "JWT"}, claims), KEYS, now=NOW)
    assert refused.value.status == "UNAUTHENTICATED"


def test_fractions_of_a_second() -> None:
    """NumericDate may be a float (RFC 7519, section 2)."""
    token = signed_by_hand({"alg": "HS256"}, {**GOOD, "iat": NOW + 0.25, "exp": NOW + 60.25})
    assert verify(token, KEYS, now=NOW).exp == NOW + 60.25


def test_unknown_claims_are_ignored() -> None:
    """Later versions may say more."""
    assert verify(signed({**GOOD, "cnf": {"x5t#S256": "..."}}), KEYS, now=NOW).iss == "node-a"


def rs256() -> str:
    return jwt.encode(GOOD, rsa.generate_private_key(public_exponent=65537, key_size=2048), algorithm="RS256")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt.encode(GOOD, "", algorithm="none"), id="alg-none"),
        pytest.param(f"{part({'alg': 'None'})}.{part(GOOD)}.", id="alg-None"),
        pytest.param(f"{part({'alg': 'HS256'})}.{part(GOOD)}.", id="no-signature"),
        pytest.param(signed_by_hand({"alg": "HS512"}, GOOD, digest="sha512"), id="alg-HS512"),
        pytest.param(signed_by_hand({"alg": "HS384"}, GOOD, digest="sha384"), id="alg-HS384"),
        pytest.param(signed_by_hand({"alg": "RS256"}, GOOD), id="alg-RS256-signed-with-hmac"),
        pytest.param(signed_by_hand({"alg": "hs256"}, GOOD), id="alg-lower-case"),
        pytest.param(signed_by_hand({"typ": "JWT"}, GOOD), id="no-alg"),
        pytest.param(signed_by_hand({"alg": ["HS256"]}, GOOD), id="alg-list"),
        pytest.param(rs256(), id="alg-RS256"),
        pytest.param(signed_by_hand({"alg": "HS256"}, GOOD, key=TOKEN.encode()), id="keyed-with-the-token-itself"),
        pytest.param(
            signed_by_hand({"alg": "HS256"}, GOOD, key=hashlib.sha256(TOKEN.encode()).digest()), id="another-derivation"
        ),
        pytest.param(signed_by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, GOOD), id="unknown-critical-header"),
        pytest.param(signed_by_hand({"alg": "HS256"}, b"[" * 2000), id="deep-payload"),
        pytest.param(signed_by_hand(b"[" * 2900, GOOD), id="deep-header"),
        pytest.param(signed_by_hand({"alg": "HS256"}, [GOOD]), id="payload-list"),
        pytest.param(signed_by_hand({"alg": "HS256"}, b"\xff"), id="payload-not-utf-8"),
        pytest.param(signed({**GOOD, "padding": "x" * 4096}), id="over-4-kib"),
        pytest.param(signed(GOOD) + ".", id="four-parts"),
        pytest.param(signed(GOOD)[:-4] + "AAAA", id="other-signature"),
        pytest.param(signed(GOOD) + "!", id="junk-behind"),
        pytest.param("\n" + signed(GOOD), id="newline-before"),
        pytest.param(signed(GOOD).replace(".", ".*", 1), id="junk-within"),
        pytest.param(signed(GOOD) + "=", id="padding"),
        pytest.param("..", id="dots"),
        pytest.param("", id="empty"),
        pytest.param("é.é.é", id="not-ascii"),
        pytest.param("\ud800.a.b", id="surrogate"),
    ],
)
def test_not_ours(token: str) -> None:
    """Other algorithms, other keys, other shapes: refused, by our refusal and without a word of the token."""
    with pytest.raises(Refused) as refused:
        verify(token, KEYS, now=NOW)
    assert refused.value.status == "UNAUTHENTICATED"
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    for piece in token.split("."):
        assert len(piece) < 8 or piece not in repr(refused.value)


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "RS256", "none", "hs256"])
def test_the_algorithm_is_looked_at_before_the_signature(algorithm: str) -> None:
    """A JWT whose header names another algorithm is refused for that, however it is signed."""
    digest = algorithm.replace("HS", "sha") if algorithm in ("HS384", "HS512") else "sha256"
    with pytest.raises(Refused, match="InvalidAlgorithmError"):
        verify(signed_by_hand({"alg": algorithm}, GOOD, digest=digest), KEYS, now=NOW)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True))
def test_any_text_is_refused(token: str) -> None:
    """Nothing but Refused comes out for text that nobody signed."""
    with pytest.raises(Refused):
        verify(token, KEYS, now=NOW)


@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "nbf", "sub", "x"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4),
    )
)
def test_any_signed_claims(claims: dict[str, Any]) -> None:
    """Whatever a holder of the token signs is either in order or Refused."""
    try:
        found = verify(signed_by_hand({"alg": "HS256"}, {**GOOD, **claims}), KEYS, now=NOW)
    except Refused:
        return
    assert 0 < found.exp - found.iat <= 60


def test_minter_reuses_for_half_a_life() -> None:
    """One JWT for 30 seconds, then another; its id is asked for only then."""
    minter, ids = TokenMinter("node-a"), iter(["id-1", "id-2", "id-3"])

    def value(now: float) -> str:
        return minter.header_value(KEYS, now=now, new_jti=lambda: next(ids))

    first = value(NOW)
    assert first.startswith("Bearer ")
    assert verify(first.removeprefix("Bearer "), KEYS, now=NOW) == Claims("node-a", NOW, NOW + 60, "id-1")
    assert value(NOW + 29.9) == first
    second = value(NOW + 30)
    assert verify(second.removeprefix("Bearer "), KEYS, now=NOW + 30).jti == "id-2"
    assert verify(value(NOW).removeprefix("Bearer "), KEYS, now=NOW).jti == "id-3", "a clock that went back mints anew"


def test_minter_follows_the_keys() -> None:
    """After a rotation the next call carries a JWT of the new token; equal keys read again change nothing."""
    minter = TokenMinter("node-a")
    first = minter.header_value(KEYS, now=NOW, new_jti=lambda: "a")
    assert minter.header_value(TokenKeys.from_tokens(TOKEN), now=NOW, new_jti=lambda: "b") == first
    rotated = TokenKeys.from_tokens(PREVIOUS, TOKEN)
    second = minter.header_value(rotated, now=NOW, new_jti=lambda: "c").removeprefix("Bearer ")
    assert verify(second, TokenKeys.from_tokens(PREVIOUS), now=NOW).jti == "c"


def test_minter_wants_a_node_id() -> None:
    """A name that no verifier would take is refused at once."""
    with pytest.raises(ValidationError, match="node id"):
        TokenMinter("not a node")


def test_remembered_tokens_still_expire() -> None:
    """A JWT that was verified once is refused when its time is over, and forgotten."""
    verified, token = VerifiedTokens(), signed(GOOD)
    assert verified.verify(token, KEYS, now=NOW) is verified.verify(token, KEYS, now=NOW + 89)
    assert len(verified) == 1
    with pytest.raises(Refused, match="expired"):
        verified.verify(token, KEYS, now=NOW + 90)
    assert len(verified) == 0


def test_remembered_tokens_end_with_their_keys() -> None:
    """Once the token is taken out of force, what it signed is worth nothing; equal keys read again change nothing."""
    verified, token = VerifiedTokens(), signed(GOOD)
    verified.verify(token, KEYS, now=NOW)
    verified.verify(token, TokenKeys.from_tokens(TOKEN), now=NOW)
    assert len(verified) == 1
    with pytest.raises(Refused, match="InvalidSignatureError"):
        verified.verify(token, TokenKeys.from_tokens(PREVIOUS), now=NOW)
    assert len(verified) == 0


def test_memory_is_bounded() -> None:
    """The oldest is forgotten first, refused ones are never remembered, and a forgotten one is verified again."""
    verified = VerifiedTokens(capacity=3)
    tokens = [mint(KEYS, "node-a", now=NOW, jti=f"id-{n}") for n in range(5)]
    first = verified.verify(tokens[0], KEYS, now=NOW)
    for token in tokens[1:]:
        verified.verify(token, KEYS, now=NOW)
    for _ in range(10):
        with pytest.raises(Refused):
            verified.verify(secrets.token_urlsafe(), KEYS, now=NOW)
    assert len(verified) == 3
    again = verified.verify(tokens[0], KEYS, now=NOW)
    assert again == first
    assert again is not first
