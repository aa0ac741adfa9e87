"""What can go wrong, told apart by class or by `kind`."""

import asyncio
import sys

from blazen_peer import (
    BlazenError,
    PeerClient,
    PeerError,
    TransportError,
    UnknownStepError,
    WorkflowError,
)


async def main(address: str = "http://127.0.0.1:50051", step_id: str = "my_app::analyze", input_json: str = "{}") -> None:
    try:
        client = await PeerClient.connect_async(address, client_node_id="node-a")
        result = await client.run_remote_workflow("analyze-pipeline", [step_id], input_json, timeout_secs=30)
        print(result.result)
    except TransportError as error:
        # Nobody answered: fall back on local execution, or retry. `may_have_run` says whether it may have run there.
        print(f"transport failure (may have run: {error.may_have_run}): {error}")
    except UnknownStepError as error:
        # The peer is out of date and lacks a step that we just deployed.
        print(f"step not registered on the peer: {error.step_id}")
    except WorkflowError as error:
        # The peer ran it, and the workflow itself failed.
        print(f"remote workflow error: {error}")
    except PeerError as error:
        # Every other failure of the call: "Encode", "EnvelopeVersion", "Unauthenticated", "PermissionDenied", ...
        print(f"peer error of kind {error.kind}: {error}")
    except BlazenError as error:
        print(f"other failure: {error}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
