"""Nothing is lost: a constant load through both sidecars, while everything that can be replaced is replaced under it.

    python bench/soak.py [--secs 60] [--rate 220] [--lane auto] [--kill-secs 10] [--json]

The load is open loop (a call begins when its time has come, whatever became of those before), made by one ``PeerClient`` with
its retries off, by way of intake's sidecar and analyst's. Meanwhile, again and again and all at once: the leaves of both ends
are issued anew, the root is replaced in three phases, the mesh file changes, the token changes in three steps, the replicas of
analyst's peer are restarted one after the other, and supervisors and Envoys of both sidecars are replaced by others.

Each call has an id; each execution writes the id to a file of its process. Exit code 0: every call was answered with its own
id, every id was executed once, the load was as heavy as asked for, and every change was seen to happen. 1: anything else. With
--kill-secs a replica is killed every so often, whatever else goes on; then calls that were in flight on it, those alone, may
end with ``TransportError``. That one was is known by what the killed process wrote before its death, by the instance id of the
lane that the call was sent by, or by the sidecar's log; one that is said not to have run must not be in any process's file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.soak_load import Load, WatchedClient, watch_lanes
from bench.soak_mesh import REPLICAS, SoakMesh, free_ports
from bench.soak_verdict import judge_calls
from blazen_certs.rotation import advance_rotation
from blazen_mesh.render import replace_file
from blazen_peer.transport.lanes import LANE_MODES, LaneMode

LEAF_SECS = 5.0
PROBE_SECS = 0.5
END_SECS = 180.0  # for the start, the last calls' ends, and what was begun to be replaced
LEAST_KILLS = 0.6  # of those that the time has room for: until a killed replica is back, the next one waits
KINDS = ("leaves issued", "mesh files in force", "token steps", "peers restarted", "analyst: supervisor replaced")
KINDS += ("root: phase none",)  # the end of a whole replacement
SEEN = ("serials of analyst seen in handshakes", "serials of intake seen with calls", "issuing CAs seen in handshakes")
LATE_KINDS = ("intake: supervisor replaced", "analyst: Envoy replaced", "intake: Envoy replaced")
LATE_SECS = 60.0  # a shorter soak need not come to these
MAX_SECS, MAX_RATE = 6 * 3600.0, 5000.0


class Options(argparse.Namespace):
    """What the command line says."""

    secs: float
    rate: float
    lane: LaneMode
    kill_secs: float
    json: bool
    keep: Path | None


class Changes:
    """Everything that is replaced under the load. ``done`` counts each kind."""

    def __init__(self, mesh: SoakMesh, secs: float, kill_secs: float) -> None:
        self.mesh, self.secs, self._kill_secs = mesh, secs, kill_secs
        self.done: Counter[str] = Counter()
        self.peak_mib = 0.0
        self._busy: set[int] = set()  # replicas that are being replaced
        self._new_token = ""
        self.serials: dict[str, set[int]] = {"intake": set(), "analyst": set()}
        self.issuers: set[bytes] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Go on with each kind, one after another within it, until *stop* is set and what was begun is over."""
        turns: list[tuple[Callable[[int], Awaitable[None]], float]] = [
            (self._leaves, LEAF_SECS),
            (self._policy, 3.0),
            (self._token, 2.0),
            (self._restart, 0.5),
            (self._sidecar, 3.0),
            (self._root, self.secs / 5),
            (self._look, PROBE_SECS),
        ]
        async with asyncio.TaskGroup() as group:
            for turn, pause in turns:
                group.create_task(self._repeat(turn, pause, stop))
            if self._kill_secs:
                group.create_task(self._kills(stop))

    async def _kills(self, stop: asyncio.Event) -> None:
        """Kill every so often, by the clock: what else goes on does not put it off."""
        number, due = 0, time.monotonic()
        while True:
            due = max(due + self._kill_secs, time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), due - time.monotonic())
            if stop.is_set():
                return
            async with self._replica(number) as replica:
                await self.mesh.kill_peer(replica)
                self.done["peers killed"] += 1
                await self.mesh.until_healthy(replica)
            number += 1

    async def _repeat(self, turn: Callable[[int], Awaitable[None]], pause: float, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            await turn(number)
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def _leaves(self, _: int) -> None:
        for node in ("intake", "analyst"):
            await asyncio.to_thread(self.mesh.authority.issue, node)
            self.done["leaves issued"] += 1

    async def _root(self, _: int) -> None:
        step = await asyncio.to_thread(advance_rotation, self.mesh.authority, now=datetime.now(UTC))
        self.done[f"root: phase {step.after.phase}"] += step.advanced

    async def _policy(self, number: int) -> None:
        before = {node: self.mesh.status(node)["generation"] for node in ("intake", "analyst")}
        self.mesh.write_mesh(visitor=number % 2 == 0, workflows=["soak", f"other-{number}"])
        for node, old in before.items():
            await self.mesh.until(lambda node=node, old=old: self.mesh.status(node).get("generation") not in (None, old))
        self.done["mesh files in force"] += 1

    async def _token(self, number: int) -> None:
        mesh, nodes = self.mesh, ("analyst", "intake")
        if number % 3 == 0:
            self._new_token, old = secrets.token_urlsafe(32), mesh.token_file("intake").read_text()
            files = {mesh.token_file(node, "previous"): f"{old}\n{self._new_token}" for node in nodes}
        else:
            files = {mesh.token_file(node, "token" if number % 3 == 1 else "previous"): self._new_token for node in nodes}
        for path, token in files.items():
            replace_file(path, token.encode(), 0o600)
        self.done["token steps"] += 1

    @contextlib.asynccontextmanager
    async def _replica(self, number: int) -> AsyncIterator[int]:
        """Give a replica, another each time, that nobody else replaces meanwhile."""
        replica = next(one % REPLICAS for one in range(number, number + REPLICAS) if one % REPLICAS not in self._busy)
        self._busy.add(replica)
        try:
            yield replica
        finally:
            self._busy.discard(replica)

    async def _restart(self, number: int) -> None:
        async with self._replica(number) as replica:
            await self.mesh.restart_peer(replica)
            await self.mesh.until_healthy(replica)
        self.done["peers restarted"] += 1

    async def _sidecar(self, number: int) -> None:
        node = ("analyst", "intake")[number % 2]
        if number % 4 < 2:
            await self.mesh.start_sidecar(node)
            self.done[f"{node}: supervisor replaced"] += 1
        else:
            starts = self.mesh.status(node)["starts"]
            self.mesh.sidecars[node].send_signal(signal.SIGHUP)
            await self.mesh.until(lambda: self.mesh.status(node).get("starts", 0) > starts)
            self.done[f"{node}: Envoy replaced"] += 1

    async def _look(self, _: int) -> None:
        self.peak_mib = max(self.peak_mib, self.mesh.memory_mib())
        for node, seen in self.serials.items():
            if certificate := await asyncio.to_thread(self.mesh.served, node):
                seen.add(certificate.serial_number)
                issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
                self.issuers.add(issuer.key_identifier or b"")


def judge(load: Load, changes: Changes, mesh: SoakMesh, options: Options) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers, and what of them is not as it must be."""
    lanes, kills = options.lane != "never", bool(options.kill_secs)
    numbers, wrong = judge_calls(load, mesh, lanes=lanes, kills=kills, peak_mib=changes.peak_mib)
    in_calls = {str(entry["peer_serial"]) for entry in mesh.log("analyst-sidecar") if entry.get("log") == "call"}
    numbers |= {
        **dict(sorted(changes.done.items())),
        "serials of analyst seen in handshakes": len(changes.serials["analyst"]),
        "serials of intake seen in handshakes": len(changes.serials["intake"]),
        "serials of intake seen with calls": len(in_calls - {"None", "-"}),
        "issuing CAs seen in handshakes": len(changes.issuers),
    }
    wrong += [f"{what}: {numbers[what]}, so no change was seen" for what in SEEN if numbers[what] < 2]
    wrong += [f"{kind}: none" for kind in KINDS + (LATE_KINDS if load.secs >= LATE_SECS else ()) if not changes.done[kind]]
    if kills and changes.done["peers killed"] < (least := load.secs / options.kill_secs * LEAST_KILLS - 1):
        wrong.append(f"peers killed: {changes.done['peers killed']}, not {least:g}")
    return numbers, wrong


async def soak(home: Path, options: Options) -> tuple[dict[str, Any], list[str]]:
    """Run the whole thing in *home*; return the numbers, and what is wrong."""
    mesh = SoakMesh(home, free_ports(), lame_duck_secs=8)
    token = secrets.token_urlsafe(32)
    for node in ("intake", "analyst"):
        for name in ("token", "previous"):
            replace_file(mesh.token_file(node, name), token.encode(), 0o600)
    try:
        async with asyncio.timeout(options.secs + END_SECS):
            await mesh.start()
            await mesh.until_healthy(*range(REPLICAS))
            os.environ["BLAZEN_PEER_TOKEN_FILE"] = str(mesh.token_file("intake"))
            watch_lanes()
            client = await WatchedClient.connect_async("peer:analyst", peers_file=mesh.peers_file, lane=options.lane)
            async with client:
                load = Load(client, options.rate, named=options.lane == "never")
                changes, stop = Changes(mesh, options.secs, options.kill_secs), asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(changes.run(stop))
                    await load.run(options.secs)
                    stop.set()
        return judge(load, changes, mesh, options)
    finally:
        await mesh.stop()


def main() -> int:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=float, default=60.0, help="how long the load lasts (60)")
    parser.add_argument("--rate", type=float, default=220.0, help="calls a second (220)")
    parser.add_argument("--lane", choices=LANE_MODES, default="auto", help="whether calls go by lanes (auto)")
    parser.add_argument("--kill-secs", type=float, default=0.0, help="kill a replica every so often (never)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep logs and journals there")
    options = parser.parse_args(namespace=Options())
    if not (0 < options.secs <= MAX_SECS and 0 < options.rate <= MAX_RATE and options.kill_secs >= 0):
        parser.error(f"--secs goes up to {MAX_SECS:g}, --rate up to {MAX_RATE:g}: each call is kept account of")
    with contextlib.ExitStack() as stack:
        home = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        home.mkdir(parents=True, exist_ok=True)
        numbers, wrong = uvloop.run(soak(home, options))
    if options.json:
        sys.stdout.write(json.dumps({"ok": not wrong, "numbers": numbers, "wrong": wrong}) + "\n")
        return bool(wrong)
    show(numbers, wrong, Console())
    return bool(wrong)


def show(numbers: dict[str, Any], wrong: list[str], console: Console) -> None:
    """Print the numbers as a table, and what is wrong below it."""
    table = Table("what", "how many", title="under load, everything replaced", title_justify="left")
    table.columns[1].justify = "right"
    for what, many in numbers.items():
        table.add_row(what, f"{many:,}" if isinstance(many, int) else f"{many:,.1f}")
    console.print(table)
    for line in wrong:
        console.print(f"wrong: {line}", style="red", markup=False)
    console.print(f"{len(wrong)} things are wrong" if wrong else "every call is accounted for")


if __name__ == "__main__":
    sys.exit(main())
