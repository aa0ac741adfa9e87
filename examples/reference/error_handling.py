"""What can go wrong, told apart by class.

Run it: python -m examples.reference.error_handling [ADDRESS [STEP_ID [INPUT_JSON]]]
"""

import asyncio
import sys

from blazen_peer import BlazenError, PeerClient, PeerError, TransportError, UnknownStepError, WorkflowError


async def main(address: str = "http://127.0.0.1:50051", step_id: str = "my_app::analyze", input_json: str = "{}") -> None:
    try:
        async with await PeerClient.connect_async(address, client_node_id="node-a") as client:
            result = await client.run_remote_workflow(
                workflow_name="analyze-pipeline",
                step_ids=[step_id],
                input_json=input_json,
                timeout_secs=30,
            )
            print(f"remote result: {result.event.data_json}")
    except TransportError as error:
        # Nobody answered: fall back to local execution or retry. `may_have_run` says whether that would repeat it.
        print(f"transport failure (may have run: {error.may_have_run}): {error}")
    except UnknownStepError as error:
        # The peer is out of date and missing a step we just deployed.
        print(f"step not registered on peer: {error.step_id}")
    except WorkflowError as error:
        # The peer ran it, and the workflow itself failed.
        print(f"remote workflow error: {error}")
    except PeerError as error:
        # Any other failure of the call: "Encode", "EnvelopeVersion", "Unauthenticated", "PermissionDenied", "Overloaded" ...
        print(f"peer error of kind {error.kind}: {error}")
    except BlazenError as error:
        # Our own arguments were wrong, and nothing was sent.
        print(f"other failure: {error}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
