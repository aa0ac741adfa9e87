"""What a remote call costs: a bare grpc.aio echo of the same bytes, ours in plain text, ours through both sidecars.

    python bench/remote_call.py [--json] [--rounds N] [--secs N]

All take turns in one run and of each the median of the rounds counts, so that only ratios are to be compared with another
run's. The token is on, tracing is off, client and servers are processes of their own on this machine, every loop is uvloop.
CPU is that of the client's process and of the server's, of each the least of the rounds: on a busy machine it is steadier than
rates are. Linux alone tells the server's; through the sidecars it is not added up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.echo_server import METHOD
from blazen_certs import Authority
from blazen_peer import PeerClient, TransportError
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest
from examples.demo.mesh import LocalMesh, Ports

TEXT = "x" * 180
INPUT = json.dumps({"text": TEXT})
STEPS = ["bench::first", "bench::second"]
TOKEN = "b" * 43
IN_FLIGHT = (1, 64)
TARGET = 0.6

MESH = """\
trust_domain = "bench.example"

[peers.intake]
sidecar = "127.0.0.1:{intake_sidecar}"
listen = "127.0.0.1:{intake_peer}"
egress.analyst = {egress}

[peers.analyst]
sidecar = "127.0.0.1:{analyst_sidecar}"
listen = "127.0.0.1:{analyst_peer}"
run.app = "bench.echo_app"

[[flows]]
from = "intake"
to = "analyst"
workflows = ["bench"]
why = "the benchmark"
"""

Call = Callable[[], Awaitable[object]]


@dataclass
class Contender:
    """One way to make the call, and what was measured, round by round, for each number in flight: calls a second, 50th and 99th
    percentile in milliseconds, microseconds of CPU a call. ``server`` is the server's process id, where it is one process."""

    name: str
    call: Call
    server: int | None = None
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)
    client_us: dict[int, list[float]] = field(default_factory=dict)
    server_us: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self, in_flight: int, secs: float) -> None:
        """Keep *in_flight* calls going for *secs*."""
        took: list[float] = []
        end = time.perf_counter() + secs

        async def caller() -> None:
            while (began := time.perf_counter()) < end:
                await self.call()
                took.append(time.perf_counter() - began)

        client_secs, server_secs = time.process_time(), cpu_secs(self.server)
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        self.rates.setdefault(in_flight, []).append(len(took) / (time.perf_counter() - began))
        self.client_us.setdefault(in_flight, []).append((time.process_time() - client_secs) / len(took) * 1e6)
        if server_secs is not None and (now_secs := cpu_secs(self.server)) is not None:
            self.server_us.setdefault(in_flight, []).append((now_secs - server_secs) / len(took) * 1e6)
        took.sort()
        self.p50_ms.setdefault(in_flight, []).append(took[len(took) // 2] * 1000)
        self.p99_ms.setdefault(in_flight, []).append(took[int(len(took) * 0.99)] * 1000)


def cpu_secs(pid: int | None) -> float | None:
    """Return the seconds of CPU that a process has used, or None where nobody tells (proc_pid_stat(5): utime, stime)."""
    stat = Path(f"/proc/{pid}/stat")
    if pid is None or not stat.exists():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def process(*argv: str) -> AsyncIterator[int]:
    """Run *argv* until the block is left; give its process id."""
    child = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, "BLAZEN_PEER_TOKEN": TOKEN}, cwd=Path(__file__).parents[1], stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await child.wait()
        if child.returncode is None:
            child.kill()


async def connected(address: str, token: str) -> PeerClient:
    """Connect to a peer that may still be starting."""
    for _ in range(100):
        try:
            return await PeerClient.connect_async(address, "intake", token=token, timeout_secs=2)
        except TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"nobody listens on {address}")


async def bench(secs: float, rounds: int, console: Console) -> list[Contender]:
    """Start everything, measure in turns, stop everything."""
    ports = Ports.free()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bz")))
        authority = Authority.create(directory / "certs", "bench.example")
        for node in ("intake", "analyst"):
            authority.issue(node)
        with console.status("starting"):
            echo_pid = await stack.enter_async_context(process(sys.executable, "bench/echo_server.py", str(ports.intake_peer)))
            plain = Ports.free().egress
            peer_pid = await stack.enter_async_context(
                process(
                    *(sys.executable, "-m", "blazen_peer.cli", "serve", "--app", "bench.echo_app", "--node-id", "analyst"),
                    *("--listen", f"127.0.0.1:{plain}", "--lame-duck-secs", "0", "--log-level", "error"),
                )
            )
            mesh = await stack.enter_async_context(LocalMesh(directory, ports, toml=MESH))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports.intake_peer}"))
            direct = await stack.enter_async_context(await connected(f"http://127.0.0.1:{plain}", TOKEN))
            meshed = await stack.enter_async_context(await connected(f"http://127.0.0.1:{ports.egress}", mesh.token))
        message = PostcardRequest(
            postcard_payload=SubWorkflowRequest("bench", tuple(STEPS), INPUT.encode(), 30).encode()
        ).SerializeToString()
        echo = channel.unary_unary(METHOD)

        async def raw() -> bytes:
            return await echo(message, timeout=35)

        def ours(client: PeerClient) -> Call:
            return lambda: client.run_remote_workflow("bench", STEPS, INPUT, 30)

        contenders = [
            Contender("raw grpc.aio echo", raw, echo_pid),
            Contender("ours, plain text", ours(direct), peer_pid),
            Contender("ours, both sidecars", ours(meshed)),
        ]
        for contender in contenders:
            await contender.measure(8, 0.5)
            contender.rates.clear()
        for number in range(rounds):
            for in_flight in IN_FLIGHT:
                for contender in contenders:
                    with console.status(f"round {number + 1} of {rounds}: {contender.name}, {in_flight} in flight"):
                        await contender.measure(in_flight, secs)
        return contenders


@dataclass(frozen=True)
class Row:
    """One line of the table; ``of_raw`` is the rate over the raw echo's in the same run."""

    name: str
    in_flight: int
    calls_per_sec: float
    p50_ms: float
    p99_ms: float
    client_us: float
    server_us: float | None
    of_raw: float
    target: str
    met: bool | None


def rows_of(contenders: list[Contender]) -> list[Row]:
    """Return the table's lines, first all with one call in flight."""
    rows = []
    for in_flight in IN_FLIGHT:
        raw_rate = statistics.median(contenders[0].rates[in_flight])
        for number, contender in enumerate(contenders):
            rate = statistics.median(contender.rates[in_flight])
            aimed = number == 1 and in_flight == max(IN_FLIGHT)
            rows.append(
                Row(
                    contender.name,
                    in_flight,
                    rate,
                    statistics.median(contender.p50_ms[in_flight]),
                    statistics.median(contender.p99_ms[in_flight]),
                    min(contender.client_us[in_flight]),
                    min(contender.server_us.get(in_flight, []), default=None),
                    rate / raw_rate,
                    f"{TARGET:g} of raw" if aimed else "",
                    rate / raw_rate >= TARGET if aimed else None,
                )
            )
    return rows


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table(title="What a remote call costs (two steps, 200 bytes; median of the rounds; of CPU the least)")
    columns = ("", "in flight", "calls/s", "p50 ms", "p99 ms", "client CPU us", "server CPU us", "of raw", "target", "met")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        server_us = "" if row.server_us is None else f"{row.server_us:.0f}"
        times = (f"{row.calls_per_sec:.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.client_us:.0f}", server_us)
        met = "" if row.met is None else "yes" if row.met else "NO"
        table.add_row(row.name, str(row.in_flight), *times, f"{row.of_raw:.2f}", row.target, met)
    Console(width=128).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=2.0, help="seconds a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians are shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    contenders = uvloop.run(bench(arguments.secs, arguments.rounds, console))
    rows = rows_of(contenders)
    if arguments.json:
        print(json.dumps({"remote_call": [asdict(row) for row in rows]}))
    else:
        show(rows)


if __name__ == "__main__":
    main()
