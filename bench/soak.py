"""Nothing is lost: a constant load through both sidecars, while everything that can be replaced is replaced under it.

    python bench/soak.py [--secs 60] [--rate 220] [--lane auto] [--kill-secs 10] [--json]

The load is open loop (a call begins when its time has come, whatever became of those before), made by one ``PeerClient`` with
its retries off, by way of intake's sidecar and analyst's. Meanwhile, again and again and all at once: the leaves of both ends
are issued anew, the root is replaced in three phases, the mesh file changes, the token changes in three steps, both replicas of
analyst's peer are restarted one after the other, and supervisors and Envoys of both sidecars are replaced by others.

Each call has an id; each execution writes the id to a file of its process. Exit code 0: every call was answered with its own
id, every id was executed once, the load was as heavy as asked for, and every change was seen to happen. 1: anything else. With
--kill-secs a replica is killed every so often instead of being drained; calls that were in flight then, and those alone, may
end with ``TransportError`` whose ``may_have_run`` is True, and may not have run.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.soak_mesh import SoakMesh, free_ports
from blazen_certs.rotation import advance_rotation
from blazen_mesh.render import replace_file
from blazen_peer import PeerClient, TransportError
from blazen_peer.transport.lanes import LANE_MODES, LaneMode

CALL_SECS = 40.0
SLOW_EVERY, SLOW_SECS = 20, 1.0
LEAF_SECS = 5.0
PROBE_SECS = 0.5
LEAST_SHARE = 0.98  # of the rate asked for
KINDS = ("leaves issued", "mesh files in force", "token steps", "peers restarted", "analyst: supervisor replaced")
KINDS += ("root: phase none",)  # the end of a whole replacement
SEEN = ("serials of analyst seen in handshakes", "serials of intake seen with calls", "issuing CAs seen in handshakes")
LATE_KINDS = ("intake: supervisor replaced", "analyst: Envoy replaced", "intake: Envoy replaced")
LATE_SECS = 60.0  # a shorter soak need not come to these


@dataclass
class Load:
    """Calls at a constant rate, and what became of each."""

    client: PeerClient
    rate: float
    named: bool = True
    sent: int = 0
    secs: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    unknown: dict[str, tuple[float, float]] = field(default_factory=dict)  # may have run: when it was begun, and ended

    async def run(self, secs: float) -> None:
        """Begin calls for *secs*, and wait for the end of the last."""
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := begun + self.sent / self.rate) < begun + secs:
                if (ahead := due - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                self.sent += 1
                group.create_task(self._call(f"call-{self.sent}", SLOW_SECS if self.sent % SLOW_EVERY == 0 else 0))
            self.secs = max(secs, time.perf_counter() - begun)

    async def _call(self, name: str, secs: float) -> None:
        begun = time.perf_counter()
        try:
            result = await self.client.run_remote_workflow(
                *("soak", ["soak::work"], json.dumps({"id": name, "secs": secs}), CALL_SECS),
                invocation_id=name if self.named else None,
            )
        except TransportError as error:
            if error.may_have_run:
                self.unknown[name] = begun, time.perf_counter()
            self.failures[f"{type(error).__name__}: {error}"] += 1
            return
        except Exception as error:  # whatever it is, it is counted
            self.failures[f"{type(error).__name__}: {error}"] += 1
            return
        self.took_ms.append((time.perf_counter() - begun - secs) * 1000)
        self.answered[name] += result.result == name

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which *share* of the calls were answered, their own time not counted."""
        return sorted(self.took_ms)[int(len(self.took_ms) * share)] if self.took_ms else 0.0


class Changes:
    """Everything that is replaced under the load. ``done`` counts each kind."""

    def __init__(self, mesh: SoakMesh, secs: float, kill_secs: float) -> None:
        self.mesh, self.secs, self._kill_secs = mesh, secs, kill_secs
        self._next_kill = time.perf_counter() + kill_secs
        self.kills: list[tuple[float, float]] = []  # from when to when calls may have been lost by each
        self.done: Counter[str] = Counter()
        self._new_token = ""
        self.serials: dict[str, set[int]] = {"intake": set(), "analyst": set()}
        self.issuers: set[bytes] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Go on with each kind, one after another within it, until *stop* is set and what was begun is over."""
        async with asyncio.TaskGroup() as group:
            for turn, pause in (
                (self._leaves, LEAF_SECS),
                (self._policy, 3.0),
                (self._token, 2.0),
                (self._replica, 0.5),
                (self._sidecar, 3.0),
                (self._root, self.secs / 5),
                (self._look, PROBE_SECS),
            ):
                group.create_task(self._repeat(turn, pause, stop))

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

    async def _replica(self, number: int) -> None:
        begun = time.perf_counter()
        if self._kill_secs and begun >= self._next_kill:
            self._next_kill = begun + self._kill_secs
            await self.mesh.kill_peer(number % 2)
            await self.mesh.until_both_healthy()
            self.kills.append((begun, time.perf_counter()))
            self.done["peers killed"] += 1
            return
        await self.mesh.restart_peer(number % 2)
        await self.mesh.until_both_healthy()
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
        for node, seen in self.serials.items():
            if certificate := await asyncio.to_thread(self.mesh.served, node):
                seen.add(certificate.serial_number)
                issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
                self.issuers.add(issuer.key_identifier or b"")


def judge(load: Load, changes: Changes, mesh: SoakMesh) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers, and what of them is not as it must be."""
    executed = Counter(mesh.executed())
    ids = {f"call-{number}" for number in range(1, load.sent + 1)}
    in_calls = {str(entry["peer_serial"]) for entry in mesh.log("analyst-sidecar") if entry.get("log") == "call"} - {
        "None",
        "-",
    }
    numbers: dict[str, Any] = {
        "seconds": round(load.secs, 1),
        "calls": load.sent,
        "calls a second": round(load.sent / load.secs, 1),
        "answered with their own id": sum(load.answered.values()),
        "failed": sum(load.failures.values()),
        "executed once": sum(times == 1 for name, times in executed.items() if name in ids),
        "executed more than once": sum(times > 1 for times in executed.values()),
        "never executed": len(ids - set(executed)),
        "median, ms": round(load.percentile(0.5), 1),
        "99th percentile, ms": round(load.percentile(0.99), 1),
        "slowest, ms": round(load.percentile(0.999999), 1),
        **dict(sorted(changes.done.items())),
        "serials of analyst seen in handshakes": len(changes.serials["analyst"]),
        "serials of intake seen in handshakes": len(changes.serials["intake"]),
        "serials of intake seen with calls": len(in_calls),
        "issuing CAs seen in handshakes": len(changes.issuers),
    }
    excused = {
        name
        for name, (begun, ended) in load.unknown.items()
        if any(begun <= healthy and ended >= killed for killed, healthy in changes.kills)
    }
    numbers["in flight on a killed peer, may have run"] = len(excused)
    wrong = [f"{text} ({times} times)" for text, times in load.failures.items()]
    if sum(load.failures.values()) == len(excused):
        wrong.clear()
    rate, sound = load.rate * LEAST_SHARE, load.sent - len(excused)
    numbers["never executed"] = len(ids - set(executed) - excused)
    for what, least in (("answered with their own id", sound), ("executed once", sound), ("calls a second", rate)):
        if numbers[what] < least:
            wrong.append(f"{what}: {numbers[what]}, not {least:g}")
    wrong += [f"{what}: {numbers[what]}" for what in ("executed more than once", "never executed") if numbers[what]]
    for what in (
        "serials of analyst seen in handshakes",
        "serials of intake seen with calls",
        "issuing CAs seen in handshakes",
    ):
        if numbers[what] < 2:
            wrong.append(f"{what}: {numbers[what]}, so no change was seen")
    wrong += [f"{kind}: none" for kind in KINDS + (LATE_KINDS if load.secs >= LATE_SECS else ()) if not changes.done[kind]]
    return numbers, wrong


async def soak(home: Path, secs: float, rate: float, lane: LaneMode, kill_secs: float) -> tuple[dict[str, Any], list[str]]:
    """Run the whole thing in *home*; return the numbers, and what is wrong."""
    mesh = SoakMesh(home, free_ports(), lame_duck_secs=8)
    token = secrets.token_urlsafe(32)
    for node in ("intake", "analyst"):
        for name in ("token", "previous"):
            replace_file(mesh.token_file(node, name), token.encode(), 0o600)
    try:
        await mesh.start()
        await mesh.until_both_healthy()
        os.environ["BLAZEN_PEER_TOKEN_FILE"] = str(mesh.token_file("intake"))
        async with await PeerClient.connect_async("peer:analyst", peers_file=mesh.peers_file, lane=lane) as client:
            load, changes = Load(client, rate, lane == "never"), Changes(mesh, secs, kill_secs)
            stop = asyncio.Event()
            changing = asyncio.create_task(changes.run(stop))
            await load.run(secs)
            stop.set()
            await changing
        return judge(load, changes, mesh)
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
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        home = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        home.mkdir(parents=True, exist_ok=True)
        numbers, wrong = uvloop.run(soak(home, options.secs, options.rate, options.lane, options.kill_secs))
    if options.json:
        sys.stdout.write(json.dumps({"ok": not wrong, "numbers": numbers, "wrong": wrong}) + "\n")
        return bool(wrong)
    table = Table("what", "how many", title="under load, everything replaced", title_justify="left")
    table.columns[1].justify = "right"
    for what, many in numbers.items():
        table.add_row(what, f"{many:,}" if isinstance(many, int) else f"{many:,.1f}")
    console = Console()
    console.print(table)
    for line in wrong:
        console.print(f"[red]wrong:[/red] {line}")
    console.print("nothing was lost" if not wrong else f"{len(wrong)} things are wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
