"""Makes one call by a lane from one host: ``lane_caller.py PEERS_FILE NODE WAIT_SECS``.

Prints ``calling`` once the call is in flight, ``lane ended`` when its lane does, and how the call ended, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from blazen_peer import PeerClient, TransportError

CALL_SECS = 300.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def until_ended(client: PeerClient) -> None:
    lane = client._lanes_here().least()
    assert lane is not None
    while lane.ended is None:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.02)
    say(f"lane ended: {lane.ended}")


async def main(peers_file: str, node: str, wait_secs: float) -> None:
    async with await PeerClient.connect_async(f"peer:{node}", peers_file=peers_file, timeout_secs=60, lane="always") as client:
        assert (await client.run_remote_workflow("echo", ["netns::echo"], "1", 20)).result == 1
        document = json.dumps({"wait_secs": wait_secs})
        call = asyncio.create_task(client.run_remote_workflow("echo", ["netns::echo"], document, CALL_SECS))
        while not client._lanes_here().least().in_flight:  # noqa: ASYNC110 - nor has that
            await asyncio.sleep(0)
        watching = asyncio.create_task(until_ended(client))
        assert (await client.run_remote_workflow("echo", ["netns::echo"], "2", 20)).result == 2  # the first was written before
        say("calling")
        try:
            say(json.dumps({"result": (await call).result}))
        except TransportError as error:
            say(json.dumps({"failed": str(error), "may_have_run": error.may_have_run}))
        watching.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
