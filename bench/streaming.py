"""Events streamed per second on one run, beside a bare grpc.aio stream of the same bytes in the same run.

A step emits typed events as fast as it can; the client reads them as events, parsed. Client and servers are processes of their
own on this machine, the token is on, tracing is off, every loop is uvloop. They take turns; medians are shown.

    python bench/streaming.py [--events 20000] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from blazen_peer import PeerClient, TransportError

ROOT = Path(__file__).parents[1]
METHOD = "/blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents"
TOKEN = "b" * 43
TARGET = 0.6


@contextlib.contextmanager
def served(kind: str) -> Iterator[int]:
    """Run one of the two servers; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "BLAZEN_PEER_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "bench/stream_server.py", kind, str(port)], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


async def connected(port: int) -> PeerClient:
    """Connect to a peer that may still be starting."""
    for _ in range(100):
        try:
            return await PeerClient.connect_async(f"http://127.0.0.1:{port}", "bench", token=TOKEN, timeout_secs=2)
        except TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit("the peer does not start")


async def bench(events: int, rounds: int, console: Console) -> dict[str, list[float]]:
    """Return events a second of each round, by contender."""
    rates: dict[str, list[float]] = {"bare grpc.aio stream": [], "ours": []}
    with served("bare") as bare_port, served("ours") as our_port:
        async with (
            await connected(our_port) as client,
            grpc.aio.insecure_channel(f"127.0.0.1:{bare_port}", options=(("grpc.enable_http_proxy", 0),)) as channel,
        ):
            await channel.channel_ready()
            stream = channel.unary_stream(METHOD)

            async def bare() -> int:
                count = 0
                async for _ in stream(str(events).encode(), timeout=120):
                    count += 1
                return count

            async def ours() -> int:
                count = -1  # the last one is the StopEvent
                async for _ in client.stream_remote_workflow("bench", ["bench::emit"], str(events), 120):
                    count += 1
                return count

            for number in range(rounds + 1):
                for name, read in (("bare grpc.aio stream", bare), ("ours", ours)):
                    with console.status(f"round {number} of {rounds}: {name}"):
                        began = time.perf_counter()
                        assert await read() == events
                        if number:  # the first is to warm up
                            rates[name].append(events / (time.perf_counter() - began))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000, help="events a round")
    parser.add_argument("--rounds", type=int, default=5, help="turns; medians are shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rates = uvloop.run(bench(arguments.events, arguments.rounds, Console(stderr=True)))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = medians["ours"] / medians["bare grpc.aio stream"]
    if arguments.json:
        print(json.dumps({"events_per_sec": medians, "of_bare": round(ratio, 3), "target": TARGET}))
        return
    table = Table("stream", "events/s, median", "of all rounds", title=f"{arguments.events:,} events of one run")
    for name, found in rates.items():
        table.add_row(name, f"{medians[name]:,.0f}", f"{min(found):,.0f} to {max(found):,.0f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"ours is {ratio:.2f} of the bare stream (target: {TARGET})")


if __name__ == "__main__":
    main()
