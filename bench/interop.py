"""Our client beside the real Blazen client on the same server, and our pair beside the stock Rust pair.

All in one run, in turns, plain text, no token (the real client cannot send one), two steps, 200 bytes, tracing off. Servers and
the Rust client are processes of their own; our client runs in this one. The Rust programs are optimised; the first run builds
them, which takes minutes (``tests/interop/programs.py``).

    python bench/interop.py [--secs 1] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
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

from blazen_peer import PeerClient
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest
from tests.interop.clients import RustClient, invocation
from tests.interop.programs import CannotBuildError, Programs, build

METHOD = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
INPUT = json.dumps({"text": "x" * 180})
STEPS = ["bench::first", "bench::second"]
IN_FLIGHT = (1, 64)
TARGET = 3.0
START_SECS = 30.0

Measure = Callable[[int, float], Awaitable[tuple[list[float], float]]]


@dataclass
class Contender:
    """One client on one server; *measure* keeps so many calls going for so long, and returns each one's milliseconds and the
    seconds that all of it took."""

    client: str
    server: str
    measure: Measure
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)

    async def take_turn(self, in_flight: int, secs: float) -> None:
        """Measure once."""
        took_ms, all_secs = await self.measure(in_flight, secs)
        took_ms.sort()
        self.rates.setdefault(in_flight, []).append(len(took_ms) / all_secs)
        self.p50_ms.setdefault(in_flight, []).append(took_ms[len(took_ms) // 2])
        self.p99_ms.setdefault(in_flight, []).append(took_ms[int(len(took_ms) * 0.99)])

    def rate(self, in_flight: int) -> float:
        """Return the best round's calls a second: a noisy moment of the machine spoils no ratio."""
        return max(self.rates[in_flight])


def from_python(call: Callable[[], Awaitable[object]]) -> Measure:
    """Return what measures *call* in this process."""

    async def measure(in_flight: int, secs: float) -> tuple[list[float], float]:
        took_ms: list[float] = []
        began = time.perf_counter()
        end = began + secs

        async def caller() -> None:
            while (at := time.perf_counter()) < end:
                await call()
                took_ms.append((time.perf_counter() - at) * 1000)

        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return took_ms, time.perf_counter() - began

    return measure


def from_rust(client: RustClient, payload: bytes | None = None) -> Measure:
    """Return what has the Rust program measure: its client, or with *payload* the bare channel below it."""
    call = invocation(STEPS, input_json=INPUT, workflow="bench", timeout_secs=30)

    async def measure(in_flight: int, secs: float) -> tuple[list[float], float]:
        sent = None if payload is None else list(payload)
        answer = await client.ask({"do": "bench", "call": call, "payload": sent, "in_flight": in_flight, "secs": secs})
        return answer["took_ms"], answer["secs"]

    return measure


@contextlib.asynccontextmanager
async def serving(*argv: str) -> AsyncIterator[str]:
    """Run a server until the block is left; gives the address that it says it listens on."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BLAZEN_", "OTEL_"))}
    with tempfile.TemporaryFile("w+") as log:
        child = await asyncio.create_subprocess_exec(
            *argv, env=environ, cwd=Path(__file__).parents[1], stdout=log, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(START_SECS):
                while (found := re.search(r"listens on (http://\S+)", os.pread(log.fileno(), 10_000, 0).decode())) is None:
                    if child.returncode is not None:
                        raise SystemExit(f"{argv[0]} ended with {child.returncode}")
                    await asyncio.sleep(0.02)
            yield found[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), 5)
            if child.returncode is None:
                child.kill()


async def bench(programs: Programs, secs: float, rounds: int, console: Console) -> list[Contender]:
    """Start everything, measure in turns, stop everything."""
    payload = SubWorkflowRequest("bench", tuple(STEPS), INPUT.encode(), 30).encode()
    message = PostcardRequest(postcard_payload=payload).SerializeToString()
    contenders: list[Contender] = []
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(
            serving(
                *(sys.executable, "-m", "blazen_peer.cli", "serve", "--app", "bench.echo_app", "--node-id", "analyst"),
                *("--listen", "127.0.0.1:0", "--lame-duck-secs", "0"),
            )
        )
        theirs = await stack.enter_async_context(serving(str(programs.server), "127.0.0.1:0"))
        addresses = {"ours": ours, "Rust": theirs}
        rust_clients = {}
        for server, address in addresses.items():  # every process first: gRPC in this one does not like a fork
            rust_clients[server] = rust = await RustClient.start(str(programs.client), address)
            stack.push_async_callback(rust.close)
            assert await rust.answer() == {"connected": True}
        for server, address in addresses.items():
            client = await stack.enter_async_context(await PeerClient.connect_async(address, "intake"))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address.removeprefix("http://")))
            bare = channel.unary_unary(METHOD)
            contenders += [
                Contender("the real client", server, from_rust(rust_clients[server])),
                Contender("ours", server, from_python(lambda c=client: c.run_remote_workflow("bench", STEPS, INPUT, 30))),  # type: ignore[misc]
                Contender("bare grpc.aio", server, from_python(lambda b=bare: b(message, timeout=35))),  # type: ignore[misc]
                Contender("bare Rust channel", server, from_rust(rust_clients[server], payload)),
            ]
        for contender in contenders:
            await contender.measure(8, 0.5)
        for number in range(rounds):
            for in_flight in IN_FLIGHT:
                for contender in contenders:
                    said = f"{contender.client} on {contender.server}, {in_flight} in flight"
                    with console.status(f"round {number + 1} of {rounds}: {said}"):
                        await contender.take_turn(in_flight, secs)
    return contenders


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=1.0, help="seconds a measurement")
    parser.add_argument("--rounds", type=int, default=5, help="turns; of each the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    try:
        with console.status("building the real Blazen (minutes, once)"):
            programs = build(release=True)
    except CannotBuildError as error:
        print(f"bench/interop.py skipped: {str(error).splitlines()[0]}")
        return 0
    contenders = uvloop.run(bench(programs, arguments.secs, arguments.rounds, console))
    by_pair = {(contender.client, contender.server): contender for contender in contenders}
    rows = [
        {
            "client": contender.client,
            "server": contender.server,
            "in_flight": in_flight,
            "calls_per_sec": round(contender.rate(in_flight)),
            "p50_ms": round(min(contender.p50_ms[in_flight]), 2),
            "p99_ms": round(min(contender.p99_ms[in_flight]), 2),
            "of_real_client": round(
                contender.rate(in_flight) / by_pair["the real client", contender.server].rate(in_flight), 2
            ),
            "of_stock_pair": round(contender.rate(in_flight) / by_pair["the real client", "Rust"].rate(in_flight), 2),
        }
        for in_flight in IN_FLIGHT
        for contender in contenders
    ]
    if arguments.json:
        print(json.dumps({"interop": rows, "target_of_real_client_at_64": TARGET}))
        return 0
    columns = ("client", "server", "in flight", "calls/s", "p50 ms", "p99 ms", "of the real client there", "of the stock pair")
    table = Table(*columns, title="ours and the real Blazen: a remote call of two steps, 200 bytes")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 128).print(table)
    most = max(IN_FLIGHT)
    got = by_pair["ours", "ours"].rate(most) / by_pair["the real client", "ours"].rate(most)
    print(f"target: our client on our server at {most} in flight at least {TARGET} of the real client there: {got:.2f}")
    got = by_pair["ours", "ours"].rate(most) / by_pair["the real client", "Rust"].rate(most)
    print(f"our client on our server, of the stock Rust pair, at {most} in flight: {got:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
