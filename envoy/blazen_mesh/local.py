"""A whole mesh on one machine: every node's peer and sidecar started, watched, and ended in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blazen_mesh.address import Address, TcpAddress
from blazen_mesh.child import Child, OnLine
from blazen_mesh.generation import Generations, Source
from blazen_mesh.mesh import Mesh, Peer
from blazen_mesh.paths import NodePaths
from blazen_mesh.readiness import wait_peer_ready
from blazen_mesh.render import ensure_secret
from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import StartError, ended
from blazen_mesh.supervisor import Supervisor
from blazen_peer.errors import ValidationError

__all__ = ["LocalMesh", "LocalNode", "LocalPeer", "PeerCommand", "blazen_peer_command", "prepare"]

PeerCommand = Callable[[str, Peer, Address, Path], list[str]]
"""Given a node id, its table, where to listen and the node's configuration directory: the arguments that start its peer."""

DRAIN_SECS = 10
IDENTITY_FILES = ("tls.crt", "tls.key", "bundle.crt")


def blazen_peer_command(node: str, peer: Peer, listen: Address, config_dir: Path) -> list[str]:
    """Return the ``blazen-peer serve`` of *node*.

    Without a lame-duck time: all of its callers are told to stop at the same moment.
    """
    assert peer.run is not None  # noqa: S101 - only nodes that run a peer are asked for
    argv = [sys.executable, "-m", "blazen_peer.cli", "serve", "--app", peer.run.app, "--node-id", node]
    argv += ["--listen", str(listen), "--sidecar-proof-file", str(config_dir / "sidecar-proof")]
    if peer.run.require_identity:  # a policy says what proven callers may do
        argv += ["--require-identity", "--policy", str(config_dir / "policy.json")]
    return [*argv, "--lame-duck-secs", "0", "--drain-secs", str(DRAIN_SECS)]


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """One process of a node: a node with several addresses has as many replicas."""

    name: str
    listen: Address
    argv: list[str]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One node, ready to be started; ``peers`` is empty where somebody else runs them."""

    name: str
    source: Source
    peers: tuple[LocalPeer, ...]

    @property
    def directory(self) -> Path:
        """Where the sidecar's files are."""
        return Path(self.source.paths.config_dir)


def prepare(
    mesh: Mesh,
    mesh_file: Path,
    directory: Path,
    *,
    certs: Path,
    token_file: Path,
    environment: Mapping[str, str],
    otlp: TcpAddress | None = None,
    peer_command: PeerCommand = blazen_peer_command,
) -> list[LocalNode]:
    """Return what to start for *mesh*, with its files below *directory*.

    Args:
        mesh_file: What *mesh* was read from; it is watched.
        certs: The certificate store, with ``nodes/<node>/current`` in it.
        token_file: The shared token; made when it is not there.
        environment: What peers inherit, with the token's file, their own ``run.env`` and the OTLP endpoint laid over it.

    Raises:
        ValidationError: Nodes lack certificates (all are named, with the commands), or a path is too long for a socket.
    """
    _require_identities(mesh, certs)
    ensure_secret(token_file)
    collector = otlp or (mesh.telemetry.otlp if mesh.telemetry else None)
    nodes: list[LocalNode] = []
    for name, peer in sorted(mesh.peers.items()):
        home = (directory / "run" / name).absolute()
        home.mkdir(parents=True, exist_ok=True)
        paths = NodePaths(
            identity_dir=str((certs / "nodes" / name).absolute()),
            config_dir=str(home),
            admin_socket=str(home / "admin.sock"),
            proof_file=str(home / "sidecar-proof"),
            token_file=str(token_file.absolute()),
        )
        inherited = {key: value for key, value in environment.items() if key != "BLAZEN_PEER_TOKEN"}
        env = {**inherited, "PYTHONUNBUFFERED": "1", "BLAZEN_PEER_TOKEN_FILE": str(token_file.absolute())}
        env["BLAZEN_PEERS_FILE"] = str(home / "peers.json")
        if collector:
            env.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector}")
        peers = [
            LocalPeer(
                f"{name} peer" if len(peer.listens) == 1 else f"{name} peer {number}",
                listen,
                peer_command(name, peer, listen, home),
                {**env, **peer.run.env},
            )
            for number, listen in enumerate(peer.listens, 1)
            if peer.run
        ]
        nodes.append(LocalNode(name, Source(mesh_file.absolute(), name, paths, otlp), tuple(peers)))
    return nodes


class LocalMesh:
    """The processes of a local mesh. Whatever ends :meth:`run`, none of them outlives it.

    A peer's death ends the mesh. A sidecar's does not: its supervisor starts it again.
    """

    def __init__(self, nodes: list[LocalNode], *, envoy: Path, on_line: OnLine, settings: Settings | None = None) -> None:
        self.nodes, self._on_line = nodes, on_line
        self._peers: list[Child] = []
        self._supervisors = [self._supervisor(node, envoy, settings or Settings()) for node in nodes]
        self._sidecars: list[asyncio.Task[None]] = []
        self._end_sidecars = asyncio.Event()
        self._failure: asyncio.Future[Exception] | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def run(
        self, stop: asyncio.Event, *, on_ready: Callable[[], None], start_secs: float = 30.0, stop_secs: float = 20.0
    ) -> None:
        """Start everything, call *on_ready*, and hold it until *stop* is set; then end it in order.

        Args:
            start_secs: How long all of it may take to become ready.
            stop_secs: How long runs in progress may take to end.

        Raises:
            StartError: A process was not ready in time, or a peer ended by itself, or a sidecar does not stay up.
            MeshError, ValidationError, PublishError: As ``Supervisor.run``.
        """
        self._failure = asyncio.get_running_loop().create_future()
        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._start(start_secs))
        waits: list[asyncio.Future[Any]] = [stopping, starting, self._failure]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not stopping.done() and not self._failure.done():
                starting.result()
                on_ready()
                await asyncio.wait(waits[::2], return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done() and not stopping.done():
                raise self._failure.result()
        finally:
            for task in (stopping, starting):
                task.cancel()
            await asyncio.gather(stopping, starting, return_exceptions=True)
            await self._stop(stop_secs)

    def kill(self) -> None:
        """End every process at once, with nothing finished."""
        for child in self._peers:
            child.send(signal.SIGKILL)
        for supervisor in self._supervisors:
            supervisor.kill()

    def _supervisor(self, node: LocalNode, envoy: Path, settings: Settings) -> Supervisor:
        def log(_: str, text: str) -> None:
            for line in text.splitlines():
                self._on_line(f"{node.name} sidecar", line)

        generations = Generations(node.source, envoy)
        # Two commands for one directory would fight over the peers' ports.
        settings = replace(settings, take_over=False)
        return Supervisor(generations, envoy=envoy, log=log, on_line=self._on_line, settings=settings)

    async def _start(self, within_secs: float) -> None:
        # Peers read files that the supervisors put in place.
        await asyncio.gather(*(supervisor.prepare() for supervisor in self._supervisors))
        try:
            async with asyncio.TaskGroup() as group:
                for node in self.nodes:
                    for peer in node.peers:
                        group.create_task(self._start_peer(peer, within_secs))
                for supervisor in self._supervisors:
                    group.create_task(self._start_sidecar(supervisor))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start_peer(self, peer: LocalPeer, within_secs: float) -> None:
        self._peers.append(child := await Child.start(peer.name, peer.argv, on_line=self._on_line, env=peer.env))

        async def watch() -> None:
            await child.wait()
            self._fail(StartError(ended(child)))

        self._watches.append(asyncio.create_task(watch()))
        if not await wait_peer_ready(peer.listen, within_secs):
            raise StartError(f"{peer.name} does not serve on {peer.listen} after {within_secs:g} s")

    async def _start_sidecar(self, supervisor: Supervisor) -> None:
        async def run() -> None:
            try:
                await supervisor.run(self._end_sidecars)
            except Exception as error:
                self._fail(error)

        self._sidecars.append(asyncio.create_task(run()))
        await supervisor.serving.wait()

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    async def _stop(self, within_secs: float) -> None:
        try:
            # Peers say NOT_SERVING and finish what runs; their sidecars carry those calls to the end, and go last.
            await asyncio.gather(*(child.stop(within_secs) for child in self._peers))
            self._end_sidecars.set()
            await asyncio.gather(*self._sidecars)
        finally:
            self.kill()
            for task in (*self._watches, *self._sidecars):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*self._watches, *self._sidecars, return_exceptions=True)


def _require_identities(mesh: Mesh, certs: Path) -> None:
    missing = [
        node
        for node in sorted(mesh.peers)
        if not all((certs / "nodes" / node / "current" / name).is_file() for name in IDENTITY_FILES)
    ]
    if missing:
        regions = "".join(f" --region {region}" for region in mesh.regions)
        init = f"blazen-certs init --trust-domain {mesh.trust_domain}{regions} --dir {certs}"
        commands = [] if (certs / "root").is_dir() else [init]
        of = {node: f" --region {mesh.peers[node].region}" if mesh.regions else "" for node in missing}
        commands += [f"blazen-certs issue {node}{of[node]} --dir {certs}" for node in missing]
        raise ValidationError(f"no certificate for {', '.join(missing)} in {certs}; make them with: {' && '.join(commands)}")
