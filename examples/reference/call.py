"""Run steps on a peer and await the result. Run it: python -m examples.reference.call [ADDRESS]"""

import asyncio
import json
import sys

from blazen_peer import PeerClient


async def main(address: str = "http://127.0.0.1:50051") -> None:
    async with await PeerClient.connect_async(address, client_node_id="node-a") as client:
        input_json = json.dumps({"document": "A long document. It has two sentences."})

        result = await client.run_remote_workflow(
            workflow_name="analyze-pipeline",
            step_ids=["my_app::analyze", "my_app::summarize"],
            input_json=input_json,
            timeout_secs=60,
        )

        print(f"remote result: {result.event.data_json}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
