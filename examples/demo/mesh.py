"""The demo's mesh: two nodes on free loopback ports, run by ``blazen-mesh up`` and ended with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECS = 60.0
STOP_SECS = 30.0
MAX_LINES = 2_000

MESH_TOML = """\
trust_domain = "mesh.example"

[peers.intake]
sidecar = "127.0.0.1:{intake_sidecar}"
listen = "127.0.0.1:{intake_peer}"
egress.analyst = {egress}
run.app = "examples.intake"
run.require_identity = false    # local programs with the token may hand documents in
run.env.ANALYST_ADDRESS = "http://127.0.0.1:{egress}"

[peers.analyst]
sidecar = "127.0.0.1:{analyst_sidecar}"
listen = "127.0.0.1:{analyst_peer}"
run.app = "examples.analyst"

[[flows]]
from = "intake"
to = "analyst"
workflows = ["analyze-pipeline"]
why = "intake hands documents over for analysis and waits for the report"
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """One free loopback port for each listener of the mesh."""

    intake_sidecar: int
    intake_peer: int
    egress: int
    analyst_sidecar: int
    analyst_peer: int

    @classmethod
    def free(cls) -> Self:
        """Pick ports that are free now, all different."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
        ports = [item.getsockname()[1] for item in sockets]
        for item in sockets:
            item.close()
        return cls(*ports)


class LocalMesh:
    """Entered means both peers and both sidecars are ready; left means all of them are gone.

    Attributes:
        lines: The last lines that the mesh wrote.
    """

    def __init__(self, directory: Path, ports: Ports, otlp: str | None = None, toml: str = MESH_TOML) -> None:
        self.directory, self.ports, self._otlp, self._toml = directory, ports, otlp, toml
        self.lines: deque[str] = deque(maxlen=MAX_LINES)

    @property
    def token(self) -> str:
        """The shared token, which the mesh made for itself."""
        return (self.directory / "token").read_text().strip()

    async def __aenter__(self) -> Self:
        mesh_file, ready_file = self.directory / "mesh.toml", self.directory / "ready"
        mesh_file.write_text(self._toml.format_map({name: getattr(self.ports, name) for name in Ports.__slots__}))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("BLAZEN_", "OTEL_"))}
        environ["OTEL_BSP_SCHEDULE_DELAY"] = "200"  # milliseconds: the tree is drawn a moment after the run
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "blazen_mesh", "up", "--mesh", str(mesh_file), "--dir", str(self.directory)),
            *("--certs", str(self.directory / "certs"), "--ready-file", str(ready_file)),
            *(("--otlp", self._otlp) if self._otlp else ()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # Ctrl-C reaches the demo, which then stops the mesh
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(START_SECS):
                while not ready_file.exists():
                    if self._reading.done():
                        raise RuntimeError("the mesh ended while it started")
                    await asyncio.sleep(0.05)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def logged(
        self, timeout_secs: float, matches: Callable[[dict[str, Any]], bool] = lambda _: True, **fields: object
    ) -> dict[str, Any] | None:
        """Return the newest sidecar log entry with these *fields* that *matches*; None when none comes in time."""
        try:
            async with asyncio.timeout(timeout_secs):
                while True:
                    for line in reversed(self.lines):
                        entry = _json_in(line)
                        if entry is None or any(entry.get(name) != value for name, value in fields.items()):
                            continue
                        if matches(entry):
                            return entry
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode("utf-8", "replace").rstrip())

    async def _stop(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECS):
                await self._process.wait()
                await self._reading
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _json_in(line: str) -> dict[str, Any] | None:
    start = line.find("{")
    if start < 0:
        return None
    try:
        entry = json.loads(line[start:])
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
