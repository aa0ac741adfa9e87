"""The soak's mesh: intake's sidecar, analyst's, two replicas of analyst's peer; each a process, each replaced while it runs.

Everything of it is in one directory; each process writes its log there, and each peer what it has executed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from blazen_certs import Authority
from blazen_mesh.address import parse_address
from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.readiness import wait_peer_ready
from blazen_mesh.ready import readiness
from blazen_mesh.render import replace_file

ROOT = Path(__file__).parents[1]
TRUST_DOMAIN = "soak.example"
START_SECS = 30.0
SIDECAR_DRAIN_SECS = 3
AGE_SECS = 4
"""Of a connection between sidecars: certificates are looked at when one opens."""

MESH = """\
trust_domain = "{domain}"
connection_age_secs = {age}

[peers.intake]
sidecar = "127.0.0.1:{ports[0]}"
listen = "127.0.0.1:{ports[1]}"
egress.analyst = {ports[2]}

[peers.analyst]
sidecar = "127.0.0.1:{ports[3]}"
listen = ["127.0.0.1:{ports[4]}", "127.0.0.1:{ports[5]}"]

[[flows]]
from = "intake"
to = "analyst"
workflows = {workflows}
why = "the soak"
"""
VISITOR = """
[peers.visitor]
sidecar = "127.0.0.1:{ports[6]}"
listen = "127.0.0.1:{ports[7]}"
egress.analyst = {ports[8]}

[[flows]]
from = "visitor"
to = "analyst"
workflows = ["soak"]
why = "comes and goes"
"""
PORTS = 9


def free_ports() -> list[int]:
    """Pick free ports below those of outgoing connections, which would take one while its listener is being replaced."""
    found: list[int] = []
    while len(found) < PORTS:
        port = random.randint(12000, 31000)  # noqa: S311 - not a secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


@dataclass
class SoakMesh:
    """The processes and the files. :meth:`start` before anything else, :meth:`stop` at the end."""

    home: Path
    ports: list[int]
    lame_duck_secs: float
    authority: Authority = field(init=False)
    peers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    sidecars: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    leaving: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0

    @property
    def peers_file(self) -> Path:
        """Intake's address book."""
        return self.home / "intake" / "peers.json"

    def token_file(self, node: str, name: str = "token") -> Path:
        """Where *node* reads its token (``token``), and what it accepts besides (``previous``)."""
        return self.home / f"{node}-{name}"

    async def start(self) -> None:
        """Start it all, and wait until it serves."""
        self.authority = await asyncio.to_thread(Authority.create, self.home / "certs", TRUST_DOMAIN)
        for node in ("intake", "analyst"):
            await asyncio.to_thread(self.authority.issue, node)
        self.write_mesh(visitor=False, workflows=["soak"])
        await asyncio.gather(*(self.start_sidecar(node) for node in ("intake", "analyst")))
        await asyncio.gather(*(self.start_peer(replica) for replica in (0, 1)))

    def write_mesh(self, *, visitor: bool, workflows: list[str]) -> None:
        """Put another mesh file in place."""
        text = MESH.format(domain=TRUST_DOMAIN, age=AGE_SECS, ports=self.ports, workflows=json.dumps(workflows))
        text += VISITOR.format(ports=self.ports) if visitor else ""
        replace_file(self.home / "mesh.toml", text.encode(), 0o644)

    async def start_sidecar(self, node: str) -> None:
        """Start a supervisor for *node*; where one runs already, the new one takes over, and the old one ends by itself."""
        argv = ["-m", "blazen_mesh", "sidecar", "--node", node, "--mesh", str(self.home / "mesh.toml")]
        argv += ["--identity-dir", str(self.home / "certs" / "nodes" / node), "--config-dir", str(self.home / node)]
        argv += ["--drain-secs", str(SIDECAR_DRAIN_SECS)]
        before, process = self.sidecars.get(node), self._start(f"{node}-sidecar", argv, {})
        self.sidecars[node] = process
        if before is not None:
            self.leaving.append(before)
            if await asyncio.to_thread(before.wait, START_SECS):
                raise RuntimeError(f"{node}'s former supervisor ended with {before.returncode}")
        await self.until(lambda: self.status(node)["ready"])

    def status(self, node: str) -> dict[str, Any]:
        """What *node*'s supervisor says."""
        return readiness(self.home / node)

    async def start_peer(self, replica: int) -> None:
        """Start a replica of analyst's peer, and wait until it serves."""
        listen, home = f"127.0.0.1:{self.ports[4 + replica]}", self.home / "analyst"
        argv = ["-m", "blazen_peer.cli", "serve", "--app", "bench.soak_app", "--node-id", "analyst", "--listen", listen]
        argv += ["--policy", str(home / "policy.json"), "--sidecar-proof-file", str(home / "sidecar-proof")]
        argv += ["--require-identity", "--lame-duck-secs", str(self.lame_duck_secs), "--drain-secs", "10"]
        env = {
            "BLAZEN_PEER_TOKEN_FILE": str(self.token_file("analyst")),
            "BLAZEN_PEER_TOKEN_PREVIOUS_FILE": str(self.token_file("analyst", "previous")),
            "JOURNAL": str(self.home / f"executed-{self.started}"),
        }
        self.peers[replica] = self._start(f"analyst-{replica}", argv, env)
        if not await wait_peer_ready(parse_address(listen), START_SECS):
            raise RuntimeError(f"replica {replica} does not serve")

    async def restart_peer(self, replica: int) -> None:
        """Drain a replica, wait for its end, and start another in its place."""
        process = self.peers[replica]
        process.send_signal(signal.SIGTERM)
        if code := await asyncio.to_thread(process.wait, self.lame_duck_secs + START_SECS):
            raise RuntimeError(f"replica {replica} ended with {code}")
        await self.start_peer(replica)

    async def kill_peer(self, replica: int) -> None:
        """Kill a replica as a crash would, and start another in its place."""
        process = self.peers[replica]
        process.kill()
        await asyncio.to_thread(process.wait)
        await self.start_peer(replica)

    async def until_both_healthy(self) -> None:
        """Wait until analyst's sidecar gives calls to both replicas."""
        healthy, admin = 0, Admin(self.home / "analyst" / "admin.sock")
        async with asyncio.timeout(START_SECS):
            while healthy < 2:
                await asyncio.sleep(0.1)
                with suppress(AdminError):  # it is just being replaced
                    healthy = sum((await admin.stats(r"^cluster\.peer\.membership_healthy$")).values())

    def served(self, node: str) -> x509.Certificate | None:
        """Shake hands with *node*'s ingress as the other node, and return the certificate that it shows; None if it fails."""
        identity = self.home / "certs" / "nodes" / ("intake" if node == "analyst" else "analyst") / "current"
        address = ("127.0.0.1", self.ports[3 if node == "analyst" else 0])
        with suppress(OSError):  # ssl.SSLError too; the files may be swapped while they are read
            context = ssl.create_default_context(cafile=str(identity / "bundle.crt"))
            context.check_hostname = False  # names are SPIFFE ids, which this module does not know
            context.set_alpn_protocols(["h2"])
            context.load_cert_chain(identity / "tls.crt", identity / "tls.key")
            with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain) as encrypted:
                der = encrypted.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(der) if der else None
        return None

    def executed(self) -> list[str]:
        """The ids of all executions, in all processes there have been."""
        return [line for path in sorted(self.home.glob("executed-*")) for line in path.read_text().splitlines()]

    def log(self, prefix: str) -> Iterator[dict[str, Any]]:
        """The JSON lines of all processes whose name begins with *prefix*."""
        for path in sorted(self.home.glob(f"{prefix}*.log")):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    yield json.loads(line)

    async def stop(self) -> None:
        """End everything."""
        processes = [*self.peers.values(), *self.sidecars.values(), *self.leaving]
        for process in processes:
            process.kill()
        await asyncio.gather(*(asyncio.to_thread(process.wait, START_SECS) for process in processes))

    async def until(self, condition: Callable[[], object]) -> None:
        """Poll *condition* in a thread until it holds."""
        async with asyncio.timeout(START_SECS):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - another process has to be asked
                await asyncio.sleep(0.05)

    def _start(self, name: str, argv: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self.started += 1
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("BLAZEN_", "OTEL_"))}
        path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
        with (self.home / f"{name}-{self.started}.log").open("wb") as log:
            # Not by uvloop, which forks: gRPC's threads would then hold locks in the child that nobody lets go.
            return subprocess.Popen([sys.executable, *argv], stdout=log, stderr=log, env={**kept, "PYTHONPATH": path, **env})
