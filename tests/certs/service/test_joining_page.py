"""``docs/joining.md`` is true: its commands are run in their order, those of the two machines in two directories."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_certs.cli.main import app
from blazen_certs.codes import DEFAULT_CODE_LIFETIME, MAX_CLOSED_CODES, MAX_CODE_LIFETIME, MAX_FAILURES, MAX_OPEN_CODES
from blazen_certs.remote import ANSWER_SECS, CONNECT_SECS
from blazen_certs.remote_watch import FIRST_RETRY_SECS, LAST_RETRY_SECS, REFUSED_RETRY_SECS
from blazen_certs.service import ServiceSettings
from blazen_certs.service_wire import MAX_HEAD_BYTES, MAX_REQUEST_BYTES

PAGE = Path(__file__).parents[3] / "docs" / "joining.md"
ADDRESS = "10.77.0.1:9443"
LASTING = ("blazen-certs serve ", "blazen-certs watch ")
WAIT_SECS = 30


def test_commands_do_what_is_shown(
    tmp_path: Path,
    free_port: int,
    console_commands: Callable[..., Any],
    start_peer: Callable[..., Any],
    wait_until: Callable[..., None],
    matches: Callable[[str, str], bool],
) -> None:
    """Each command ends with its code and prints what stands below it; serve and watch do while they run."""
    ca, node = tmp_path / "ca", tmp_path / "node"
    ca.mkdir()
    node.mkdir()
    ran, lasting = [], {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8").replace(ADDRESS, f"127.0.0.1:{free_port}"), flags=re.M):
        there = node if section.startswith("On the node's machine") else ca
        if there == node:
            shutil.copy(ca / "analyst.code", node)  # as a person would
        for command in console_commands(section):
            ran.append(command.command)
            if command.command.startswith(LASTING):
                process = start_peer(*shlex.split(command.command), cwd=there)
                wait_until(lambda p=process, c=command: matches(c.shown, p.log), secs=WAIT_SECS)
                lasting[command.command.split()[1]] = process
            else:
                command.run(there)
    assert len(ran) == 10
    lasting["watch"].wait_for("kind=Revoked", WAIT_SECS)
    assert [process.end(15) for process in lasting.values()] == [0, 0]


def test_bounds_are_those_of_the_code() -> None:
    """The numbers of the page's table are the constants."""
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M))
    settings = ServiceSettings()
    expected = {
        "TLS": (settings.handshake_secs, settings.request_secs, settings.max_wait_secs),
        "a request": (MAX_HEAD_BYTES / 1024, MAX_REQUEST_BYTES / 1024),
        "connections": (
            settings.max_connections,
            settings.max_connections_each,
            settings.max_handshakes,
            settings.max_handshakes_each,
        ),
        "a code": (DEFAULT_CODE_LIFETIME.seconds / 60, MAX_CODE_LIFETIME.days, MAX_FAILURES, MAX_OPEN_CODES, MAX_CLOSED_CODES),
        "a node's patience": (CONNECT_SECS, ANSWER_SECS, FIRST_RETRY_SECS, LAST_RETRY_SECS, REFUSED_RETRY_SECS),
    }
    for row, numbers in expected.items():
        found = re.findall(r"[0-9][0-9.]*[0-9]|[0-9]", rows[row])
        assert {f"{number:g}" for number in numbers} <= set(found), row


@pytest.mark.parametrize("command", ["code", "serve", "join", "watch"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help holds a line that can be copied."""
    app([command, "--help"], standalone_mode=False)
    assert f"blazen-certs {command} " in capsys.readouterr().out.split("Example")[1]
