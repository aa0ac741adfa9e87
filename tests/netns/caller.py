"""Calls peers again and again from one host: ``caller.py PEERS_FILE INTERVAL_SECS NODE...``, until SIGTERM.

Prints ``calling`` once it does, a line for each failure when it comes, and at the end how many calls there were, as JSON.
Nothing is repeated: each call succeeds the first time, or counts as a failure. Calls go as users' do, by lanes; alone in
the tests of both ways.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter

from blazen_peer import BlazenError, PeerClient

CALL_SECS = 20.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(peers_file: str, interval_secs: float, nodes: list[str]) -> None:
    calls: Counter[str] = Counter()
    failures: list[str] = []
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    clients = {node: await PeerClient.connect_async(f"peer:{node}", peers_file=peers_file, timeout_secs=60) for node in nodes}

    async def call(node: str) -> None:
        while not stop.is_set():
            calls[node] += 1
            try:
                result = await clients[node].run_remote_workflow(
                    "echo", ["netns::echo"], str(calls[node]), timeout_secs=CALL_SECS
                )
                if result.result != calls[node]:
                    failures.append(f"{node}: {result.result!r} is not the answer to {calls[node]}")
            except BlazenError as error:
                failures.append(f"{node}: {type(error).__name__}: {error}")
                say(f"failed {failures[-1]}")
            await asyncio.sleep(interval_secs)

    say("calling")
    await asyncio.gather(*(call(node) for node in nodes))
    for client in clients.values():
        await client.aclose()
    say(json.dumps({"calls": calls, "failures": failures}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
