"""The same for code that cannot await, such as a batch script. Run it: python -m examples.reference.blocking_call [ADDRESS]"""

import json
import sys

from blazen_peer import PeerClient


def main(address: str = "http://127.0.0.1:50051") -> None:
    with PeerClient.connect(address, client_node_id="node-a") as client:
        input_json = json.dumps({"document": "A long document. It has two sentences."})

        result = client.run_remote_workflow_blocking(
            workflow_name="analyze-pipeline",
            step_ids=["my_app::analyze", "my_app::summarize"],
            input_json=input_json,
            timeout_secs=60,
        )

        print(f"remote result: {result.event.data_json}")


if __name__ == "__main__":
    main(*sys.argv[1:])
