"""Envoy's identity header, as two tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.auth.refusal import Refused
from blazen_peer.auth.sidecar import ClientCertificate, parse_client_cert
from blazen_peer.identity import PeerId

URI = "spiffe://mesh.test/peer/node-a"
PEER = PeerId("mesh.test", "node-a")
HASH = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"

VALID = [
    pytest.param(f"URI={URI}", None, id="uri-alone"),
    pytest.param(f"By=spiffe://mesh.test/peer/node-b;Hash={HASH};URI={URI}", HASH, id="as-envoy-writes-it"),
    pytest.param(f'Hash={HASH};Subject="";URI={URI}', HASH, id="empty-subject"),
    pytest.param(
        f'Hash={HASH};Subject="/C=US/CN=a, b; URI=x";URI={URI};DNS=a.test;DNS=b.test', HASH, id="separators-in-quotes"
    ),
    pytest.param(f'Subject="CN=\\"URI=spiffe://evil/peer/x\\"";URI={URI}', None, id="quotes-in-quotes"),
    pytest.param(f'uri="{URI}"', None, id="lower-case-and-quoted"),
    pytest.param(f"By=;URI={URI}", None, id="empty-value"),
]

INVALID = [
    pytest.param("", id="empty"),
    pytest.param(f"Hash={HASH}", id="no-uri"),
    pytest.param("URI=", id="empty-uri"),
    pytest.param(f"URI={URI};URI={URI}", id="two-uris"),
    pytest.param(f"URI={URI};uri=spiffe://mesh.test/peer/node-b", id="two-uris-in-other-case"),
    pytest.param(f"URI={URI},URI={URI}", id="two-elements"),
    pytest.param(f"URI={URI},", id="comma-behind"),
    pytest.param(f",URI={URI}", id="comma-before"),
    pytest.param(f"URI={URI};", id="semicolon-behind"),
    pytest.param(f";URI={URI}", id="semicolon-before"),
    pytest.param(f"URI={URI};;Hash={HASH}", id="two-semicolons"),
    pytest.param(f"URI= {URI}", id="space"),
    pytest.param(f"URI={URI}\n", id="newline"),
    pytest.param(f"URI={URI};Hash", id="name-alone"),
    pytest.param(f'URI={URI};Subject="x', id="quote-not-closed"),
    pytest.param(f'URI={URI};Subject="x\\"', id="quote-only-escaped"),
    pytest.param(f'Subject="x"URI={URI}', id="text-behind-the-quote"),
    pytest.param(f'Subject=x"y";URI={URI}', id="quote-within"),
    pytest.param(f"By=a=b;URI={URI}", id="bare-equals-sign"),
    pytest.param(f"URI={URI};Hash={HASH};Hash={HASH}", id="two-hashes"),
    pytest.param(f"URI={URI};Hash={HASH[1:]}", id="short-hash"),
    pytest.param(f"URI={URI};Hash={HASH.upper()}", id="upper-case-hash"),
    pytest.param("URI=spiffe://mesh.test/node-a", id="not-a-peer"),
    pytest.param("URI=spiffe://mesh.test/peer/node-a/x", id="longer-path"),
    pytest.param("URI=https://mesh.test/peer/node-a", id="not-spiffe"),
    pytest.param(f"URI={URI};Cert={'x' * 20_000}", id="over-16-kib"),
]


@pytest.mark.parametrize(("value", "sha256"), VALID)
def test_parse(value: str, sha256: str | None) -> None:
    """One element with one URI that names a peer, whatever else it says."""
    assert parse_client_cert(value) == ClientCertificate(PEER, sha256)


@pytest.mark.parametrize("value", INVALID)
def test_refuses(value: str) -> None:
    """Anything else is refused, and the reason quotes nothing of it."""
    with pytest.raises(Refused) as refused:
        parse_client_cert(value)
    assert refused.value.status == "PERMISSION_DENIED"
    assert "node-a" not in str(refused.value)


@given(st.text() | st.text(alphabet='URI=;,"\\spfe:/a '))
def test_any_text(value: str) -> None:
    """Any text is a certificate or Refused."""
    try:
        found = parse_client_cert(value)
    except Refused:
        return
    assert str(found.peer) in value
