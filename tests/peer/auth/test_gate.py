"""The gate's decision: every combination of token, identity and proof, and any metadata at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.auth import AUTHORIZATION, CLIENT_CERT, DATA_CLASS_STAMP, SIDECAR_PROOF, Gate, Refused, TokenKeys, mint
from blazen_peer.identity import ANONYMOUS, Caller, PeerId

NOW = 1_700_000_000.0
TOKEN = "current-token-of-forty-three-characters-abc"
PREVIOUS = "previous-token-of-forty-three-characters-ab"
KEYS = TokenKeys.from_tokens(TOKEN, PREVIOUS)
PROOF = "current-proof-of-forty-three-characters-abc"
OLD_PROOF = "previous-proof-of-forty-three-characters-ab"
PROOFS = (PROOF, OLD_PROOF)
JWT = mint(KEYS, "node-a", now=NOW, jti="id-1")
BORROWED = mint(KEYS, "node-b", now=NOW, jti="id-2")
FOREIGN = mint(TokenKeys.from_tokens("x" * 32), "node-a", now=NOW, jti="id-3")

Entry = tuple[str, str | bytes]
RAW: Entry = (AUTHORIZATION, f"Bearer {TOKEN}")
MINTED: Entry = (AUTHORIZATION, f"Bearer {JWT}")
IDENTITY: Entry = (CLIENT_CERT, "URI=spiffe://mesh.test/peer/node-a")
OTHER_IDENTITY: Entry = (CLIENT_CERT, "URI=spiffe://mesh.test/peer/node-b")
PROVING: Entry = (SIDECAR_PROOF, PROOF)
FORGED: Entry = (SIDECAR_PROOF, "f" * 43)

PROVEN = Caller.proven(PeerId("mesh.test", "node-a"))
CLAIMED = Caller.claimed("node-a")
NOT_AUTHENTICATED, DENIED = "UNAUTHENTICATED", "PERMISSION_DENIED"

# metadata, the caller or status when identity is not required, and when it is
DECISIONS = [
    pytest.param([RAW], ANONYMOUS, DENIED, id="raw-bearer"),
    pytest.param([(AUTHORIZATION, f"Bearer {PREVIOUS}")], ANONYMOUS, DENIED, id="raw-bearer-of-the-previous-token"),
    pytest.param([MINTED], CLAIMED, DENIED, id="jwt"),
    pytest.param([RAW, IDENTITY, PROVING], PROVEN, PROVEN, id="raw-bearer-and-identity"),
    pytest.param([MINTED, IDENTITY, PROVING], PROVEN, PROVEN, id="jwt-and-identity"),
    pytest.param([PROVING, IDENTITY, MINTED], PROVEN, PROVEN, id="any-order"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, OLD_PROOF)], PROVEN, PROVEN, id="previous-proof"),
    pytest.param([MINTED, IDENTITY], CLAIMED, DENIED, id="identity-without-proof"),
    pytest.param([RAW, OTHER_IDENTITY], ANONYMOUS, DENIED, id="forged-identity-without-proof"),
    pytest.param([MINTED, IDENTITY, IDENTITY], CLAIMED, DENIED, id="two-identities-without-proof"),
    pytest.param([MINTED, PROVING], CLAIMED, DENIED, id="proof-without-identity"),
    pytest.param([MINTED, IDENTITY, FORGED], DENIED, DENIED, id="forged-proof"),
    pytest.param([MINTED, FORGED], DENIED, DENIED, id="forged-proof-alone"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, "")], DENIED, DENIED, id="empty-proof"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, PROOF[:-1])], DENIED, DENIED, id="proof-cut-by-one"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, f"{PROOF},{PROOF}")], DENIED, DENIED, id="joined-proofs"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, PROOF.encode())], DENIED, DENIED, id="proof-as-bytes"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, "\ud800é")], DENIED, DENIED, id="proof-not-ascii"),
    pytest.param([MINTED, IDENTITY, PROVING, PROVING], DENIED, DENIED, id="two-proofs"),
    pytest.param([MINTED, IDENTITY, PROVING, FORGED], DENIED, DENIED, id="right-and-forged-proof"),
    pytest.param([MINTED, IDENTITY, (SIDECAR_PROOF, TOKEN)], DENIED, DENIED, id="token-as-proof"),
    pytest.param([MINTED, IDENTITY, IDENTITY, PROVING], DENIED, DENIED, id="two-identities"),
    pytest.param([MINTED, (CLIENT_CERT, "URI=a,URI=b"), PROVING], DENIED, DENIED, id="joined-identities"),
    pytest.param([MINTED, (CLIENT_CERT, ""), PROVING], DENIED, DENIED, id="empty-identity"),
    pytest.param(
        [MINTED, (CLIENT_CERT, b"URI=spiffe://mesh.test/peer/node-a"), PROVING], DENIED, DENIED, id="identity-as-bytes"
    ),
    pytest.param([MINTED, OTHER_IDENTITY, PROVING], DENIED, DENIED, id="jwt-of-another-node"),
    pytest.param([(AUTHORIZATION, f"Bearer {BORROWED}"), IDENTITY, PROVING], DENIED, DENIED, id="borrowed-jwt"),
    pytest.param(
        [RAW, OTHER_IDENTITY, PROVING], Caller.proven(PeerId("mesh.test", "node-b")), None, id="raw-bearer-names-nobody"
    ),
    pytest.param([], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id="nothing"),
    pytest.param([IDENTITY, PROVING], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id="identity-without-token"),
    pytest.param([FORGED], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id="token-is-asked-first"),
    pytest.param([RAW, RAW], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id="two-tokens"),
    pytest.param([MINTED, RAW, IDENTITY, PROVING], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id="jwt-and-raw-bearer"),
    *[
        pytest.param([(AUTHORIZATION, value)], NOT_AUTHENTICATED, NOT_AUTHENTICATED, id=name)
        for name, value in {
            "empty": "",
            "scheme-alone": "Bearer",
            "scheme-and-space": "Bearer ",
            "no-scheme": TOKEN,
            "other-scheme": f"Basic {TOKEN}",
            "lower-case-scheme": f"bearer {TOKEN}",
            "two-spaces": f"Bearer  {TOKEN}",
            "space-behind": f"Bearer {TOKEN} ",
            "comma-behind": f"Bearer {TOKEN},",
            "jwt-and-comma": f"Bearer {JWT},",
            "joined": f"Bearer {TOKEN},Bearer {TOKEN}",
            "joined-with-space": f"Bearer {JWT}, Bearer {JWT}",
            "cut-by-one": f"Bearer {TOKEN[:-1]}",
            "one-more": f"Bearer {TOKEN}x",
            "proof-as-token": f"Bearer {PROOF}",
            "not-ascii": "Bearer \ud800é",
            "over-4-kib": f"Bearer {'x' * 4097}",
            "jwt-of-another-token": f"Bearer {FOREIGN}",
            "bytes": f"Bearer {TOKEN}".encode(),
        }.items()
    ],
]


def decision(
    metadata: list[Entry], *, required: bool, keys: TokenKeys | None = KEYS, proofs: tuple[str, ...] = PROOFS, now: float = NOW
) -> Caller | str:
    try:
        return Gate(require_identity=required).admit(metadata, keys=keys, proofs=proofs, now=now)
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize(("metadata", "lenient", "strict"), DECISIONS)
def test_decisions(metadata: list[Entry], lenient: Caller | str, strict: Caller | str | None) -> None:
    """Who is admitted as whom, with identity wanted and with identity required."""
    others: list[Entry] = [("user-agent", "x"), ("x-bin", b"\x00"), ("traceparent", "00-1-2-3")]
    assert decision([*others, *metadata], required=False) == lenient
    assert decision([*metadata, *others], required=True) == (lenient if strict is None else strict)


@pytest.mark.parametrize(
    ("metadata", "lenient", "strict"),
    [
        pytest.param([], ANONYMOUS, DENIED, id="nothing"),
        pytest.param([RAW], ANONYMOUS, DENIED, id="raw-bearer"),
        pytest.param([MINTED, MINTED], ANONYMOUS, DENIED, id="two-jwts"),
        pytest.param([IDENTITY], ANONYMOUS, DENIED, id="identity-without-proof"),
        pytest.param([IDENTITY, PROVING], PROVEN, PROVEN, id="identity"),
        pytest.param([(AUTHORIZATION, f"Bearer {BORROWED}"), IDENTITY, PROVING], PROVEN, PROVEN, id="borrowed-jwt-is-not-read"),
        pytest.param([IDENTITY, FORGED], DENIED, DENIED, id="forged-proof"),
    ],
)
def test_without_a_token(metadata: list[Entry], lenient: Caller | str, strict: Caller | str) -> None:
    """A peer on loopback without a token admits everybody, and looks at identities all the same."""
    assert decision(metadata, required=False, keys=None) == lenient
    assert decision(metadata, required=True, keys=None) == strict


@pytest.mark.parametrize("proofs", [(), ("",)], ids=["none", "an-empty-one"])
@pytest.mark.parametrize("proof", [PROOF, ""], ids=["some", "empty"])
def test_without_a_secret_no_proof_is_right(proofs: tuple[str, ...], proof: str) -> None:
    """No sidecar is trusted by a peer that has no secret to compare with, not even an empty one."""
    for required in (False, True):
        assert decision([MINTED, IDENTITY, (SIDECAR_PROOF, proof)], required=required, proofs=proofs) == DENIED


def test_an_expired_token_is_refused_however_often_it_was_seen() -> None:
    """The gate remembers a JWT's signature, not its being in time."""
    gate = Gate(require_identity=False)
    for _ in range(3):
        assert gate.admit([MINTED], keys=KEYS, proofs=(), now=NOW + 89) == CLAIMED
    with pytest.raises(Refused, match="expired"):
        gate.admit([MINTED], keys=KEYS, proofs=(), now=NOW + 90)


def test_rotation() -> None:
    """While both are in force both are taken; once the old token is gone, what it signed is gone with it."""
    gate = Gate(require_identity=False)
    assert gate.admit([MINTED], keys=TokenKeys.from_tokens(TOKEN), proofs=(), now=NOW) == CLAIMED
    assert gate.admit([MINTED], keys=TokenKeys.from_tokens(PREVIOUS, TOKEN), proofs=(), now=NOW) == CLAIMED
    for entry in (MINTED, RAW):
        with pytest.raises(Refused) as refused:
            gate.admit([entry], keys=TokenKeys.from_tokens(PREVIOUS), proofs=(), now=NOW)
        assert refused.value.status == NOT_AUTHENTICATED


NODE_A = b"spiffe://mesh.test/peer/node-a"


def directly(metadata: list[Entry], *uris: bytes, required: bool = True, keys: TokenKeys | None = KEYS) -> Caller | str:
    gate = Gate(require_identity=required)
    try:
        return gate.admit(metadata, keys=keys, proofs=PROOFS, now=NOW, certificate_uris=uris)
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([], id="nothing"),
        pytest.param([OTHER_IDENTITY], id="identity"),
        pytest.param([OTHER_IDENTITY, PROVING], id="identity-and-right-proof"),
        pytest.param([OTHER_IDENTITY, FORGED], id="forged-proof"),
        pytest.param([OTHER_IDENTITY, PROVING] * 2, id="twice"),
    ],
)
def test_direct_tls(sent: list[Entry], required: bool) -> None:
    """Over direct TLS the certificate says who it is; headers of a sidecar neither help nor harm."""
    caller = Caller("proven", NODE_A.decode())
    assert directly([RAW, *sent], NODE_A, required=required) == caller
    assert directly(sent, NODE_A, required=required, keys=None) == caller
    assert directly([RAW, *sent], required=required) == DENIED
    assert directly(sent, NODE_A, required=required) == NOT_AUTHENTICATED


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param((), id="none"),
        pytest.param((NODE_A, NODE_A), id="the-same-twice"),
        pytest.param((NODE_A, b"https://mesh.test"), id="another-beside"),
        pytest.param((b"",), id="empty"),
        pytest.param((NODE_A + b"\0",), id="nul"),
        pytest.param((NODE_A + b"\n",), id="newline"),
        pytest.param((NODE_A + "é".encode(),), id="not-ascii"),
        pytest.param((b"\xff",), id="not-text"),
        pytest.param((b"spiffe://mesh.test/ns/x/sa/y",), id="no-peer"),
    ],
)
def test_certificate_that_names_no_peer(uris: tuple[bytes, ...]) -> None:
    """A certificate without exactly one URI that names a peer is nobody, whatever else the call holds."""
    for metadata in ([RAW], [RAW, IDENTITY, PROVING]):
        for required in (False, True):
            assert directly(metadata, *uris, required=required) == DENIED


def test_borrowed_token_over_direct_tls() -> None:
    """A JWT's node must be the certificate's."""
    assert directly([MINTED], b"spiffe://mesh.test/peer/node-z") == DENIED


def test_callers_of_different_kinds_differ() -> None:
    """The same node proven and claimed is two callers."""
    assert decision([MINTED], required=False) != decision([MINTED, IDENTITY, PROVING], required=False)


PERSONAL: Entry = (DATA_CLASS_STAMP, "personal")
STAMPS = [
    pytest.param([MINTED, IDENTITY, PROVING], (), id="none"),
    pytest.param([PERSONAL, MINTED, IDENTITY, PROVING], ("personal",), id="one"),
    pytest.param([PERSONAL, MINTED, IDENTITY, PROVING, (DATA_CLASS_STAMP, "x")], ("personal", "x"), id="two-in-their-order"),
    pytest.param([PERSONAL, PERSONAL, MINTED, IDENTITY, PROVING], ("personal", "personal"), id="the-same-twice"),
    pytest.param([(DATA_CLASS_STAMP, "personal,x"), MINTED, IDENTITY, PROVING], ("personal,x",), id="joined-stays-joined"),
    pytest.param([(DATA_CLASS_STAMP, b"personal"), MINTED, IDENTITY, PROVING], ("",), id="bytes-are-no-class"),
    pytest.param([PERSONAL, MINTED, IDENTITY], (), id="without-the-proof"),
    pytest.param([PERSONAL, MINTED, PROVING], (), id="without-an-identity"),
    pytest.param([("blazen-data-class", "personal"), MINTED, IDENTITY, PROVING], (), id="what-a-client-says-is-no-stamp"),
]


@pytest.mark.parametrize(("metadata", "stamps"), STAMPS)
def test_stamps(metadata: list[Entry], stamps: tuple[str, ...]) -> None:
    """All stamps beside the sidecar's proof go on with the caller, and none without it; they do not change who it is."""
    caller = decision(metadata, required=False)
    assert isinstance(caller, Caller)
    assert caller.stamps == stamps
    assert caller in (PROVEN, CLAIMED)


def test_stamps_over_direct_tls() -> None:
    """A caller without a sidecar has no stamp, whatever it sends."""
    caller = directly([RAW, PERSONAL, IDENTITY, PROVING], NODE_A)
    assert isinstance(caller, Caller)
    assert caller.stamps == ()


@pytest.mark.parametrize(("metadata", "lenient", "strict"), DECISIONS)
def test_reasons_hold_no_secret(metadata: list[Entry], lenient: object, strict: object) -> None:
    """What goes to the log names the rule, and holds no token, no proof, and no JWT."""
    try:
        Gate(require_identity=True).admit(metadata, keys=KEYS, proofs=PROOFS, now=NOW)
    except Refused as refused:
        shown = f"{refused} {refused!r} {refused.__cause__!r}"
    else:
        shown = ""
    for secret in (TOKEN, PREVIOUS, PROOF, OLD_PROOF, *JWT.split("."), *BORROWED.split(".")[1:], *FOREIGN.split(".")[1:]):
        assert secret not in shown
    assert "\n" not in shown


names = st.sampled_from([AUTHORIZATION, CLIENT_CERT, SIDECAR_PROOF, DATA_CLASS_STAMP, "x", "Authorization", ""])
values = (
    st.text() | st.binary() | st.sampled_from([entry[1] for entry in (RAW, MINTED, IDENTITY, OTHER_IDENTITY, PROVING, FORGED)])
)


@given(
    st.lists(st.tuples(names, values), max_size=6), st.booleans(), st.sampled_from([KEYS, None]), st.sampled_from([PROOFS, ()])
)
def test_any_metadata(metadata: list[Entry], required: bool, keys: TokenKeys | None, proofs: tuple[str, ...]) -> None:
    """Any metadata is admitted or Refused, and nobody is proven without the one right proof."""
    found = decision(metadata, required=required, keys=keys, proofs=proofs)
    if isinstance(found, Caller) and (required or found.kind == "proven"):
        assert found.kind == "proven"
        assert proofs
        assert len(found.stamps) == len([value for name, value in metadata if name == DATA_CLASS_STAMP])
        assert [value for name, value in metadata if name == SIDECAR_PROOF] == [PROOF]
        assert len([value for name, value in metadata if name == CLIENT_CERT]) == 1
    if isinstance(found, Caller) and keys is not None:
        assert len([value for name, value in metadata if name == AUTHORIZATION]) == 1
