"""The token and the sidecar's proof: where they come from, and that a file is read again when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blazen_peer.auth import mint, verify
from blazen_peer.credentials import ProofSource, SecretFile, TokenSource
from blazen_peer.errors import ValidationError

TOKEN = "t" * 43
OTHER = "o" * 43


def replace(path: Path, text: str) -> None:
    """Put *text* at *path* as an operator should: whole, by a rename."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def works(source: TokenSource, token: str) -> bool:
    """Say whether a JWT made with *token* is accepted by *source*."""
    other = TokenSource.of(token, {})
    assert other is not None
    try:
        verify(mint(other.keys(), "n", now=1000, jti="j"), source.keys(), now=1000)
    except Exception:
        return False
    return True


def test_nothing_set() -> None:
    """Without an argument and without variables there is no token."""
    assert TokenSource.of(None, {}) is None


def test_the_argument_wins() -> None:
    """An explicit token is used, whatever the environment says."""
    source = TokenSource.of(TOKEN, {"BLAZEN_PEER_TOKEN": OTHER})
    assert source is not None
    assert works(source, TOKEN)
    assert not works(source, OTHER)


def test_exporting_the_variable_suffices() -> None:
    """BLAZEN_PEER_TOKEN alone makes a source, as the reference promises."""
    source = TokenSource.of(None, {"BLAZEN_PEER_TOKEN": TOKEN})
    assert source is not None
    assert works(source, TOKEN)


def test_previous_is_accepted_too() -> None:
    """BLAZEN_PEER_TOKEN_PREVIOUS is accepted beside the current one."""
    source = TokenSource.of(None, {"BLAZEN_PEER_TOKEN": TOKEN, "BLAZEN_PEER_TOKEN_PREVIOUS": OTHER})
    assert source is not None
    assert works(source, TOKEN)
    assert works(source, OTHER)


REFUSED = [
    pytest.param({"BLAZEN_PEER_TOKEN": ""}, id="set-but-empty"),
    pytest.param({"BLAZEN_PEER_TOKEN": "short"}, id="under-32-characters"),
    pytest.param({"BLAZEN_PEER_TOKEN": "a b" * 20}, id="a-space"),
    pytest.param({"BLAZEN_PEER_TOKEN_PREVIOUS": TOKEN}, id="previous-alone"),
    pytest.param({"BLAZEN_PEER_TOKEN": TOKEN, "BLAZEN_PEER_TOKEN_FILE": "x"}, id="variable-and-file"),
    pytest.param({"BLAZEN_PEER_TOKEN_FILE": "no/such/file"}, id="no-such-file"),
    pytest.param({"BLAZEN_PEER_TOKEN": TOKEN, "BLAZEN_PEER_TOKEN_PREVIOUS": ""}, id="previous-empty"),
]


@pytest.mark.parametrize("environ", REFUSED)
def test_refused_at_start(environ: dict[str, str]) -> None:
    """A token that is set and not usable stops the start; the message never holds it."""
    with pytest.raises(ValidationError) as caught:
        TokenSource.of(None, environ)
    assert not any(value and value in str(caught.value) for name, value in environ.items() if not name.endswith("FILE"))


def test_a_file_is_read_again(tmp_path: Path) -> None:
    """A token file that is replaced is in force at the next call."""
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    source = TokenSource.of(None, {"BLAZEN_PEER_TOKEN_FILE": str(path)})
    assert source is not None
    assert works(source, TOKEN)
    replace(path, OTHER)
    assert works(source, OTHER)
    assert not works(source, TOKEN)


@pytest.mark.parametrize("spoilt", ["", "short"])
def test_a_spoilt_file_loses_nothing(tmp_path: Path, spoilt: str) -> None:
    """A file that is emptied or spoilt leaves the last good token in force."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    source = TokenSource.of(None, {"BLAZEN_PEER_TOKEN_FILE": str(path)})
    assert source is not None
    replace(path, spoilt)
    assert works(source, TOKEN)


def test_a_removed_file_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is gone leaves the last value, is complained about once, and is found again."""
    path = tmp_path / "token"
    path.write_text("one")
    secret = SecretFile(path)
    path.unlink()
    assert [secret.read(), secret.read()] == ["one", "one"]
    assert len(caplog.records) == 1
    path.write_text("two")
    assert secret.read() == "two"


def test_a_rewrite_of_the_same_size_is_seen(tmp_path: Path) -> None:
    """Even a rewrite in place of the same length within one second is seen, by its time in nanoseconds."""
    path = tmp_path / "token"
    path.write_text("one")
    secret = SecretFile(path)
    assert secret.read() == "one"
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert secret.read() == "two"


def test_two_proofs_count_during_a_change(tmp_path: Path) -> None:
    """After a change the new proof counts and the one before it, but not an older one."""
    path = tmp_path / "proof"
    path.write_text("a" * 32)
    source = ProofSource(path)
    assert source.proofs() == ("a" * 32,)
    replace(path, "b" * 32)
    assert source.proofs() == ("b" * 32, "a" * 32)
    replace(path, "c" * 32)
    assert source.proofs() == ("c" * 32, "b" * 32)


def test_a_proof_must_be_long(tmp_path: Path) -> None:
    """A proof that anybody could guess stops the start."""
    path = tmp_path / "proof"
    path.write_text("guess")
    with pytest.raises(ValidationError, match="32 to 512"):
        ProofSource(path)


def test_several_previous_tokens() -> None:
    """A token a line: all of them are accepted; more than three, or an empty line, are refused at start."""
    environ = {"BLAZEN_PEER_TOKEN": TOKEN, "BLAZEN_PEER_TOKEN_PREVIOUS": f"{TOKEN}\n{OTHER}"}
    source = TokenSource.of(None, environ)
    assert source is not None
    assert source.keys().tokens == (TOKEN.encode(), TOKEN.encode(), OTHER.encode())
    for wrong, why in (("\n".join([OTHER] * 4), "there are 4 previous tokens"), (f"{OTHER}\n\n{TOKEN}", "is set but empty")):
        with pytest.raises(ValidationError, match=why):
            TokenSource.of(None, {**environ, "BLAZEN_PEER_TOKEN_PREVIOUS": wrong})
