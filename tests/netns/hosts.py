"""A mesh whose nodes are hosts: one with the CA and its service, the others joined by code, real peers behind real sidecars.

    alpha 10.77.0.1  the CA (in alpha/ca), ``blazen-certs serve``, and the node intake
    beta  10.77.0.2  the node analyst
    gamma 10.77.0.3  the node gpu

Hosts share the machine's disk, not its network; each has a directory of its own, and no process is told of another's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.netns.network import Host, Network

__all__ = ["HOST_OF", "HostMesh"]

HOST_OF = {"intake": "alpha", "analyst": "beta", "gpu": "gamma"}
SERVICE_PORT = 9443
SIDECAR_PORT = 15001
TOKEN = "the-shared-token-of-this-mesh-0123456789"
WAIT_SECS = 60.0
HERE = Path(__file__).parent
MESH = """\
trust_domain = "mesh.test"
connection_age_secs = {age}

[peers.intake]
sidecar = "10.77.0.1:15001"
listen = "127.0.0.1:50051"
egress.analyst = 16001
egress.gpu = 16002

[peers.analyst]
sidecar = "10.77.0.2:15001"
listen = "127.0.0.1:50051"
egress.gpu = 16002

[peers.gpu]
sidecar = "10.77.0.3:15001"
listen = "127.0.0.1:50051"

[[flows]]
from = "intake"
to = "analyst"
workflows = ["echo"]
why = "calls between hosts"

[[flows]]
from = "intake"
to = "gpu"
workflows = ["echo"]
why = "calls between hosts"

[[flows]]
from = "analyst"
to = "gpu"
workflows = ["echo"]
why = "calls between hosts"
"""


class HostMesh:
    """The commands of the three hosts. Every process that it starts ends with the test."""

    def __init__(self, network: Network, start_on: Callable[..., Any], root: Path, *, connection_age_secs: int = 5) -> None:
        self.network, self.root, self._start = network, root, start_on
        self.service = f"{network['alpha'].address}:{SERVICE_PORT}"
        self.watches: dict[str, Any] = {}
        self.serving: Any = None
        for name in network.hosts:
            (root / name).mkdir()
            (root / name / "mesh.toml").write_text(MESH.format(age=connection_age_secs))
            (root / name / "token").write_text(TOKEN)
            (root / name / "token").chmod(0o600)

    def host(self, node: str) -> Host:
        """The host of *node*."""
        return self.network[HOST_OF[node]]

    def home(self, node: str) -> Path:
        """The directory of *node*'s host."""
        return self.root / HOST_OF[node]

    def identity(self, node: str) -> Path:
        """Where *node*'s sidecar finds its identity."""
        return self.home(node) / "certs" / "nodes" / node

    def certs(self, host: str, *argv: str, code: int = 0, stdin: str = "") -> Any:
        """Run ``blazen-certs`` on a host, in its directory; it must end with *code*."""
        done = self.network[host].run("blazen-certs", *argv, cwd=self.root / host, stdin=stdin)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def start_authority(self, *, lifetime_hours: float = 24) -> None:
        """Make the CA on alpha, and serve it."""
        self.certs("alpha", "init", "--trust-domain", "mesh.test", "--dir", "ca")
        self.serve(lifetime_hours=lifetime_hours)

    def serve(self, *, lifetime_hours: float = 24) -> None:
        """Start the service on alpha."""
        argv = ("serve", "--listen", self.service, "--dir", "ca", "--lifetime-hours", str(lifetime_hours), "--json")
        self.serving = self._start(self.network["alpha"], "blazen-certs", *argv, cwd=self.root / "alpha")
        self.serving.wait_for("listens on ", WAIT_SECS)

    def code(self, node: str, *options: str) -> str:
        """Have a code made for *node*."""
        return str(self.certs("alpha", "code", node, "--dir", "ca", *options).stdout)

    def join(self, node: str) -> None:
        """Let *node* join from its own host."""
        self.certs(HOST_OF[node], "join", self.service, "--dir", "certs", stdin=self.code(node))

    def watch(self, node: str) -> Any:
        """Keep *node*'s identity good."""
        socket = str(self.home(node) / "sidecar/admin.sock")
        argv = ("watch", node, "--from", self.service, "--dir", "certs", "--sidecar", socket, "--json")
        self.watches[node] = self._start(self.host(node), "blazen-certs", *argv, cwd=self.home(node))
        return self.watches[node].wait_for('"reached"', WAIT_SECS)

    def events(self, node: str, event: str) -> list[dict[str, Any]]:
        """What *node*'s watch logged under that name."""
        lines = [json.loads(line) for line in self.watches[node].log.splitlines()]
        return [line for line in lines if line["event"] == event]

    def sidecar(self, node: str) -> Any:
        """Start *node*'s sidecar, and wait until it is ready."""
        home = self.home(node)
        ready = home / "sidecar.ready"
        argv = (
            "--node",
            node,
            "--mesh",
            "mesh.toml",
            "--identity-dir",
            str(self.identity(node)),
            "--config-dir",
            str(home / "sidecar"),
        )
        process = self._start(
            self.host(node), "blazen-mesh", "sidecar", *argv, "--ready-file", str(ready), "--start-secs", "60", cwd=home
        )
        until = time.monotonic() + WAIT_SECS
        while not ready.exists():
            assert process.process.poll() is None, process.log
            assert time.monotonic() < until, process.log
            time.sleep(0.02)
        return process

    def peer(self, node: str) -> Any:
        """Start *node*'s peer, behind its sidecar."""
        home = self.home(node)
        argv = ("--app", "tests.netns.peer_app", "--node-id", node, "--listen", "127.0.0.1:50051", "--require-identity")
        files = ("--sidecar-proof-file", str(home / "sidecar/sidecar-proof"), "--policy", str(home / "sidecar/policy.json"))
        process = self._start(self.host(node), "blazen-peer", "serve", *argv, *files, env=self._env(node))
        process.wait_for("listens on ", WAIT_SECS)
        return process

    def call(self, node: str, *callees: str, interval_secs: float = 0.1) -> Any:
        """Call from *node*'s host to *callees* until it is ended."""
        argv = (str(HERE / "caller.py"), str(self.home(node) / "sidecar/peers.json"), str(interval_secs), *callees)
        process = self._start(self.host(node), sys.executable, *argv, env=self._env(node))
        process.wait_for("calling", WAIT_SECS)
        return process

    def call_by_lane(self, node: str, callee: str, *, wait_secs: float) -> Any:
        """Make one call by a lane from *node*'s host, which *callee* answers after *wait_secs*."""
        argv = (str(HERE / "lane_caller.py"), str(self.home(node) / "sidecar/peers.json"), callee, str(wait_secs))
        process = self._start(self.host(node), sys.executable, *argv, env=self._env(node))
        process.wait_for("calling", WAIT_SECS)
        return process

    def end_calls(self, caller: Any) -> dict[str, Any]:
        """End a caller, and return what it counted."""
        assert caller.end(signal.SIGTERM, secs=WAIT_SECS) == 0, caller.log
        return dict(json.loads(caller.log.splitlines()[-1]))

    def dial(self, node: str, callee: str, *, interval_secs: float = 0.5) -> Any:
        """Open connections from *node*'s host, with its identity, to *callee*'s sidecar until the end of the test."""
        address = (self.host(callee).address, str(SIDECAR_PORT))
        argv = (str(HERE / "dialer.py"), *address, str(interval_secs), str(self.identity(node) / "current"))
        process = self._start(self.host(node), sys.executable, *argv)
        process.wait_for("shows", WAIT_SECS)
        return process

    def _env(self, node: str) -> dict[str, str]:
        path = os.environ.get("PYTHONPATH", "")
        return {"BLAZEN_PEER_TOKEN_FILE": str(self.home(node) / "token"), "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{path}"}
