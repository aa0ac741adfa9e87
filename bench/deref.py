"""What it takes to read a large session ref: 1 GiB in chunks, the peak memory of both ends printed.

Client and server are processes of their own on this machine, the token is on. "peak" is the kernel's high-water mark of the
resident set (VmHWM of /proc), "before" the same mark after a first value of 1 MiB.

    python bench/deref.py [--gib 1.0] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from blazen_peer import PeerClient, RemoteRef, TransportError

ROOT = Path(__file__).parents[1]
TOKEN = "b" * 43
MIB = 1024 * 1024
TARGET_GROWTH_MIB = 32


def peak_mib(pid: int) -> float:
    """Return the peak resident memory of a process so far, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


async def held(client: PeerClient, size_bytes: int) -> RemoteRef:
    """Have the peer hold a value of that size."""
    result = await client.run_remote_workflow("bench", ["bench::hold"], json.dumps({"size_bytes": size_bytes}))
    return next(iter(result.remote_refs.values()))


async def read(client: PeerClient, size_bytes: int) -> float:
    """Read a value to its end; return the seconds that it took."""
    ref = await held(client, size_bytes)
    began, got = time.perf_counter(), 0
    async for chunk in client.deref_chunks(ref, timeout_secs=3600):
        got += len(chunk)
    took = time.perf_counter() - began
    assert got == size_bytes
    assert await client.release(ref)
    return took


async def bench(size_bytes: int) -> dict[str, float]:
    """Start a peer, read a small value, then the large one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "blazen_peer.cli", "serve", "--app", "bench.large_value_app", "--node-id", "node-b"),
        *("--listen", address, "--lame-duck-secs", "0", "--log-level", "error"),
        env={**os.environ, "BLAZEN_PEER_TOKEN": TOKEN},
        cwd=ROOT,
    )
    try:
        async with await connected(f"http://{address}") as client:
            await read(client, MIB)
            before = peak_mib(os.getpid()), peak_mib(server.pid)
            took = await read(client, size_bytes)
            after = peak_mib(os.getpid()), peak_mib(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait(), 5)
        if server.returncode is None:
            server.kill()
    return {
        "size_mib": size_bytes / MIB,
        "secs": took,
        "mib_per_sec": size_bytes / MIB / took,
        "client_before_mib": before[0],
        "client_peak_mib": after[0],
        "server_before_mib": before[1],
        "server_peak_mib": after[1],
    }


async def connected(address: str) -> PeerClient:
    """Connect to a peer that may still be starting."""
    for _ in range(100):
        try:
            return await PeerClient.connect_async(address, "node-a", token=TOKEN, timeout_secs=2)
        except TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"nobody listens on {address}")


def main() -> int:
    """Measure and print; 1 when memory was not constant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="the value's size in GiB")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = uvloop.run(bench(round(options.gib * 1024 * MIB)))
    growth = max(found[f"{end}_peak_mib"] - found[f"{end}_before_mib"] for end in ("client", "server"))
    if options.json:
        print(json.dumps(found))
    else:
        table = Table(title="Peak resident memory")
        for column in ("end", "before, MiB", "peak, MiB"):
            table.add_column(column, justify="left" if column == "end" else "right")
        for end in ("client", "server"):
            table.add_row(end, f"{found[f'{end}_before_mib']:.1f}", f"{found[f'{end}_peak_mib']:.1f}")
        console = Console()
        console.print(table)
        rate = f"{found['size_mib']:,.0f} MiB in {found['secs']:.1f} s, {found['mib_per_sec']:,.0f} MiB/s"
        console.print(f"{rate}; grew by {growth:.1f} MiB at most (target: {TARGET_GROWTH_MIB})")
    return 0 if growth <= TARGET_GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
