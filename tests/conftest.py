"""What every test starts from: no variables of ours or of OpenTelemetry's, and no tokens of the developer's own.

Also what the tests of several folders share: peers in processes of their own, and the commands that a document quotes.
"""

from __future__ import annotations

import doctest
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from blazen_peer import PeerClient

# How long an example takes says how busy the machine is, and nothing of the code under test.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

ROOT = Path(__file__).parents[1]
START_SECS = 20.0
END_SECS = 20.0
COMMAND_SECS = 60.0  # more than the 30 s that some commands wait by themselves, and then say what for
_LISTENS = re.compile(r"listens on (\S+)")
_EXITS = re.compile(r"\s+# exits ([0-9]+)$")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every BLAZEN_* and OTEL_* variable away."""
    for name in list(os.environ):
        if name.startswith(("BLAZEN_", "OTEL_")):
            monkeypatch.delenv(name)


def _environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a command: this interpreter's scripts first in PATH, a terminal of 100 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", **(more or {})}


@dataclass
class PeerProcess:
    """A peer in a process of its own."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        """What it has written so far, both streams."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> str:
        """Where it says that it listens."""
        return _LISTENS.findall(self.wait_for("listens on "))[-1]

    def wait_for(self, text: str, secs: float = START_SECS) -> str:
        """Wait until *text* stands in the log, and return the log."""
        until = time.monotonic() + secs
        while text not in (log := self.log):
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it wrote {text!r}:\n{log}"
            assert time.monotonic() < until, f"did not write {text!r} within {secs} s:\n{log}"
            time.sleep(0.01)
        return log

    def end(self, *signals: int, secs: float = END_SECS) -> int:
        """Send *signals*, wait for the end, and return the exit code."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(secs)


StartPeer = Callable[..., PeerProcess]


@pytest.fixture
def start_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPeer]:
    """A factory: run a command that serves a peer, with *env* added to the environment; killed at the end if it still runs."""
    started: list[PeerProcess] = []

    def start(*argv: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> PeerProcess:
        log_file = tmp_path_factory.mktemp("peer") / "log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                argv, cwd=cwd, env=_environment(env), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        started.append(PeerProcess(process, log_file))
        return started[-1]

    yield start
    for peer in started:
        if peer.process.poll() is None:
            peer.process.kill()
        peer.process.wait(END_SECS)


@dataclass(frozen=True)
class ConsoleCommand:
    """One command of a ``console`` block: the line after ``$ ``, the exit code said behind it, the output shown below it."""

    command: str
    code: int
    shown: str

    def run(self, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        """Run it in a shell; it must end with its code and print what is shown, where ``...`` stands for anything."""
        got = self.output(cwd, env)
        if self.shown:
            assert _matches(self.shown, got), f"{self.command}\n--- shown\n{self.shown}\n--- printed\n{got}"

    def output(self, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Run it in a shell; it must end with its code. Return what it prints."""
        done = subprocess.run(
            ["/bin/sh", "-c", self.command],
            cwd=cwd,
            env=_environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECS,
            check=False,
        )
        assert done.returncode == self.code, f"{self.command}\n{done.stdout}"
        return _trimmed(done.stdout)


def _matches(shown: str, printed: str) -> bool:
    """Say whether *printed* is what a document shows, in which ``...`` stands for anything."""
    return doctest.OutputChecker().check_output(_trimmed(shown), _trimmed(printed), doctest.ELLIPSIS)


def _trimmed(text: str) -> str:
    """Return *text* without white space at the ends of its lines and empty lines around it, as documents show output."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


def commands_of(text: str, *, outputs: bool = True) -> list[ConsoleCommand]:
    """Return each command of the ``console`` blocks of a document. *outputs*: whether what stands below it is compared."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            said = _EXITS.search(command)
            found.append(
                ConsoleCommand(
                    command=_EXITS.sub("", command),
                    code=int(said[1]) if said else 0,
                    shown=_trimmed(shown) if outputs and shown.strip() else "",
                )
            )
    return found


@pytest.fixture
def console_commands() -> Callable[..., Sequence[ConsoleCommand]]:
    """The commands of a document: ``console_commands(text, outputs=True)``."""
    return commands_of


@pytest.fixture
def matches() -> Callable[[str, str], bool]:
    """``matches(shown, printed)``, where ``...`` in *shown* stands for anything."""
    return _matches


@pytest.fixture(params=["alone", "by-lane"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the test's clients carry calls, where it does not say: each on its own, or by a lane. For the tests of both ways:
    ``pytestmark = pytest.mark.usefixtures("way")``."""
    chosen: str = request.param
    if chosen == "alone":
        make = PeerClient.__init__

        def made(client: PeerClient, *args: Any, **options: Any) -> None:
            make(client, *args, **options)
            if client._lane_mode == "auto":
                client._lane_mode = "never"

        monkeypatch.setattr(PeerClient, "__init__", made)
    return chosen


@pytest.fixture
def free_port() -> int:
    """A TCP port of loopback on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait, in a thread without a loop, until ``condition()`` is true: ``wait_until(condition, secs=20)``."""

    def wait(condition: Callable[[], object], secs: float = START_SECS) -> None:
        until = time.monotonic() + secs
        while not condition():
            assert time.monotonic() < until, f"not so within {secs} s"
            time.sleep(0.01)

    return wait


@pytest.fixture
def root() -> Path:
    """The project's own directory."""
    return ROOT
