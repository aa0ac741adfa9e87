"""What a remote call costs: a bare grpc.aio echo of the same bytes, ours each alone, ours by a lane, and the stock Rust pair.
In plain text, and all but the Rust pair through both sidecars.

    python bench/remote_call.py [--json] [--rounds N] [--secs N] [--in-flight 1,64,512] [--without-rust]

All take turns in one run and of each the median of the rounds counts, so that only ratios are to be compared with another
run's. The token is on, tracing is off, client and servers are processes of their own on this machine, every loop is uvloop.
CPU is that of the client's process and of the server's, of each the least of the rounds: on a busy machine it is steadier than
rates are. Linux alone tells the server's; through the sidecars it is not added up. The Rust pair has no token and no sidecars;
its programs are optimised, and built by the first run that can (``tests/interop/programs.py``).
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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.echo_server import METHOD
from bench.interop import from_rust, serving
from blazen_certs import Authority
from blazen_peer import PeerClient, TransportError
from blazen_peer.transport.lanes import LaneMode
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest
from examples.demo.mesh import LocalMesh, Ports
from tests.interop.clients import RustClient
from tests.interop.programs import CannotBuildError, Programs, build

TEXT = "x" * 180
INPUT = json.dumps({"text": TEXT})
STEPS = ["bench::first", "bench::second"]
TOKEN = "b" * 43
IN_FLIGHT = (1, 64, 512)
RAW, PLAIN, LANE = "raw grpc.aio echo", "ours, each alone", "ours, by a lane"
MESHED = ", both sidecars"
RUST = "the stock Rust pair"

MESH = """\
trust_domain = "bench.example"
calls_per_sec = 10_000_000

[peers.intake]
sidecar = "127.0.0.1:{intake_sidecar}"
listen = "127.0.0.1:{intake_peer}"
egress.analyst = {egress}

[peers.analyst]
sidecar = "127.0.0.1:{analyst_sidecar}"
listen = "127.0.0.1:{analyst_peer}"
egress.intake = BACK
run.app = "bench.echo_app"

[[flows]]
from = "intake"
to = "analyst"
workflows = ["bench"]
why = "the benchmark"

[[flows]]
from = "analyst"
to = "intake"
workflows = ["bench"]
why = "the bare echo stands where intake's peer would"
"""

Call = Callable[[], Awaitable[object]]


@dataclass
class Contender:
    """One way to make the call, and what was measured, round by round, for each number in flight: calls a second, 50th and 99th
    percentile in milliseconds, microseconds of CPU a call. ``server`` is the server's process id, where it is one process."""

    name: str
    call: Call | None
    server: int | None = None
    rust: Callable[[int, float], Awaitable[tuple[list[float], float]]] | None = None
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)
    client_us: dict[int, list[float]] = field(default_factory=dict)
    server_us: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self, in_flight: int, secs: float) -> None:
        """Keep *in_flight* calls going for *secs*."""
        if self.rust is not None:
            took_ms, all_secs = await self.rust(in_flight, secs)
            self._note(in_flight, sorted(took_ms), all_secs)
            return
        call = self.call
        assert call is not None
        took: list[float] = []
        end = time.perf_counter() + secs

        async def caller() -> None:
            while (began := time.perf_counter()) < end:
                await call()
                took.append((time.perf_counter() - began) * 1000)

        client_secs, server_secs = time.process_time(), cpu_secs(self.server)
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        self._note(in_flight, sorted(took), time.perf_counter() - began)
        self.client_us.setdefault(in_flight, []).append((time.process_time() - client_secs) / len(took) * 1e6)
        if server_secs is not None and (now_secs := cpu_secs(self.server)) is not None:
            self.server_us.setdefault(in_flight, []).append((now_secs - server_secs) / len(took) * 1e6)

    def _note(self, in_flight: int, took_ms: list[float], all_secs: float) -> None:
        self.rates.setdefault(in_flight, []).append(len(took_ms) / all_secs)
        self.p50_ms.setdefault(in_flight, []).append(took_ms[len(took_ms) // 2])
        self.p99_ms.setdefault(in_flight, []).append(took_ms[int(len(took_ms) * 0.99)])

    def forget(self) -> None:
        """Begin anew, after the warming up."""
        for found in (self.rates, self.p50_ms, self.p99_ms, self.client_us, self.server_us):
            found.clear()


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


async def connected(address: str, token: str, lane: LaneMode = "auto") -> PeerClient:
    """Connect to a peer that may still be starting."""
    for _ in range(100):
        try:
            return await PeerClient.connect_async(address, "intake", token=token, timeout_secs=2, lane=lane)
        except TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"nobody listens on {address}")


async def bench(
    programs: Programs | None, secs: float, rounds: int, numbers: Sequence[int], console: Console
) -> list[Contender]:
    """Start everything, measure in turns, stop everything."""
    ports, back = Ports.free(), Ports.free().egress
    contenders: list[Contender] = []
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bz")))
        authority = Authority.create(directory / "certs", "bench.example")
        for node in ("intake", "analyst"):
            authority.issue(node)
        with console.status("starting"):
            if programs is not None:  # every process first: gRPC in this one does not like a fork
                theirs = await stack.enter_async_context(serving(str(programs.server), "127.0.0.1:0"))
                rust = await RustClient.start(str(programs.client), theirs)
                stack.push_async_callback(rust.close)
                assert await rust.answer() == {"connected": True}
            echo_pid = await stack.enter_async_context(process(sys.executable, "bench/echo_server.py", str(ports.intake_peer)))
            plain = Ports.free().egress
            peer_pid = await stack.enter_async_context(
                process(
                    *(sys.executable, "-m", "blazen_peer.cli", "serve", "--app", "bench.echo_app", "--node-id", "analyst"),
                    *("--listen", f"127.0.0.1:{plain}", "--lame-duck-secs", "0", "--log-level", "error"),
                )
            )
            mesh = await stack.enter_async_context(LocalMesh(directory, ports, toml=MESH.replace("BACK", str(back))))
        message = PostcardRequest(
            postcard_payload=SubWorkflowRequest("bench", tuple(STEPS), INPUT.encode(), 30).encode()
        ).SerializeToString()

        async def raw(name: str, port: int, server: int | None) -> None:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            echo = channel.unary_unary(METHOD)
            contenders.append(Contender(name, lambda: echo(message, timeout=35), server))

        async def ours(name: str, port: int, token: str, lane: LaneMode, server: int | None) -> None:
            client = await stack.enter_async_context(await connected(f"http://127.0.0.1:{port}", token, lane))
            contenders.append(Contender(name, lambda: client.run_remote_workflow("bench", STEPS, INPUT, 30), server))

        await raw(RAW, ports.intake_peer, echo_pid)
        await ours(PLAIN, plain, TOKEN, "never", peer_pid)
        await ours(LANE, plain, TOKEN, "always", peer_pid)
        if programs is not None:
            contenders.append(Contender(RUST, None, rust=from_rust(rust)))
        await raw(RAW + MESHED, back, None)
        await ours(PLAIN + MESHED, ports.egress, mesh.token, "never", None)
        await ours(LANE + MESHED, ports.egress, mesh.token, "always", None)
        for contender in contenders:
            await contender.measure(8, 0.5)
            contender.forget()
        for number in range(rounds):
            for in_flight in numbers:
                for contender in contenders:
                    with console.status(f"round {number + 1} of {rounds}: {contender.name}, {in_flight} in flight"):
                        await contender.measure(in_flight, secs)
        return contenders


@dataclass(frozen=True)
class Row:
    """One line of the table; ``of_raw`` is the rate over the bare echo's on the same way, in the same run."""

    name: str
    in_flight: int
    calls_per_sec: float
    p50_ms: float
    p99_ms: float
    client_us: float | None
    server_us: float | None
    of_raw: float


@dataclass(frozen=True)
class Target:
    """One thing to reach, and whether it was."""

    what: str
    measured: float
    at_least: float

    @property
    def met(self) -> bool:
        return self.measured >= self.at_least


def rows_of(contenders: list[Contender], numbers: Sequence[int]) -> list[Row]:
    """Return the table's lines, first all with one call in flight."""
    by_name = {contender.name: contender for contender in contenders}
    rows = []
    for in_flight in numbers:
        for contender in contenders:
            rate = statistics.median(contender.rates[in_flight])
            bare = by_name[RAW + MESHED if contender.name.endswith(MESHED) else RAW]
            rows.append(
                Row(
                    contender.name,
                    in_flight,
                    rate,
                    statistics.median(contender.p50_ms[in_flight]),
                    statistics.median(contender.p99_ms[in_flight]),
                    min(contender.client_us.get(in_flight, []), default=None),
                    min(contender.server_us.get(in_flight, []), default=None),
                    rate / statistics.median(bare.rates[in_flight]),
                )
            )
    return rows


def targets_of(rows: list[Row]) -> list[Target]:
    """Return what is to be reached, as far as this run can tell."""
    found = {(row.name, row.in_flight): row for row in rows}
    targets = []
    if (PLAIN, 64) in found:
        targets.append(Target("64 in flight: each alone, of the bare echo", found[PLAIN, 64].of_raw, 0.6))
    if (RUST, 64) in found:
        stock = found[RUST, 64].calls_per_sec
        targets.append(Target("64 in flight: by a lane, of the stock Rust pair", found[LANE, 64].calls_per_sec / stock, 2))
        meshed = found[LANE + MESHED, 64].calls_per_sec
        targets.append(
            Target("64 in flight: by a lane through both sidecars, of the stock pair in plain text", meshed / stock, 1)
        )
    if (LANE, 1) in found:
        alone, lane = found[PLAIN, 1].p50_ms, found[LANE, 1].p50_ms
        targets.append(Target("1 in flight: p50 each alone over p50 by a lane (1 / 0.7)", alone / lane, 1 / 0.7))
    return targets


def show(rows: list[Row], targets: list[Target]) -> None:
    """Print the tables."""
    table = Table(title="What a remote call costs (two steps, 200 bytes; median of the rounds; of CPU the least)")
    for column in ("", "in flight", "calls/s", "p50 ms", "p99 ms", "client CPU us", "server CPU us", "of raw"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        times = (f"{row.calls_per_sec:.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
        cpu = ("" if us is None else f"{us:.0f}" for us in (row.client_us, row.server_us))
        table.add_row(row.name, str(row.in_flight), *times, *cpu, f"{row.of_raw:.2f}")
    console = Console(width=128)
    console.print(table)
    for target in targets:
        console.print(
            f"{'reached' if target.met else 'NOT reached'}: {target.what}: {target.measured:.2f}, {target.at_least:.2f} asked"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=2.0, help="seconds a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians are shown")
    parser.add_argument("--in-flight", default=",".join(map(str, IN_FLIGHT)), help="how many calls at once, with commas")
    parser.add_argument("--without-rust", action="store_true", help="leave the stock Rust pair out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    programs = None
    if not arguments.without_rust:
        try:
            with console.status("building the real Blazen (minutes, once)"):
                programs = build(release=True)
        except CannotBuildError as error:
            console.print(f"without the stock Rust pair: {str(error).splitlines()[0]}")
    numbers = tuple(int(number) for number in arguments.in_flight.split(","))
    contenders = uvloop.run(bench(programs, arguments.secs, arguments.rounds, numbers, console))
    rows = rows_of(contenders, numbers)
    targets = targets_of(rows)
    if arguments.json:
        named = [{**asdict(target), "met": target.met} for target in targets]
        print(json.dumps({"remote_call": [asdict(row) for row in rows], "targets": named}))
    else:
        show(rows, targets)


if __name__ == "__main__":
    main()
