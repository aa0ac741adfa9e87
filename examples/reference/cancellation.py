"""Cancelling the awaiting task severs the wait only: the peer goes on until the run ends or its time is over.

Run it against a peer with a slow step: python -m examples.reference.cancellation ADDRESS STEP_ID
"""

import asyncio
import sys

from blazen_peer import PeerClient


async def main(address: str, step_id: str) -> None:
    async with await PeerClient.connect_async(address, client_node_id="node-a") as client:
        waiting = asyncio.create_task(
            client.run_remote_workflow("analyze-pipeline", [step_id], '{"document": ""}', timeout_secs=60)
        )
        await asyncio.wait({waiting}, timeout=1)

        waiting.cancel()
        try:
            result = await waiting
            print(f"done before it was cancelled: {result.event.data_json}")
        except asyncio.CancelledError:
            print("stopped waiting; the run goes on at the peer")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
