"""``blazen-mesh up``: real sidecars and stand-in peers as processes, started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_certs import Authority

pytestmark = pytest.mark.envoy
INVOKE = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
STAND_IN = Path(__file__).with_name("stand_in.py")
WAIT_SECS = 30.0
PROGRAM = """
import os, sys
from pathlib import Path
from blazen_mesh.binary import find_envoy
from blazen_mesh.cli import run_up
from blazen_mesh.local import blazen_peer_command
from blazen_peer.errors import BlazenError

def stand_in(node, peer, listen, config_dir):
    argv = blazen_peer_command(node, peer, listen, config_dir)
    return [sys.executable, sys.argv[2], *argv[3:argv.index("--lame-duck-secs")]]

home = Path(sys.argv[1])
try:
    sys.exit(run_up(home / "mesh.toml", directory=home / "m", certs=home / "certs", envoy=find_envoy(),
                    ready_file=home / "ready", environment=os.environ, stop_secs=4, peer_command=stand_in))
except BlazenError as error:
    sys.exit(str(error))
"""


class Up:
    """A running ``blazen-mesh up``."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process, free_ports: list[int]) -> None:
        self.home, self.process, self.ports = home, process, free_ports
        self.output = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        while chunk := await self.process.stdout.read(65536):
            self.output += chunk.decode()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until *condition* holds; fail with the output where it does not in time."""
        deadline = time.monotonic() + WAIT_SECS
        while not condition():
            assert time.monotonic() < deadline, self.output
            await asyncio.sleep(0.02)

    async def until_ready(self) -> dict[str, Any]:
        """Wait for the ready file and return it by node."""
        ready = self.home / "ready"
        await self.until(lambda: ready.exists() or self.process.returncode is not None)
        return {entry["node"]: entry for entry in json.loads(ready.read_text())}

    def children(self) -> list[int]:
        """Return the process ids of everything that it started."""
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    async def end(self) -> int:
        """Wait until it has ended, and return its exit code."""
        async with asyncio.timeout(WAIT_SECS):
            await self._reading
            return await self.process.wait()


def alive(pids: list[int]) -> list[int]:
    """Return those of *pids* that run."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def is_peer(pid: int) -> bool:
    """Say whether *pid* is a stand-in peer rather than an Envoy."""
    return str(STAND_IN) in Path(f"/proc/{pid}/cmdline").read_text()


StartUp = Callable[..., Awaitable[Up]]


@pytest.fixture
async def start_up(short_dir: Path, envoy: Path, ports: Callable[[], int]) -> AsyncIterator[StartUp]:
    """A factory of running meshes; *env* is analyst's ``run.env``, *environment* the command's own."""
    async with AsyncExitStack() as stack:

        async def start(
            env: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None, replicas: int = 1
        ) -> Up:
            free = [ports() for _ in range(4)]
            listens = [f"127.0.0.1:{ports()}" for _ in range(replicas)]
            values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in (env or {}).items())
            (short_dir / "mesh.toml").write_text(f"""
                trust_domain = "mesh.test"
                [peers.intake]
                sidecar = "127.0.0.1:{free[0]}"
                listen = "127.0.0.1:{free[1]}"
                egress.analyst = {free[2]}
                run.app = "examples.intake"
                [peers.analyst]
                sidecar = "127.0.0.1:{free[3]}"
                listen = {json.dumps(listens if replicas > 1 else listens[0])}
                run = {{ app = "examples.analyst", env = {{ {values} }} }}
                [[flows]]
                from = "intake"
                to = "analyst"
                workflows = ["analyze-pipeline"]
                why = "the test says so"
            """)
            authority = Authority.create(short_dir / "certs", "mesh.test")
            authority.issue("intake")
            authority.issue("analyst")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, str(short_dir), str(STAND_IN)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
            up = Up(short_dir, process, free)

            async def close() -> None:
                if process.returncode is None:
                    process.kill()
                await up.end()

            stack.push_async_callback(close)
            return up

        yield start


async def test_up_and_down(start_up: StartUp) -> None:
    """All is ready before it says so, a call passes, and one Ctrl-C ends everything in order with exit code 0."""
    up = await start_up()
    ready = await up.until_ready()
    assert ready["intake"]["spiffe_id"] == "spiffe://mesh.test/peer/intake"
    async with grpc.aio.insecure_channel(ready["intake"]["egress"]["analyst"][0]["address"]) as channel:
        assert await channel.unary_unary(INVOKE)(b"0", timeout=5) == b"0"
    pids = up.children()
    assert len(alive(pids)) == 4
    token = up.home / "m" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert f"token file {token}" in up.output
    up.process.send_signal(signal.SIGINT)
    assert await up.end() == 0
    assert alive(pids) == []
    assert not (up.home / "ready").exists()
    assert up.output.count("stand-in stopped in order") == 2
    assert "analyst peer" in up.output
    assert token.read_text() not in up.output


async def test_call_in_flight_is_not_lost(start_up: StartUp) -> None:
    """SIGTERM lets a call in flight end, through both sidecars."""
    up = await start_up()
    ready = await up.until_ready()
    async with grpc.aio.insecure_channel(ready["intake"]["egress"]["analyst"][0]["address"]) as channel:
        call = asyncio.ensure_future(channel.unary_unary(INVOKE)(b"2", timeout=15))
        await up.until(lambda: "call begins 2" in up.output)
        up.process.terminate()
        assert await call == b"2"
    assert await up.end() == 0


async def test_peer_that_dies_ends_the_mesh(start_up: StartUp) -> None:
    """When a peer dies, its last lines are shown, the others are ended, and the exit code is 1."""
    up = await start_up()
    await up.until_ready()
    pids = up.children()
    os.kill(next(pid for pid in pids if is_peer(pid)), signal.SIGKILL)
    assert await up.end() == 1
    assert "peer was killed by signal 9" in up.output
    assert alive(pids) == []


async def test_sidecar_that_dies_is_started_again(start_up: StartUp) -> None:
    """When an Envoy dies, its supervisor says so and starts another; calls pass again."""
    up = await start_up()
    ready = await up.until_ready()
    for pid in up.children():
        if not is_peer(pid):
            os.kill(pid, signal.SIGKILL)
    await up.until(lambda: up.output.count("Envoy serves again") == 2)
    async with grpc.aio.insecure_channel(ready["intake"]["egress"]["analyst"][0]["address"]) as channel:
        assert await channel.unary_unary(INVOKE)(b"0", timeout=5) == b"0"
    up.process.terminate()
    assert await up.end() == 0


async def test_replicas(start_up: StartUp) -> None:
    """A node that listens at two addresses has two peers, and both get calls; each is told where to listen."""
    up = await start_up(replicas=2)
    ready = await up.until_ready()
    assert len(up.children()) == 5
    async with grpc.aio.insecure_channel(ready["intake"]["egress"]["analyst"][0]["address"]) as channel:
        call = channel.unary_unary(INVOKE)
        number = 0
        async with asyncio.timeout(WAIT_SECS):  # a sidecar that was first asks the replicas' health again after a second
            while not all(f"analyst peer {replica}  | call begins" in up.output for replica in (1, 2)):
                await call(b"0", metadata=[("blazen-invocation-id", f"id-{number}")], timeout=5)
                number += 1
    up.process.terminate()
    assert await up.end() == 0


async def test_mesh_file_changes(start_up: StartUp) -> None:
    """A flow that is taken out of the mesh file while the mesh runs is refused within seconds, without any restart."""
    up = await start_up()
    ready = await up.until_ready()
    async with grpc.aio.insecure_channel(ready["intake"]["egress"]["analyst"][0]["address"]) as channel:
        call = channel.unary_unary(INVOKE)
        assert await call(b"0", timeout=5) == b"0"
        path = up.home / "mesh.toml"
        text = path.read_text().partition("[[flows]]")[0]
        path.write_text("\n".join(line for line in text.splitlines() if "egress." not in line))
        await up.until(lambda: up.output.count("is in place") == 2)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"0", timeout=5)
    up.process.terminate()
    assert await up.end() == 0


async def test_peer_that_cannot_start(start_up: StartUp) -> None:
    """A peer that ends at once fails the start at once, with what it said."""
    up = await start_up({"MISBEHAVE": "exit"})
    assert await up.end() == 1
    assert "analyst peer ended with exit code 1; its last lines:\n  stand-in: cannot start" in up.output
    assert not (up.home / "ready").exists()


async def test_port_is_taken(start_up: StartUp) -> None:
    """A port that somebody else has ends the start with Envoy's own reason, instead of being shared."""
    up = await start_up()
    await up.until_ready()
    second = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-c",
            PROGRAM.replace('home / "m"', 'home / "n"').replace('"ready"', '"r2"'),
            str(up.home),
            str(STAND_IN),
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(WAIT_SECS):
        output, _ = await second.communicate()
    assert second.returncode == 1
    assert "ddress already in use" in output.decode()


async def test_second_interrupt_kills(start_up: StartUp) -> None:
    """A peer that does not heed SIGTERM is killed at once by a second Ctrl-C."""
    up = await start_up({"MISBEHAVE": "deaf"})
    await up.until_ready()
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    await up.until(lambda: "stopping" in up.output)
    begun = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert await up.end() == 0
    assert time.monotonic() - begun < 5
    assert alive(pids) == []


async def test_stop_is_bounded(start_up: StartUp) -> None:
    """One SIGTERM suffices even for a peer that does not heed it: it is killed after the time given."""
    up = await start_up({"MISBEHAVE": "deaf"})
    await up.until_ready()
    pids = up.children()
    up.process.terminate()
    assert await up.end() == 0
    assert alive(pids) == []


@pytest.mark.parametrize("when", ["starting", "ready"])
async def test_killed_itself(start_up: StartUp, when: str) -> None:
    """Killed without a chance to clean up, while it starts or later, it leaves no process behind."""
    up = await start_up()
    if when == "ready":
        await up.until_ready()
    else:
        await up.until(lambda: "starting" in up.output and up.children())
    pids = up.children()
    up.process.kill()
    await up.until(lambda: not alive(pids))


async def test_stopped_while_starting(start_up: StartUp) -> None:
    """Ctrl-C before all is ready ends what was started."""
    up = await start_up()
    await up.until(lambda: "starting" in up.output and up.children())
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    assert await up.end() == 0
    assert alive(pids) == []


async def test_token_of_the_environment(start_up: StartUp) -> None:
    """A token in the environment is handed to peers as a file, and no other is made."""
    up = await start_up(environment={"BLAZEN_PEER_TOKEN": "given-token"})
    await up.until_ready()
    path = up.home / "m" / "run" / "token"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("given-token", 0o600)
    assert f"token file {path}" in up.output
    assert not (up.home / "m" / "token").exists()
