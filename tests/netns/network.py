"""Hosts without containers: network namespaces, one each, joined by a bridge in a namespace of its own.

with Network("alpha", "beta") as network:
    alpha, beta = network.hosts.values()
    alpha.run("blazen-certs", "join", f"{beta.address}:9443")      # a process on that host: its loopback, its one address
    network.partition("alpha", "beta")                             # silence; loud=True: refused
    network.heal()

Nothing of the machine's own network is touched: no address, no rule, no forwarding, no setting; the interfaces are made inside
the namespaces. Names are unique to the run. ``reaper.py`` removes all of it, also when this process is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SUBNET", "Host", "Network", "NetworkError"]

_REAPER = Path(__file__).with_name("reaper.py")
COMMAND_SECS = 30.0
SUBNET = "10.77.0"


class NetworkError(Exception):
    """This machine, or these rights, do not allow it; the text says what was tried."""


@dataclass(frozen=True)
class Host:
    """One host of a network.

    Attributes:
        name: What the test calls it.
        address: Its one address, besides loopback.
        namespace: What ``ip netns`` calls it.
    """

    name: str
    address: str
    namespace: str

    def argv(self, *argv: str) -> list[str]:
        """Return the command line that runs *argv* on this host, as the same process (``ip netns exec`` becomes it)."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str = "") -> Any:
        """Run a command to its end on this host, and return what it did; its scripts are this interpreter's."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            self.argv(*argv),
            cwd=cwd,
            env={**os.environ, "PATH": path, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECS,
            check=False,
        )


class Network:
    """Hosts on one link. Entered means there; left means gone, with every process that runs in it."""

    def __init__(self, *names: str) -> None:
        self._prefix = f"bz{secrets.token_hex(3)}-"
        self._bridge = f"{self._prefix}bridge"
        self.hosts = {
            name: Host(name, f"{SUBNET}.{number}", f"{self._prefix}{name}") for number, name in enumerate(names, start=1)
        }
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Network:
        for tool in ("ip", "iptables"):
            if shutil.which(tool) is None:
                raise NetworkError(f"no {tool}: apt-get install iproute2 iptables")
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root")
        # In a session of its own, so that an interrupt of the test run leaves it to its work.
        self._reaper = subprocess.Popen(
            [sys.executable, str(_REAPER), self._prefix], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def close(self) -> None:
        """End every process in it, and remove it."""
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait(COMMAND_SECS)
            self._reaper = None

    def partition(self, one: str, other: str, *, loud: bool = False) -> None:
        """Let nothing through between two hosts: packets vanish, or where *loud* is set TCP is refused and reset."""
        for here, there in ((one, other), (other, one)):
            source = ["-A", "INPUT", "-s", f"{self.hosts[there].address}/32"]
            if loud:
                # The refusal itself is a packet from the other side, and must come in.
                self._rule(here, *source, "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "ACCEPT")
                self._rule(here, *source, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
            self._rule(here, *source, "-j", "DROP")

    def isolate(self, name: str, *, loud: bool = False) -> None:
        """Part one host from all others."""
        for other in self.hosts:
            if other != name:
                self.partition(name, other, loud=loud)

    def lose(self, name: str, probability: float) -> None:
        """Drop this part of the packets that come in at a host from its link."""
        statistic = ["-m", "statistic", "--mode", "random", "--probability", str(probability)]
        self._rule(name, "-A", "INPUT", "-i", "eth0", *statistic, "-j", "DROP")

    def heal(self) -> None:
        """Take back every partition and loss."""
        for name in self.hosts:
            self._rule(name, "-F")

    def _build(self) -> None:
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge", "up")
        for number, host in enumerate(self.hosts.values(), start=1):
            _ip("netns", "add", host.namespace)
            port = f"host{number}"
            _ip("-n", self._bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("-n", self._bridge, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", device, "up")
        for name in self.hosts:  # where the kernel lacks its filter, say so now and not in the middle of a test
            self._rule(name, "-L", "INPUT")

    def _rule(self, name: str, *arguments: str) -> None:
        _run(*self.hosts[name].argv("iptables", "-w", *arguments))


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECS, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
