"""Workflows over several peers: remote steps, what they share with their parent, state that comes back, the catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from blazen_peer import (
    Context,
    Event,
    PeerClient,
    PeerServer,
    StartEvent,
    StopEvent,
    TransportError,
    UnknownStepError,
    ValidationError,
    Workflow,
    WorkflowBuilder,
    WorkflowError,
)
from blazen_peer.engine import Retry
from blazen_peer.runtime import Registry, WorkflowResult, local_step, parallel, remote_step
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Serve = Callable[..., Awaitable[PeerServer]]
Connect = Callable[..., Awaitable[PeerClient]]
RawCall = Callable[..., Awaitable[bytes]]


class Analyzed(Event, event_type="demo::Analyzed"):
    words: int


@pytest.fixture
def counting(registry: Registry) -> Registry:
    """Steps that count words, in the peer's registry."""

    @registry.step("count", emits=[StopEvent])
    async def count(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.export("caller", str(ctx.caller))
        return StopEvent(result={"words": len(event.data["text"].split())})

    @registry.step("broken")
    async def broken(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.export("progress", 0.5)
        raise ValueError("boom")

    return registry


async def test_remote_step(serve: Serve, connect: Connect, counting: Registry) -> None:
    """A workflow on a peer is a step, in one line."""
    client = await connect(await serve())
    workflow = Workflow("parent", [remote_step(client, "counting", ["count"])])
    assert (await workflow.run({"text": "a b c"})).result == {"words": 3}


async def test_remote_step_between_others(serve: Serve, connect: Connect, counting: Registry) -> None:
    """It takes and makes the events it is told to, and is built in by a builder too."""
    client = await connect(await serve())

    async def begin(event: StartEvent) -> Event:
        return Event.dynamic("demo::Text", {"text": event.data})

    async def end(event: Analyzed) -> StopEvent:
        return StopEvent(result=event.words)

    builder = WorkflowBuilder("w").step("begin", None, ["demo::Text"], begin)
    builder.add(remote_step(client, "counting", ["count"], step_id="there", accepts=["demo::Text"], emits=Analyzed))
    assert (await builder.step("end", None, None, end).build().run("a b c d")).result == 4


async def test_remote_failures(serve: Serve, connect: Connect, counting: Registry) -> None:
    """A remote failure is the step's: its text and its cause are kept."""
    client = await connect(await serve())
    with pytest.raises(WorkflowError) as caught:
        await Workflow("w", [remote_step(client, "there", ["broken"])]).run(None)
    assert str(caught.value) == "step 'there' failed: workflow error: step 'broken' failed: boom"
    with pytest.raises(WorkflowError) as caught:
        await Workflow("w", [remote_step(client, "there", ["nobody"])]).run(None)
    assert isinstance(caught.value.__cause__, UnknownStepError)


async def test_retry_of_a_remote_step(serve: Serve, connect: Connect, registry: Registry) -> None:
    """A remote step that failed is called again, as its retry says."""
    calls = 0

    @registry.step("flaky")
    async def flaky(event: StartEvent) -> StopEvent:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError("again")
        return StopEvent(result=calls)

    client = await connect(await serve())
    step = remote_step(client, "w", ["flaky"], retry=Retry(attempts=3, delay_secs=0, on=WorkflowError))
    assert (await Workflow("w", [step]).run(None)).result == 3


async def test_peers_in_parallel(serve: Serve, connect: Connect, counting: Registry) -> None:
    """Two peers and a workflow here at once: all results by name, or the first that succeeds."""
    clients = [await connect(await serve(node)) for node in ("node-b", "node-c")]
    here = Workflow("here", ["count"], registry=counting)
    steps = {
        "b": remote_step(clients[0], "counting", ["count"]),
        "c": remote_step(clients[1], "counting", ["count"]),
        "here": local_step(here),
    }
    result = await Workflow("all", [parallel(steps)]).run({"text": "a b"})
    assert result.result == {name: {"words": 2} for name in ("b", "c", "here")}
    race = parallel(
        [remote_step(clients[0], "w", ["broken"]), remote_step(clients[1], "counting", ["count"])], mode="first", step_id="race"
    )
    assert (await Workflow("first", [race]).run({"text": "a"})).result == {"words": 1}


async def test_lost_race_on_a_peer(serve: Serve, connect: Connect, counting: Registry) -> None:
    """A remote run that lost its race is cancelled on its peer, which had its parent's time at most."""
    begun, cancelled = asyncio.Event(), asyncio.Event()
    left: list[float | None] = []

    @counting.step("slow")
    async def slow(event: StartEvent, ctx: Context) -> StopEvent:
        left.append(ctx.time_left_secs)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return StopEvent()

    async def quick(event: StartEvent) -> StopEvent:
        await begun.wait()
        return StopEvent(result="quick")

    client = await connect(await serve())
    here = WorkflowBuilder("here").step("quick", None, None, quick).build()
    race = parallel([remote_step(client, "there", ["slow"], timeout_secs=500), local_step(here)], mode="first")
    async with asyncio.timeout(10):
        assert (await Workflow("w", [race]).run(None, timeout_secs=50)).result == "quick"
        await cancelled.wait()
    assert left[0] is not None
    assert 0 < left[0] <= 50


async def test_peer_that_is_gone(serve: Serve, connect: Connect, counting: Registry) -> None:
    """The first success does without a peer that is gone; its error is the cause where nobody else succeeds."""
    gone = await connect(server := await serve("node-c"))
    await server.drain()
    there = await connect(await serve("node-b"))
    steps = [remote_step(gone, "gone", ["count"]), remote_step(there, "there", ["count"])]
    assert (await Workflow("w", [parallel(steps, mode="first")]).run({"text": "a"})).result == {"words": 1}
    with pytest.raises(WorkflowError, match="'gone' failed: ") as caught:
        await Workflow("w", [parallel(steps)]).run({"text": "a"})
    cause = caught.value.__cause__
    assert cause is not None
    assert isinstance(cause.__cause__, TransportError)


async def test_state_comes_back(serve: Serve, connect: Connect, counting: Registry) -> None:
    """What a remote run exported is beside its result, as it is for a local one."""
    client = await connect(await serve())
    result = await client.run_remote_workflow("w", ["count"], '{"text": "a"}')
    assert result.state["caller"] == "anonymous"
    local = await Workflow("w", ["count"], registry=counting).run({"text": "a"})
    assert (local.result, local.state) == (result.result, {"caller": "anonymous"})


async def test_state_on_the_wire(serve: Serve, raw_call: RawCall, counting: Registry) -> None:
    """The response's state has each export as a JSON document, when the run failed, too."""
    server = await serve()

    async def response_to(step_id: str, document: bytes) -> SubWorkflowResponse:
        return SubWorkflowResponse.decode(await raw_call(server, SubWorkflowRequest("w", (step_id,), document).encode()))

    done = await response_to("count", b'{"text": ""}')
    assert (done.state_json, done.result_json) == ({"caller": b'"anonymous"'}, b'{"words":0}')
    failed = await response_to("broken", b"null")
    assert (failed.state_json, failed.error) == ({"progress": b"0.5"}, "workflow error: step 'broken' failed: boom")


def whole(name: str, result: Any) -> Workflow:
    """Return a workflow of steps that no registry has."""

    async def only(event: StartEvent) -> StopEvent:
        return StopEvent(result=result)

    return WorkflowBuilder(name).step("only", None, None, only).build()


async def test_catalogue(serve: Serve, connect: Connect, counting: Registry) -> None:
    """A server's own workflows are run whole by name, beside the registry's and before one of the same name."""
    counting.register_workflow(Workflow("counting", ["count"], registry=counting))
    counting.register_workflow(whole("both", "the registry's"))
    client = await connect(await serve(workflows=[whole("own", "own"), whole("both", "the server's")]))

    async def result_of(name: str, step_ids: Sequence[str] = ()) -> Any:
        return (await client.run_remote_workflow(name, step_ids, '{"text": "a"}')).result

    assert [await result_of(name) for name in ("own", "both", "counting")] == ["own", "the server's", {"words": 1}]
    with pytest.raises(UnknownStepError, match="unknown workflow `other`"):
        await result_of("other")
    with pytest.raises(UnknownStepError, match="unknown step id `only`"):
        await result_of("own", ["only"])
    told = await client.describe()
    assert [(workflow.name, list(workflow.step_ids)) for workflow in told.workflows] == [
        ("both", ["only"]),
        ("counting", ["count"]),
        ("own", ["only"]),
    ]
    assert (await Workflow("w", [remote_step(client, "own")]).run(None)).result == "own"


def test_catalogue_refused() -> None:
    """Two workflows of one name, and what is no workflow, are refused when the server is made."""
    with pytest.raises(ValidationError, match="two named 'w'"):
        PeerServer("node-b", workflows=[whole("w", 1), whole("w", 2)])
    with pytest.raises(ValidationError, match="not WorkflowBuilder"):
        PeerServer("node-b", workflows=[WorkflowBuilder("w")])  # type: ignore[list-item]


async def test_any_runner() -> None:
    """A remote step needs no more of its client than ``run_remote_workflow``."""

    class Here:
        async def run_remote_workflow(
            self,
            workflow_name: str,
            step_ids: Sequence[str],
            input_json: str,
            timeout_secs: float | None = None,
            *,
            retries: int = 0,
        ) -> WorkflowResult:
            return WorkflowResult.from_json(f'["{workflow_name}", {len(step_ids)}, {input_json}, {timeout_secs}, {retries}]')

    step = remote_step(Here(), "w", ["a", "b"], timeout_secs=3, retries=4)
    assert (await asyncio.wait_for(Workflow("p", [step]).run({"x": 1}), 5)).result == ["w", 2, {"x": 1}, 3, 4]
    with pytest.raises(ValidationError, match="step_ids is one string"):
        remote_step(Here(), "w", "a")
