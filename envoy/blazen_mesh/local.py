"""A whole mesh on one machine: every node's peer and sidecar started, watched, and ended in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blazen_mesh.address import Address, TcpAddress
from blazen_mesh.child import Child, OnLine
from blazen_mesh.discovery import publish
from blazen_mesh.mesh import Mesh, Peer
from blazen_mesh.paths import NodePaths
from blazen_mesh.readiness import wait_peer_ready
from blazen_mesh.render import ensure_secret, render_node
from blazen_mesh.sidecar import Sidecar, StartError, ended
from blazen_peer.errors import ValidationError

__all__ = ["LocalMesh", "LocalNode", "PeerCommand", "blazen_peer_command", "prepare"]

PeerCommand = Callable[[str, Peer, Path], list[str]]
"""Given a node id, its table and its proof file: the arguments that start its peer."""

DRAIN_SECS = 10
IDENTITY_FILES = ("tls.crt", "tls.key", "bundle.crt")


def blazen_peer_command(node: str, peer: Peer, proof_file: Path) -> list[str]:
    """Return the ``blazen-peer serve`` of *node*.

    Without a lame-duck time: all of its callers are told to stop at the same moment.
    """
    assert peer.run is not None  # noqa: S101 - only nodes that run a peer are asked for
    argv = [sys.executable, "-m", "blazen_peer.cli", "serve", "--app", peer.run.app, "--node-id", node]
    argv += ["--listen", str(peer.listen), "--sidecar-proof-file", str(proof_file)]
    if peer.run.require_identity:  # a policy says what proven callers may do
        argv += ["--require-identity", "--policy", str(proof_file.with_name("policy.json"))]
    return [*argv, "--lame-duck-secs", "0", "--drain-secs", str(DRAIN_SECS)]


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One node, rendered and ready to be started; ``peer_argv`` is None where somebody else runs its peer."""

    name: str
    directory: Path
    listen: Address
    peer_argv: list[str] | None
    peer_env: Mapping[str, str] = field(repr=False)


def prepare(
    mesh: Mesh,
    directory: Path,
    *,
    certs: Path,
    token_file: Path,
    environment: Mapping[str, str],
    otlp: TcpAddress | None = None,
    peer_command: PeerCommand = blazen_peer_command,
) -> list[LocalNode]:
    """Render every node of *mesh* below *directory* and return what to start.

    Args:
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
        paths = NodePaths(
            identity_dir=str((certs / "nodes" / name).absolute()),
            config_dir=str(home),
            admin_socket=str(home / "admin.sock"),
            proof_file=str(home / "sidecar-proof"),
            token_file=str(token_file.absolute()),
        )
        publish(render_node(mesh, name, paths, otlp=otlp), home, envoy=None)
        ensure_secret(home / "sidecar-proof")
        inherited = {key: value for key, value in environment.items() if key != "BLAZEN_PEER_TOKEN"}
        env = {**inherited, "PYTHONUNBUFFERED": "1", "BLAZEN_PEER_TOKEN_FILE": str(token_file.absolute())}
        env["BLAZEN_PEERS_FILE"] = str(home / "peers.json")
        if collector:
            env.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector}")
        argv = peer_command(name, peer, home / "sidecar-proof") if peer.run else None
        nodes.append(LocalNode(name, home, peer.listen, argv, {**env, **(peer.run.env if peer.run else {})}))
    return nodes


class LocalMesh:
    """The processes of a local mesh. Whatever ends :meth:`run`, none of them outlives it."""

    def __init__(self, nodes: list[LocalNode], *, envoy: Path, on_line: OnLine) -> None:
        self.nodes, self._envoy, self._on_line = nodes, envoy, on_line
        self._peers: list[Child] = []
        self._sidecars: list[Sidecar] = []
        self._deaths: asyncio.Queue[Child] = asyncio.Queue()
        self._watches: list[asyncio.Task[None]] = []

    async def run(
        self, stop: asyncio.Event, *, on_ready: Callable[[], None], start_secs: float = 30.0, stop_secs: float = 20.0
    ) -> None:
        """Start everything, call *on_ready*, and hold it until *stop* is set; then end it in order.

        Args:
            start_secs: How long all of it may take to become ready.
            stop_secs: How long calls in flight may take to end.

        Raises:
            StartError: A process was not ready in time, or ended by itself.
        """
        stopping = asyncio.create_task(stop.wait())
        death = asyncio.create_task(self._deaths.get())
        starting = asyncio.create_task(self._start(start_secs))
        tasks: list[asyncio.Task[object]] = [stopping, death, starting]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not stopping.done() and not death.done():
                starting.result()
                on_ready()
                await asyncio.wait([stopping, death], return_when=asyncio.FIRST_COMPLETED)
            if death.done() and not stopping.done():
                raise StartError(ended(death.result()))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop(stop_secs)

    def kill(self) -> None:
        """End every process at once, with nothing finished."""
        for child in self._children():
            child.send(signal.SIGKILL)

    def _children(self) -> list[Child]:
        return [*self._peers, *(sidecar.child for sidecar in self._sidecars)]

    async def _start(self, within_secs: float) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for node in self.nodes:
                    group.create_task(self._start_peer(node, within_secs))
                    group.create_task(self._start_sidecar(node, within_secs))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start_peer(self, node: LocalNode, within_secs: float) -> None:
        if node.peer_argv is None:
            return
        name = f"{node.name} peer"
        self._peers.append(child := await Child.start(name, node.peer_argv, on_line=self._on_line, env=node.peer_env))
        self._watch(child)
        if not await wait_peer_ready(node.listen, within_secs):
            raise StartError(f"{name} does not serve on {node.listen} after {within_secs:g} s")

    async def _start_sidecar(self, node: LocalNode, within_secs: float) -> None:
        sidecar = await Sidecar.start(
            f"{node.name} sidecar",
            envoy=self._envoy,
            config=node.directory / "envoy.json",
            admin_socket=node.directory / "admin.sock",
            on_line=self._on_line,
        )
        self._sidecars.append(sidecar)
        self._watch(sidecar.child)
        await sidecar.wait_ready(within_secs)

    def _watch(self, child: Child) -> None:
        async def watch() -> None:
            await child.wait()
            self._deaths.put_nowait(child)

        self._watches.append(asyncio.create_task(watch()))

    async def _stop(self, within_secs: float) -> None:
        end = asyncio.get_running_loop().time() + within_secs
        try:
            # Peers say NOT_SERVING and finish what runs; their sidecars carry those calls to the end, and go last.
            for child in self._peers:
                child.ask_to_end()
            await asyncio.gather(*(sidecar.begin_drain() for sidecar in self._sidecars))
            await asyncio.gather(*(child.stop(within_secs) for child in self._peers))
            await asyncio.gather(*(sidecar.wait_idle(end - asyncio.get_running_loop().time()) for sidecar in self._sidecars))
            await asyncio.gather(*(sidecar.stop() for sidecar in self._sidecars))
        finally:
            self.kill()
            for watch in self._watches:
                watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*self._watches, return_exceptions=True)


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
