"""The policy as a file: read again when it changes, whole or not at all, and day by day."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from blazen_peer import PermissionDeniedError, ValidationError
from blazen_peer.policy import Policy
from blazen_peer.policy_file import PolicySource
from tests.peer.policy.guarded import Guarded, flow, policy_of

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Guard = Callable[..., Awaitable[Guarded]]

WIDE = policy_of(flow("intake", "analyst", ["analyze", "count"], "personal"))
NARROW = policy_of(flow("intake", "analyst", ["analyze"], "personal"))
TWO_DOMAINS = Policy.from_json(
    policy_of(flow("intake", "analyst", ["analyze"], "personal"), flow("audit", "analyst", ["count"], "personal"))
    .to_json()
    .replace("spiffe://mesh.test/peer/analyst", "spiffe://other.test/peer/analyst", 1)
)
BAD = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="cut-short"),
    pytest.param(b"[]", id="another-document"),
    pytest.param(b"\xff\xfe", id="not-text"),
    pytest.param(b'{"format": 2, "data": [], "flows": []}', id="a-newer-format"),
    pytest.param(NARROW.to_json().replace('"personal"', '"secret"', 1).encode(), id="a-contradiction"),
    pytest.param(TWO_DOMAINS.to_json().encode(), id="this-node-in-two-trust-domains"),
    pytest.param(b" " * (4 * 1024 * 1024 + 1), id="over-4-MiB"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.json"
    file.write_text(WIDE.to_json())
    return file


def source(policy: Policy | str | Path, now: float = 0) -> PolicySource:
    return PolicySource(policy, "analyst", lambda: now)


def replace(file: Path, text: str | bytes) -> None:
    """Put *text* in the place of the file in one move, as blazen-mesh does."""
    new = file.with_name("new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    new.replace(file)


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def serves(peer: Guarded) -> None:
    peer.serve("analyze", "first")
    peer.serve("count", "counted")


async def test_changed_while_running(guarded: Guard, file: Path) -> None:
    """The next call after the file has changed is under the new policy, narrower or wider; connections stay."""
    peer = await guarded(file, serves)
    client = await peer.client("intake", "personal")
    for round_ in range(3):
        assert (await client.run_remote_workflow("count", [], "1")).result == 1
        replace(file, NARROW.to_json())
        with pytest.raises(PermissionDeniedError):
            await client.run_remote_workflow("count", [], "1")
        assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
        replace(file, WIDE.to_json())
        assert peer.begun == {"counted": round_ + 1, "first": round_ + 1}


@pytest.mark.parametrize("text", BAD)
async def test_bad_file(guarded: Guard, file: Path, caplog: pytest.LogCaptureFixture, text: bytes) -> None:
    """A file that is no policy leaves the last one in force, with one line in the log; describe and health say so until it is
    mended."""
    peer = await guarded(file, serves)
    client = await peer.client("intake", "personal")
    digest = digest_of(file)
    replace(file, text)
    caplog.clear()
    for _ in range(3):
        assert (await client.run_remote_workflow("count", [], "1")).result == 1
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith(f"cannot use the policy {file} again (")
    assert line.endswith("the last good one stays in force")
    described = (await client.describe()).policy
    assert (described.digest, list(described.data_classes)) == (digest, ["personal", "internal", "public"])
    assert described.problem
    assert described.problem in line
    port = await peer.port("intake", "personal")
    assert (await port.connect())._traits.policy == f"{digest} stale"
    replace(file, NARROW.to_json())
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("count", [], "1")
    mended = (await client.describe()).policy
    assert (mended.problem, mended.digest) == ("", digest_of(file))


@pytest.mark.parametrize("text", BAD)
def test_bad_file_at_the_start(file: Path, text: bytes) -> None:
    """A server does not start with a policy that cannot be read: there is no last good one."""
    file.write_bytes(text)
    with pytest.raises(ValidationError, match="cannot use the policy"):
        source(file)


def test_missing_at_the_start(tmp_path: Path) -> None:
    """Nor with one that is not there."""
    with pytest.raises(ValidationError, match=r"cannot use the policy .*No such file"):
        source(tmp_path / "policy.json")


def test_missing_later(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that goes away leaves its policy in force; back again, even with the same text, all is well."""
    policy = source(file)
    before = policy.in_force().policy
    kept = file.with_name("kept")
    file.rename(kept)
    for _ in range(3):
        assert policy.in_force().policy is before
    assert policy.state.problem == "No such file or directory"
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    kept.rename(file)
    assert policy.in_force().policy == before
    assert policy.state.problem is None


def test_unchanged(file: Path) -> None:
    """While the file stays as it is, so does the value: what was asked of it is remembered by it."""
    policy = source(str(file))
    assert policy.in_force() is policy.in_force()
    os.utime(file, ns=(1, 1))
    assert policy.in_force().policy == WIDE


def test_last_day() -> None:
    """A flow ends by itself when its last day, in UTC, is over; no file has to change."""
    now = datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    times = [now]
    limited = policy_of(
        flow("intake", "analyst", ["analyze"], "personal"),
        flow("intake", "analyst", ["count"], "personal", until=date(2027, 1, 31)),
    )
    policy = PolicySource(limited, "analyst", lambda: times[0])
    assert len(policy.in_force().policy.flows) == 2
    times[0] += 1
    assert [sorted(each.workflows) for each in policy.in_force().policy.flows] == [["analyze"]]


def test_who_it_is_when_its_flows_are_over() -> None:
    """A peer all of whose flows are over knows who it is: what it refuses, it refuses for want of a flow."""
    over = policy_of(flow("intake", "analyst", ["count"], "personal", until=date(2020, 1, 1)))
    in_force = source(over, now=datetime(2027, 1, 1, tzinfo=UTC).timestamp()).in_force()
    assert in_force.policy.flows == ()
    assert str(in_force.callee) == "spiffe://mesh.test/peer/analyst"


def test_value() -> None:
    """A policy given as a value is in force as it is, and named by the digest of its text."""
    assert source(WIDE).state.digest == hashlib.sha256(WIDE.to_json().encode()).hexdigest()
