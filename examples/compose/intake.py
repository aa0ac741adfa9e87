"""The application of `intake`: a parent workflow over two other nodes, each reached by the class of the data that it is given.

The document goes to `analyst`, in its own region. What leaves the region is the key terms that came back: the step `place`
declassifies them, and whoever writes such a step answers for it. A policy cannot look into data. It holds the workflow, which
declares `internal` so that it may call `gpu` at all, to the classes it says; it does not know what the document is.
"""

from __future__ import annotations

import json

from blazen_peer import Event, PeerClient, StartEvent, StopEvent, Workflow, register_workflow, step

_clients: dict[tuple[str, str], PeerClient] = {}


async def peer(name: str, data_class: str) -> PeerClient:
    """Return this process's one client of the peer *name* for data of *data_class*, made at the first call."""
    key = (name, data_class)
    if key not in _clients:
        _clients[key] = await PeerClient.connect_async(f"peer:{name}", client_node_id="intake", data_class=data_class)
    return _clients[key]


class Document(StartEvent):
    """The input: `{"document": "..."}`."""

    document: str


class Read(Event):
    """What the analyst found."""

    analysis: dict[str, object]


@step("intake::read")
async def read(event: Document) -> Read:
    """Let the analyst read the document, which is personal data."""
    analyst = await peer("analyst", "personal")
    remote = await analyst.run_remote_workflow(
        "analyze-pipeline", ["my_app::analyze", "my_app::summarize"], json.dumps({"document": event.document}), timeout_secs=60
    )
    return Read(analysis=remote.result)


@step("intake::place")
async def place(event: Read) -> StopEvent:
    """Let the accelerators in the other region embed the key terms, which are internal data."""
    gpu = await peer("gpu", "internal")
    remote = await gpu.run_remote_workflow("embed", [], json.dumps({"terms": event.analysis["key_terms"]}), timeout_secs=60)
    return StopEvent(result={**event.analysis, "embedding": remote.result["embedding"]})


register_workflow(Workflow("intake-document", [read, place], data_class="internal"))
