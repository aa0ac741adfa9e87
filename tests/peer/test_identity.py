"""Names of peers, and callers, as tables."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.errors import ValidationError
from blazen_peer.identity import ANONYMOUS, Caller, PeerId, check_node_id

VALID = [
    pytest.param("spiffe://mesh.test/peer/node-a", "mesh.test", "node-a", id="usual"),
    pytest.param("spiffe://eu.mesh.example/peer/analyst", "eu.mesh.example", "analyst", id="region"),
    pytest.param("spiffe://m/peer/A.b_c-9", "m", "A.b_c-9", id="every-kind-of-character"),
    pytest.param("spiffe://m/peer/" + "n" * 128, "m", "n" * 128, id="longest-node-id"),
    pytest.param("spiffe://" + "m" * 255 + "/peer/n", "m" * 255, "n", id="longest-trust-domain"),
]

INVALID = [
    pytest.param("", id="empty"),
    pytest.param("node-a", id="bare-name"),
    pytest.param("spiffe://mesh.test", id="no-path"),
    pytest.param("spiffe://mesh.test/node-a", id="no-peer"),
    pytest.param("spiffe://mesh.test/peer/", id="no-node"),
    pytest.param("spiffe:///peer/node-a", id="no-trust-domain"),
    pytest.param("spiffe://mesh.test/peer/..", id="dot-dot"),
    pytest.param("spiffe://mesh.test/peer/.", id="dot"),
    pytest.param("spiffe://mesh.test/peer/-a", id="sign-first"),
    pytest.param("spiffe://mesh.test/peer/a/", id="slash-behind"),
    pytest.param("spiffe://mesh.test/peer/a/b", id="longer-path"),
    pytest.param("spiffe://mesh.test//peer/a", id="two-slashes"),
    pytest.param("spiffe://mesh.test/peer/a\n", id="newline"),
    pytest.param("spiffe://mesh.test\n/peer/a", id="newline-in-domain"),
    pytest.param(" spiffe://mesh.test/peer/a", id="space"),
    pytest.param("spiffe://mesh.test/peer/a%2e", id="percent"),
    pytest.param("spiffe://mesh.test/peer/a?b", id="query"),
    pytest.param("spiffe://mesh.test/peer/a#b", id="fragment"),
    pytest.param("spiffe://mesh.test:443/peer/a", id="port"),
    pytest.param("spiffe://u@mesh.test/peer/a", id="user"),
    pytest.param("spiffe://Mesh.test/peer/a", id="upper-case-domain"),
    pytest.param("SPIFFE://mesh.test/peer/a", id="upper-case-scheme"),
    pytest.param("https://mesh.test/peer/a", id="other-scheme"),
    pytest.param("spiffe://mesh.test/peer/é", id="not-ascii"),
    pytest.param("spiffe://mesh.test/peer/\u0661", id="other-digit"),
    pytest.param("spiffe://m/peer/" + "n" * 129, id="long-node-id"),
    pytest.param("spiffe://" + "m" * 256 + "/peer/n", id="long-trust-domain"),
    pytest.param("spiffe://" + "m" * 3000 + "/peer/n", id="over-2048-bytes"),
]


@pytest.mark.parametrize(("uri", "trust_domain", "node_id"), VALID)
def test_parse(uri: str, trust_domain: str, node_id: str) -> None:
    """A peer's URI is read into its two parts, and written back the same."""
    peer = PeerId.parse(uri)
    assert (peer.trust_domain, peer.node_id, str(peer)) == (trust_domain, node_id, uri)


@pytest.mark.parametrize("uri", INVALID)
def test_parse_refuses(uri: str) -> None:
    """Anything that is not exactly such a URI is refused, in one short line."""
    with pytest.raises(ValidationError) as refused:
        PeerId.parse(uri)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("node_id", ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "a\0", "é", "n" * 129])
def test_node_ids_that_are_refused(node_id: str) -> None:
    """Node ids become file names, URIs and labels: nothing passes that means something there."""
    with pytest.raises(ValidationError, match="node id"):
        check_node_id(node_id)
    with pytest.raises(ValidationError, match="node id"):
        PeerId("mesh.test", node_id)


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text is a peer's URI or refused by our error."""
    try:
        assert str(PeerId.parse(text)) == text
    except ValidationError:
        return


CALLERS = [
    pytest.param(Caller.proven(PeerId("m.test", "a")), "proven", "spiffe://m.test/peer/a", "a", id="proven"),
    pytest.param(Caller.claimed("a"), "claimed", "claimed:a", "a", id="claimed"),
    pytest.param(Caller.claimed("anonymous"), "claimed", "claimed:anonymous", "anonymous", id="claimed-to-be-anonymous"),
    pytest.param(ANONYMOUS, "anonymous", "anonymous", None, id="anonymous"),
]


@pytest.mark.parametrize(("caller", "kind", "text", "node_id"), CALLERS)
def test_caller(caller: Caller, kind: str, text: str, node_id: str | None) -> None:
    """What a caller is called, and its node where one is known."""
    assert (caller.kind, str(caller), caller.node_id) == (kind, text, node_id)
    assert pickle.loads(pickle.dumps(caller)) == caller  # noqa: S301 - our own bytes


def test_callers_are_equal_only_to_themselves() -> None:
    """Kinds never mix, nor do trust domains: what one owns the other does not see."""
    callers = [
        ANONYMOUS,
        Caller.claimed("a"),
        Caller.claimed("b"),
        Caller.claimed("spiffe"),
        Caller.proven(PeerId("m.test", "a")),
        Caller.proven(PeerId("n.test", "a")),
        Caller.proven(PeerId("m.test", "b")),
    ]
    assert len(set(callers)) == len(callers)
    assert len({str(caller) for caller in callers}) == len(callers)
