"""Join codes: for one node, once, for a while; of any number of tries one succeeds, and who guesses learns nothing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, codes
from blazen_certs.codes import MAX_FAILURES, CodeBook, JoinCode
from blazen_certs.errors import CodeError, StoreError
from blazen_certs.upkeep import revoke_node
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

PEER = PeerId("mesh.test", "analyst")
OTHER = PeerId("mesh.test", "intake")
MINUTE = timedelta(minutes=1)
REDEEM = """
import sys
from pathlib import Path
from blazen_certs.codes import CodeBook
from blazen_certs.errors import CodeError
from blazen_peer.identity import PeerId
sys.stdin.readline()
try:
    CodeBook(Path(sys.argv[1])).redeem(sys.argv[2], sys.argv[3], PeerId("mesh.test", "analyst"))
    print("mine")
except CodeError as error:
    print(error)
"""


@pytest.fixture
def root(authority: Authority) -> Any:
    """The root's certificate."""
    return authority.trust().root.certificate


@pytest.fixture
def book(authority: Authority) -> CodeBook:
    """The codes of the store."""
    return CodeBook.of(authority.directory)


@pytest.fixture
def code(book: CodeBook, root: Any, now: Any) -> JoinCode:
    """A code for analyst, made at ``now``."""
    return book.make(PEER, root, dns_names=["a.test"], now=now)


def test_a_code_is_good_once(book: CodeBook, code: JoinCode, now: Any) -> None:
    """The first try gets what the code allows; the second is told when it was used."""
    record = book.redeem(code.id, code.secret, PEER, now=now + MINUTE)
    assert (record.peer, record.dns_names) == (PEER, ("a.test",))
    with pytest.raises(CodeError, match="used already, at 2026-01-15T12:01:00Z"):
        book.redeem(code.id, code.secret, PEER, now=now + 2 * MINUTE)


def test_a_code_survives_as_text(code: JoinCode, root: Any, authority: Authority, tmp_path: Path) -> None:
    """Text and code lead to each other; the pin fits the one root and no other."""
    read = JoinCode.parse(f" {code.text()}\n")
    assert read == code
    assert read.pins(root)
    assert not read.pins(Authority.create(tmp_path / "other", "mesh.test").trust().root.certificate)


def test_the_secret_is_nowhere(book: CodeBook, code: JoinCode) -> None:
    """Neither the record on disk nor the code's own repr holds the secret."""
    assert code.secret not in (book.directory / f"{code.id}.json").read_text()
    assert code.secret not in repr(code)


REFUSED = [
    pytest.param({"secret": "A" * 27}, "^the code is not accepted$", id="wrong-secret"),
    pytest.param({"secret": ""}, "^the code is not accepted$", id="no-secret"),
    pytest.param({"code_id": "0" * 16}, "^the code is not accepted$", id="unknown-id"),
    pytest.param({"code_id": "../../root"}, "^the code is not accepted$", id="id-is-a-path"),
    pytest.param({"peer": OTHER}, "is for spiffe://mesh.test/peer/analyst, not for", id="another-node"),
    pytest.param({"peer": PeerId("eu.mesh.test", "analyst")}, "not for spiffe://eu", id="another-region"),
    pytest.param({"after": timedelta(minutes=15)}, "ended at 2026-01-15T12:15:00Z", id="ended"),
    pytest.param({"secret": "A" * 27, "after": timedelta(days=1)}, "^the code is not accepted$", id="ended-and-wrong"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(book: CodeBook, code: JoinCode, now: Any, change: dict[str, Any], message: str) -> None:
    """One wrong thing each; only who has the secret is told which. Time apart, the code is still good afterwards."""
    given = {"code_id": code.id, "secret": code.secret, "peer": PEER, "after": MINUTE, **change}
    with pytest.raises(CodeError, match=message):
        book.redeem(given["code_id"], given["secret"], given["peer"], now=now + given["after"])
    assert book.redeem(code.id, code.secret, PEER, now=now + MINUTE).peer == PEER


@pytest.mark.parametrize("wrong", [{"secret": "A" * 27}, {"peer": OTHER}], ids=["secret", "node"])
def test_tries_are_counted(book: CodeBook, code: JoinCode, now: Any, wrong: dict[str, Any]) -> None:
    """After five failures the code is gone, even for who has it, and nobody is told so."""
    given = {"secret": code.secret, "peer": PEER, **wrong}
    for _ in range(MAX_FAILURES):
        with pytest.raises(CodeError):
            book.redeem(code.id, given["secret"], given["peer"], now=now)
    with pytest.raises(CodeError, match=r"^the code is not accepted$"):
        book.redeem(code.id, code.secret, PEER, now=now)


def test_threads_at_once(book: CodeBook, code: JoinCode, now: Any) -> None:
    """Of 8 threads that use one code at once, one succeeds."""

    def use(_: int) -> bool:
        try:
            return book.redeem(code.id, code.secret, PEER, now=now).peer == PEER
        except CodeError:
            return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(use, range(8))) == 1


def test_processes_at_once(authority: Authority, book: CodeBook, root: Any) -> None:
    """Of 4 processes that use one code at once, one succeeds: a service that was started anew does not take it again."""
    code = book.make(PEER, root)
    argv = [sys.executable, "-c", REDEEM, str(book.directory), code.id, code.secret]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        with process:
            answers.append(process.communicate(timeout=30)[0])
    assert sum(answer == "mine\n" for answer in answers) == 1
    assert sum("used already" in answer for answer in answers) == 3


def test_old_records_are_forgotten(book: CodeBook, code: JoinCode, root: Any, now: Any) -> None:
    """A week after its end a code's record goes, when the next code is made."""
    book.make(OTHER, root, now=now + timedelta(days=6))
    assert len(list(book.directory.glob("*.json"))) == 2
    book.make(OTHER, root, now=now + timedelta(days=7, minutes=16))
    with pytest.raises(CodeError, match="not accepted"):
        book.redeem(code.id, code.secret, PEER, now=now)


def test_open_codes_are_bounded(book: CodeBook, code: JoinCode, root: Any, now: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three may be open here and no more; one that was used, has ended or was failed at too often makes room."""
    monkeypatch.setattr(codes, "MAX_OPEN_CODES", 3)
    short, tried = book.make(OTHER, root, lifetime=MINUTE, now=now), book.make(OTHER, root, now=now)
    with pytest.raises(StoreError, match=r"3 codes are open in .*blazen-certs revoke NODE"):
        book.make(OTHER, root, now=now)
    book.redeem(code.id, code.secret, PEER, now=now)
    book.make(OTHER, root, now=now)
    with pytest.raises(CodeError, match="ended"):
        book.redeem(short.id, short.secret, OTHER, now=now + MINUTE)
    book.make(OTHER, root, now=now + MINUTE)
    for _ in range(MAX_FAILURES):
        with pytest.raises(CodeError, match="not accepted"):
            book.redeem(tried.id, "A" * 27, OTHER, now=now)
    book.make(OTHER, root, now=now + MINUTE)
    with pytest.raises(StoreError, match="3 codes are open"):
        book.make(OTHER, root, now=now + MINUTE)


def test_closed_codes_are_bounded(book: CodeBook, root: Any, now: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are remembered here, those that end last; one that is forgotten is good for nothing, and open ones stay."""
    monkeypatch.setattr(codes, "MAX_CLOSED_CODES", 2)
    used = [book.make(PEER, root, lifetime=(4 - place) * MINUTE, now=now) for place in range(3)]
    still_open = book.make(PEER, root, lifetime=MINUTE, now=now)
    for code in used:
        book.redeem(code.id, code.secret, PEER, now=now)
    book.make(OTHER, root, now=now)
    said = []
    for code in used:
        with pytest.raises(CodeError) as caught:
            book.redeem(code.id, code.secret, PEER, now=now)
        said.append("used already" in str(caught.value))
    assert said == [True, True, False]
    assert book.redeem(still_open.id, still_open.secret, PEER, now=now).peer == PEER


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(days=7, seconds=1)], ids=["none", "too-long"])
def test_lifetime_has_bounds(book: CodeBook, root: Any, lifetime: timedelta) -> None:
    """No code without an end."""
    with pytest.raises(ValidationError, match="at most 7 days"):
        book.make(PEER, root, lifetime=lifetime)


INVALID = [
    pytest.param("", id="empty"),
    pytest.param("bjc1:mesh.test:analyst", id="half"),
    pytest.param("bjc2:mesh.test:analyst:{id}:{secret}:{pin}", id="another-version"),
    pytest.param("bjc1:mesh.test:../x:{id}:{secret}:{pin}", id="node-is-a-path"),
    pytest.param("bjc1:mesh.test:analyst:{id}:{secret}:{pin}=", id="padded"),
    pytest.param("bjc1:mesh.test:analyst:{id}:{secret}:{pin} x", id="more-behind"),
    pytest.param("bjc1:MESH:analyst:{id}:{secret}:{pin}", id="upper-case-domain"),
]


@pytest.mark.parametrize("text", INVALID)
def test_what_is_no_code(code: JoinCode, text: str) -> None:
    """Anything but a whole code is refused, and not repeated: it may hold the secret."""
    parts = code.text().split(":")
    given = text.format(id=parts[3], secret=parts[4], pin=parts[5])
    with pytest.raises(ValidationError) as caught:
        JoinCode.parse(given)
    assert code.secret not in str(caught.value)


def test_revoking_a_node_ends_its_codes(
    authority: Authority, book: CodeBook, code: JoinCode, root: Any, now: Any, run: Any
) -> None:
    """Also those of a node that never joined, so a code can be taken back; other nodes' stay good. The command says so."""
    other = book.make(OTHER, root, now=now)
    (book.directory / f"{'0' * 16}.json").write_bytes(b"damaged")
    done = revoke_node(authority, "analyst", now=now + MINUTE)
    assert (done.revoked, done.codes) == ((), 1)
    with pytest.raises(CodeError, match="the code ended at 2026-01-15T12:01:00Z"):
        book.redeem(code.id, code.secret, PEER, now=now + MINUTE)
    assert book.redeem(other.id, other.secret, OTHER, now=now + MINUTE).peer == OTHER
    with pytest.raises(StoreError, match="nothing was ever issued to analyst"):
        revoke_node(authority, "analyst", now=now + MINUTE)
    (book.directory / f"{'0' * 16}.json").unlink()
    book.make(PEER, root)
    assert "ended    1 join code of analyst" in run("revoke", "analyst", "--dir", str(authority.directory)).out
