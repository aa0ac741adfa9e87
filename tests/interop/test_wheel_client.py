"""The real Blazen's Python binding as a client of our server: what the bindings of other languages do too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120, func_only=True)]


def call(steps: list[str], document: Any = None, workflow: str = "w", timeout_secs: int | None = None) -> dict[str, Any]:
    """Return one call, as the script that holds the binding wants it; its input can only be an object."""
    return {"workflow_name": workflow, "step_ids": steps, "input": document or {}, "timeout_secs": timeout_secs}


def answered(result: Any = None, error: str | None = None) -> dict[str, Any]:
    """Return what the binding shows of a run."""
    return {"result": result, "error": error, "state": {}, "refs": {}}


def refused(code: str, message: str) -> dict[str, Any]:
    """Return what the binding shows of any refusal: one kind, and a text."""
    return {"failed": {"kind": "PeerException", "text": f"tonic transport error: code: '{code}', message: \"{message}\""}}


NOT_FOUND = "Some requested entity was not found"


@pytest.mark.parametrize(
    ("sent", "expected", "executed"),
    [
        pytest.param(
            call(["interop::echo"], {"a": [1, 2.5, None, "größer 😀"]}),
            answered({"a": [1, 2.5, None, "größer 😀"]}),
            {"interop::echo": 1},
            id="result",
        ),
        pytest.param(
            call(["interop::analyze", "interop::summarize"], {"document": "a b c"}, timeout_secs=10),
            answered({"words": 3}),
            {"interop::analyze": 1, "interop::summarize": 1},
            id="two-steps",
        ),
        pytest.param(
            call([], {"document": "a b"}, "analyze-pipeline"),
            answered({"words": 2}),
            {"interop::analyze": 1, "interop::summarize": 1},
            id="empty-list",
        ),
        pytest.param(call(["interop::null"]), answered(None), {"interop::null": 1}, id="null-result"),
        pytest.param(
            call(["interop::fail"]),
            answered(error="workflow error: step 'interop::fail' failed: {}"),
            {"interop::fail": 1},
            id="workflow-error",
        ),
        pytest.param(
            call(["interop::hold"], timeout_secs=1),
            answered(error="workflow timed out after 1s"),
            {"interop::hold": 1},
            id="timeout",
        ),
        pytest.param(call(["interop::nope"]), refused(NOT_FOUND, "unknown step id `interop::nope`"), {}, id="unknown-step"),
        pytest.param(call([], workflow="nope"), refused(NOT_FOUND, "unknown workflow `nope`"), {}, id="unknown-workflow"),
    ],
)
async def test_answer(wheel_client: Any, wheel_peer: Any, sent: Any, expected: Any, executed: Any) -> None:
    """Each outcome is what its users know from a Rust peer, after so many executions."""
    binding = await wheel_client(wheel_peer.address)
    assert await binding.ask([sent]) == [expected]
    assert wheel_peer.begun == executed


async def test_large(wheel_client: Any, plain: Any) -> None:
    """An input and a result just under 4 MiB pass; of a larger result the binding has an error, though the run was done."""
    binding = await wheel_client(plain.address)
    document = {"text": "x" * (4 * 1024 * 1024 - 100)}
    assert await binding.ask([call(["interop::echo"], document)]) == [answered(document)]
    [answer] = await binding.ask([call(["interop::echo"], {"text": "x" * 5_000_000})])
    assert "the limit is: 4194304 bytes" in answer["failed"]["text"]
    assert plain.begun == {"interop::echo": 2}


async def test_one_call_at_a_time(wheel_client: Any, plain: Any) -> None:
    """Calls made at once on one client go one after another: two that end after a second each take two."""
    binding = await wheel_client(plain.address)
    began = asyncio.get_running_loop().time()
    hold = call(["interop::hold"], timeout_secs=1)
    assert await binding.ask([hold, hold]) == [answered(error="workflow timed out after 1s")] * 2
    assert asyncio.get_running_loop().time() - began >= 2
    assert plain.begun == {"interop::hold": 2}


async def test_refs(wheel_client: Any, wheel_peer: Any) -> None:
    """A run's refs are listed, dereferenced to the bytes, and released once; then there is nothing by that name."""
    binding = await wheel_client(wheel_peer.address)
    [answer] = await binding.ask([call(["interop::keep"], {"text": "größer"})])
    [(uuid, (origin, tag, _))] = answer["refs"].items()
    assert (answer["result"], origin, tag) == (uuid, "analyst", "interop::Text")
    assert await binding.ask([{"deref": uuid}]) == [{"bytes": list("größer".encode())}]
    assert await binding.ask([{"release": uuid}]) == [{"released": True}]
    assert await binding.ask([{"release": uuid}]) == [{"released": False}]
    assert await binding.ask([{"deref": uuid}]) == [refused(NOT_FOUND, f"session ref {uuid} not found")]
