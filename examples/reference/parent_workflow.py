"""A remote call as one step of a parent workflow. Run it: python -m examples.reference.parent_workflow [ADDRESS]"""

import asyncio
import sys

from blazen_peer import Event, PeerClient, StopEvent, WorkflowBuilder


class RemoteAnalyzeHandler:
    """Holds the client, and forwards the start payload across the wire."""

    def __init__(self, client: PeerClient) -> None:
        self.client = client

    async def invoke(self, event: Event) -> StopEvent:
        remote = await self.client.run_remote_workflow(
            workflow_name="analyze-pipeline",
            step_ids=["my_app::analyze", "my_app::summarize"],
            input_json=event.data_json,
            timeout_secs=60,
        )
        return StopEvent(result=remote.result)


async def main(address: str = "http://127.0.0.1:50051") -> None:
    client = PeerClient.connect(address, client_node_id="node-a")

    builder = WorkflowBuilder(name="distributed-example")
    builder.step(
        name="remote_analyze",
        accepts=["blazen::StartEvent"],
        emits=["blazen::StopEvent"],
        handler=RemoteAnalyzeHandler(client),
    )
    workflow = builder.build()

    result = await workflow.run({"document": "A long document. It has two sentences."})
    print(result.event.data_json)
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
