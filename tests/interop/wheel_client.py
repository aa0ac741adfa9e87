"""The real Blazen's Python client, driven by JSON lines: run with the ``blazen`` wheel, as ``wheel_client.py ADDRESS``.

It stands alone: nothing of the project can be imported here. Each line is a list of calls to make at once on the one client
(a workflow's, or of ``deref`` or ``release`` with a uuid); the answer is the list of theirs.
"""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import json
import sys

import blazen  # type: ignore[import-not-found]


async def call(client, **fields):
    try:
        if "deref" in fields:
            return {"bytes": list(await client.deref_session_ref(fields["deref"]))}
        if "release" in fields:
            return {"released": await client.release_session_ref(fields["release"])}
        answer = await client.invoke_sub_workflow(blazen.SubWorkflowRequest(**fields))
    except blazen.PeerError as error:
        return {"failed": {"kind": type(error).__name__, "text": str(error)}}
    return {
        "result": answer.result_value(),
        "error": answer.error,
        "state": answer.state_values(),
        "refs": {uuid: [it.origin_node_id, it.type_tag, it.created_at_epoch_ms] for uuid, it in answer.remote_refs().items()},
    }


async def main(address):
    client = await blazen.BlazenPeerClient.connect(address, "wheel-client")
    print(json.dumps({"connected": True}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answers = await asyncio.gather(*(call(client, **fields) for fields in json.loads(line)))
        print(json.dumps(answers), flush=True)


asyncio.run(main(sys.argv[1]))
