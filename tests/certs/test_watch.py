"""The keeper: what it does at which moment, with a clock of the test's own; and the command, which ends when it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, verify_identity
from blazen_certs.renewal import renewal_time
from blazen_certs.upkeep import revoke_node
from blazen_certs.watch import LOOK_EVERY, Watch

HOUR = timedelta(hours=1)
END_SECS = 30.0


@pytest.fixture
def events() -> list[dict[str, Any]]:
    """What the keeper said."""
    return []


@pytest.fixture
def keeper(authority: Authority, events: list[dict[str, Any]]) -> Watch:
    """A keeper of the whole store."""
    return Watch(authority, events.append)


def said(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["event"], event.get("node", event.get("region"))) for event in events]


def test_two_days_with_nobody_there(authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime) -> None:
    """Over two days every look finds a node that is valid, with lists that are; nothing fails."""
    path = authority.issue("analyst", now=now).path
    moment = now
    while moment < now + 48 * HOUR:
        again = keeper.look(moment)
        assert moment < again <= moment + LOOK_EVERY
        report = verify_identity(path, at=moment, node_id="analyst", trust=authority.trust())
        assert [check.detail for check in report.checks if not check.ok] == []
        moment = max(again, moment + LOOK_EVERY * 15)  # late each time: a busy machine
    counts = {name: sum(event["event"] == name for event in events) for name in ("renewed", "list-signed", "failed")}
    assert counts == {"renewed": 3, "list-signed": 7, "failed": 0}


def test_looks_again_when_something_is_due(authority: Authority, keeper: Watch, now: datetime) -> None:
    """Nothing is due for hours: it looks in a minute. A short life is due sooner: it looks then."""
    issued = authority.issue("short", now=now, lifetime=timedelta(seconds=60))
    due = renewal_time(issued.certificate)
    assert timedelta(seconds=36) <= due - now <= timedelta(seconds=40)
    assert keeper.look(now) == due


def test_new_nodes_are_kept_too(authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime) -> None:
    """A node that was issued after the start is renewed like the others."""
    keeper.look(now)
    authority.issue("late", now=now)
    keeper.look(now + 20 * HOUR)
    assert ("renewed", "late") in said(events)


def test_failure_is_tried_again_later_and_later(
    authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime
) -> None:
    """10 s, 20 s, ... 5 min apart, one line each; the other node does not wait; once it works the count begins anew."""
    authority.issue("good", now=now)
    authority.issue("bad", now=now)
    home = authority.directory / "nodes" / "bad"
    shutil.move(home / "v1", home / "kept")
    (home / "v1").symlink_to("v1")  # a link to itself: reading fails, and so does whatever would be written
    record = authority.directory / "issued" / "bad"
    shutil.move(record, record.with_name("elsewhere"))
    record.write_text("a file where a directory must be")
    moment, gaps = now, []
    for _ in range(7):
        again = keeper.look(moment)
        gaps.append((again - moment).total_seconds())
        moment = again
    failed = [event for event in events if event["event"] == "failed"]
    retries = [datetime.fromisoformat(event["retry"]) - datetime.fromisoformat(event["time"]) for event in failed]
    assert [gap.total_seconds() for gap in retries] == sorted(gap.total_seconds() for gap in retries)
    assert retries[0] == timedelta(seconds=10)
    assert max(gaps) <= 60
    assert {event["node"] for event in failed} == {"bad"}


def test_revoked_is_said_once(authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime) -> None:
    """A node that gets nothing more is one line in the log, not one a minute."""
    authority.issue("analyst", now=now)
    revoke_node(authority, "analyst", now=now)
    for minute in range(5):
        keeper.look(now + timedelta(minutes=minute))
    assert said(events) == [("revoked", "analyst")]


def test_issuing_ca_is_renewed_on_the_way(
    authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime
) -> None:
    """After 60 days a new issuing CA is prepared, a minute later it issues; without the root's key, what to do is said once."""
    authority.issue("analyst", now=now, lifetime=timedelta(days=80))
    keeper.look(now + timedelta(days=60))
    keeper.look(now + timedelta(days=60, minutes=2))
    assert [name for name, what in said(events) if what == "mesh" and name != "list-signed"] == [
        "issuing-prepared",
        "issuing-activated",
    ]
    (authority.directory / "root/v1/root.key").unlink()
    events.clear()
    for day in range(121, 124):
        keeper.look(now + timedelta(days=day))
    said_once = [event for event in events if event["event"] == "issuing-failed"]
    assert len(said_once) == 1
    assert "--root-dir DIR" in said_once[0]["detail"]


def test_every_event_is_json(authority: Authority, keeper: Watch, events: list[dict[str, Any]], now: datetime) -> None:
    """Each has a time and a name, and can be written as one line of JSON."""
    authority.issue("analyst", now=now)
    keeper.look(now + 20 * HOUR)
    assert events
    for event in events:
        assert {"time", "event"} <= set(json.loads(json.dumps(event)))


def test_run_ends_when_it_is_told(authority: Authority, keeper: Watch, now: datetime) -> None:
    """In the middle of its wait, the loop ends as soon as the event is set."""
    stop = threading.Event()
    looked: list[datetime] = []

    def clock() -> datetime:
        looked.append(now)
        return now

    thread = threading.Thread(target=keeper.run, args=(stop, clock))
    thread.start()
    until = time.monotonic() + END_SECS
    while not looked and time.monotonic() < until:
        time.sleep(0.01)
    stop.set()
    thread.join(END_SECS)
    assert not thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_ends_on_a_signal(tmp_path: Path, number: int, run: Callable[..., Any]) -> None:
    """The command renews what is due at its start, logs one JSON object a line, and ends with 0 when it is told to."""
    assert run("init", "--trust-domain", "mesh.test").code == 0
    assert run("issue", "analyst", "--lifetime-hours", "0.0002").code == 0
    command = [sys.executable, "-m", "blazen_certs.cli", "watch", "--json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=END_SECS)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")
    assert [line["event"] for line in lines] == ["watching", "renewed"]
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"
