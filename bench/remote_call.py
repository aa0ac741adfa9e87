"""What a remote call costs: a bare grpc.aio echo of the same bytes, ours in plain text, ours through both sidecars.

All in one run, in turns, so that only ratios are to be compared with another run's. The token is on, tracing is off, client
and servers are processes of their own on this machine, every loop is uvloop.

    python bench/remote_call.py [--secs 2] [--rounds 3] [--json]
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
from dataclasses import dataclass, field
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
why = "the benchmark"
"""

Call = Callable[[], Awaitable[object]]


@dataclass
class Contender:
    """One way to make the call, and what was measured: calls a second and 50th/99th percentile in milliseconds, by round."""

    name: str
    call: Call
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self, in_flight: int, secs: float) -> None:
        """Keep *in_flight* calls going for *secs*."""
        took: list[float] = []
        end = time.perf_counter() + secs

        async def caller() -> None:
            while (began := time.perf_counter()) < end:
                await self.call()
                took.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        self.rates.setdefault(in_flight, []).append(len(took) / (time.perf_counter() - began))
        took.sort()
        self.p50_ms.setdefault(in_flight, []).append(took[len(took) // 2] * 1000)
        self.p99_ms.setdefault(in_flight, []).append(took[int(len(took) * 0.99)] * 1000)


@contextlib.asynccontextmanager
async def process(*argv: str) -> AsyncIterator[None]:
    """Run *argv* until the block is left."""
    child = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, "BLAZEN_PEER_TOKEN": TOKEN}, cwd=Path(__file__).parents[1], stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
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
            await stack.enter_async_context(process(sys.executable, "bench/echo_server.py", str(ports.intake_peer)))
            plain = Ports.free().egress
            await stack.enter_async_context(
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
            Contender("raw grpc.aio echo, plain text", raw),
            Contender("ours, plain text, token on", ours(direct)),
            Contender("ours, through both sidecars, token on", ours(meshed)),
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=2.0, help="seconds a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians are shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    contenders = uvloop.run(bench(arguments.secs, arguments.rounds, console))
    rows = [
        {
            "name": contender.name,
            "in_flight": in_flight,
            "calls_per_sec": round(statistics.median(contender.rates[in_flight])),
            "p50_ms": round(statistics.median(contender.p50_ms[in_flight]), 2),
            "p99_ms": round(statistics.median(contender.p99_ms[in_flight]), 2),
            "of_raw": round(
                statistics.median(contender.rates[in_flight]) / statistics.median(contenders[0].rates[in_flight]), 2
            ),
        }
        for in_flight in IN_FLIGHT
        for contender in contenders
    ]
    if arguments.json:
        print(json.dumps({"rows": rows, "target_of_raw_at_64": TARGET}))
        return
    table = Table("call", "in flight", "calls/s", "p50 ms", "p99 ms", "of raw", title="a remote call of two steps, 200 bytes")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"target: ours in plain text at 64 in flight at least {TARGET} of raw")


if __name__ == "__main__":
    main()
