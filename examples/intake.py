"""The application of the `intake` peer: its one step hands the document to `analyst`, through this node's own sidecar.

The egress address is the application's business, not the document's: it comes from `ANALYST_ADDRESS`.
"""

from __future__ import annotations

import os

from blazen_peer import PeerClient, StartEvent, StopEvent, Workflow, register_workflow, step

_clients: dict[str, PeerClient] = {}


async def analyst() -> PeerClient:
    """Return this process's one connection to `analyst`, made at the first call."""
    address = os.environ.get("ANALYST_ADDRESS", "http://127.0.0.1:16001")
    if address not in _clients:
        _clients[address] = await PeerClient.connect_async(address, client_node_id="intake")
    return _clients[address]


@step("intake::delegate")
async def delegate(event: StartEvent) -> StopEvent:
    """Run `analyze-pipeline` where the document may be read, and return its result."""
    client = await analyst()
    remote = await client.run_remote_workflow(
        "analyze-pipeline", ["my_app::analyze", "my_app::summarize"], event.data_json, timeout_secs=60
    )
    return StopEvent(result=remote.result)


register_workflow(Workflow("intake-document", [delegate]))
