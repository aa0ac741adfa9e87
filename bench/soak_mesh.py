"""The soak's mesh: intake's sidecar, analyst's, three replicas of analyst's peer; each a process, each replaced while it runs.

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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blazen_certs import Authority
from blazen_mesh.address import parse_address
from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.readiness import wait_peer_ready
from blazen_mesh.ready import readiness
from blazen_mesh.render import replace_file
from blazen_peer.wire.metadata import PeerTraits

ROOT = Path(__file__).parents[1]
TRUST_DOMAIN = "soak.example"
START_SECS = 30.0
SIDECAR_DRAIN_SECS = 3
AGE_SECS = 8
"""Of a connection between sidecars: certificates are looked at when one opens. Streams, lanes too, end at 0.4 of it."""

MESH = """\
trust_domain = "{domain}"
connection_age_secs = {age}

[peers.intake]
sidecar = "127.0.0.1:{ports[0]}"
listen = "127.0.0.1:{ports[1]}"
egress.analyst = {ports[2]}

[peers.analyst]
sidecar = "127.0.0.1:{ports[3]}"
listen = ["127.0.0.1:{ports[4]}", "127.0.0.1:{ports[5]}", "127.0.0.1:{ports[6]}"]

[[flows]]
from = "intake"
to = "analyst"
workflows = {workflows}
why = "the soak"
"""
VISITOR = """
[peers.visitor]
sidecar = "127.0.0.1:{ports[7]}"
listen = "127.0.0.1:{ports[8]}"
egress.analyst = {ports[9]}

[[flows]]
from = "visitor"
to = "analyst"
workflows = ["soak"]
why = "comes and goes"
"""
PORTS = 10
REPLICAS = 3
"""Of analyst's peer: while one drains and another was just killed, one serves."""


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
class PeerProcess:
    """One process of analyst's peer, from its start to its end.

    Attributes:
        listen: Where it listens.
        journal: What it writes each execution to.
        instance_id: As lanes know it.
        started: When it served, in seconds of ``time.monotonic``.
        killed: From when to when it was killed; None unless it was.
    """

    process: subprocess.Popen[bytes]
    listen: str
    journal: Path
    instance_id: str
    started: float
    killed: tuple[float, float] | None = None

    def executed(self) -> list[str]:
        """The ids of its executions, in the order in which they began."""
        return self.journal.read_text().splitlines() if self.journal.exists() else []


@dataclass
class SoakMesh:
    """The processes and the files. :meth:`start` before anything else, :meth:`stop` at the end."""

    home: Path
    ports: list[int]
    lame_duck_secs: float
    authority: Authority = field(init=False)
    peers: dict[int, PeerProcess] = field(default_factory=dict)
    ended: list[PeerProcess] = field(default_factory=list)
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
        await asyncio.gather(*(self.start_peer(replica) for replica in range(REPLICAS)))

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
        journal = self.home / f"executed-{self.started}"
        env = {
            "BLAZEN_PEER_TOKEN_FILE": str(self.token_file("analyst")),
            "BLAZEN_PEER_TOKEN_PREVIOUS_FILE": str(self.token_file("analyst", "previous")),
            "JOURNAL": str(journal),
        }
        process = self._start(f"analyst-{replica}", argv, env)
        self.peers[replica] = PeerProcess(process, listen, journal, "", time.monotonic())
        if not await wait_peer_ready(parse_address(listen), START_SECS):
            raise RuntimeError(f"replica {replica} does not serve")
        self.peers[replica].instance_id = await _instance_id(listen)

    async def restart_peer(self, replica: int) -> None:
        """Drain a replica, wait for its end, and start another in its place."""
        peer = self.peers[replica]
        peer.process.send_signal(signal.SIGTERM)
        if code := await asyncio.to_thread(peer.process.wait, self.lame_duck_secs + START_SECS):
            raise RuntimeError(f"replica {replica} ended with {code}")
        self.ended.append(peer)
        await self.start_peer(replica)

    async def kill_peer(self, replica: int) -> None:
        """Kill a replica as a crash would, and start another in its place."""
        peer, begun = self.peers[replica], time.monotonic()
        peer.process.kill()
        await asyncio.to_thread(peer.process.wait, START_SECS)
        peer.killed = begun, time.monotonic()
        self.ended.append(peer)
        await self.start_peer(replica)

    async def until_healthy(self, *replicas: int) -> None:
        """Wait until analyst's sidecar gives calls to these."""
        admin, wanted = Admin(self.home / "analyst" / "admin.sock"), {self.ports[4 + replica] for replica in replicas}
        async with asyncio.timeout(START_SECS):
            while True:
                with suppress(AdminError):  # it is just being replaced
                    if wanted <= _healthy_ports(await admin.get("/clusters?format=json")):
                        return
                await asyncio.sleep(0.1)

    def memory_mib(self) -> float:
        """The most memory that a replica has at this moment."""
        return max(resident_mib(peer.process.pid) for peer in self.peers.values())

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

    @property
    def processes(self) -> list[PeerProcess]:
        """All processes of analyst's peer that there have been."""
        return [*self.ended, *self.peers.values()]

    def log(self, prefix: str) -> Iterator[dict[str, Any]]:
        """The JSON lines of all processes whose name begins with *prefix*."""
        for path in sorted(self.home.glob(f"{prefix}*.log")):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    yield json.loads(line)

    async def stop(self) -> None:
        """End everything."""
        processes = [*(peer.process for peer in self.peers.values()), *self.sidecars.values(), *self.leaving]
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


async def _instance_id(listen: str) -> str:
    async with grpc.aio.insecure_channel(listen, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=START_SECS)
        await call
        return PeerTraits.decode(tuple(await call.trailing_metadata())).instance_id or ""


def _healthy_ports(clusters: str) -> set[int]:
    """Return the ports of the peer's hosts that get calls, of what Envoy's admin says; one that just begins knows none."""
    return {
        host["address"]["socket_address"]["port_value"]
        for cluster in json.loads(clusters).get("cluster_statuses", ())
        if cluster["name"] == "peer"
        for host in cluster.get("host_statuses", ())
        if set(host["health_status"]) == {"eds_health_status"} and host["health_status"]["eds_health_status"] == "HEALTHY"
    }


def resident_mib(pid: int) -> float:
    """Return how much memory a process has in use, in MiB; 0 where it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0
