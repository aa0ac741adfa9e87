"""Cancelling the awaiting task severs the wait only: the peer goes on until the run ends or its timeout passes."""

import asyncio
import sys

from blazen_peer import PeerClient


async def main(address: str = "http://127.0.0.1:50051", step_id: str = "my_app::analyze") -> None:
    async with await PeerClient.connect_async(address, client_node_id="node-a") as client:
        waiting = asyncio.create_task(
            client.run_remote_workflow("analyze-pipeline", [step_id], '{"document": ""}', timeout_secs=60)
        )
        await asyncio.sleep(0.1)
        waiting.cancel()
        try:
            await waiting
        except asyncio.CancelledError:
            print("stopped waiting; the run goes on")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
