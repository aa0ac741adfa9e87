"""Results and session refs are data too: what a run left is given through a port at least as strict, and else is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blazen_peer import (
    Context,
    InvocationNotFoundError,
    PeerClient,
    PermissionDeniedError,
    RefNotFoundError,
    RemoteRef,
    StartEvent,
    StopEvent,
    Workflow,
)
from blazen_peer.transport.proto import control_pb2
from tests.peer.policy.guarded import Guarded, flow, policy_of

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Guard = Callable[..., Awaitable[Guarded]]
Refusals = Callable[[], list[str]]

POLICY = policy_of(
    flow("intake", "analyst", ["put", "child", "peek"], "personal", "internal"),
    flow("intake", "analyst", ["publish"], "public"),
)


def workflows(peer: Guarded) -> None:
    @peer.registry.step("puts")
    async def puts(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.emit(StartEvent.dynamic("demo::Half", {}))
        ctx.put_ref(b"value", type_tag="demo::Value", lifetime=event.data)
        return StopEvent(result="done")

    @peer.registry.step("peeks")
    async def peeks(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.get_ref(event.data).decode())

    inner = Workflow("inner", ["puts"], registry=peer.registry, data_class="personal")

    @peer.registry.step("delegates")
    async def delegates(event: StartEvent, ctx: Context) -> StopEvent:
        result = await inner.run(event.data)
        return StopEvent(result=[result.result, ctx.data_class])

    peer.registry.register_workflow(Workflow("put", ["puts"], registry=peer.registry, data_class="internal"))
    peer.registry.register_workflow(Workflow("peek", ["peeks"], registry=peer.registry, data_class="internal"))
    peer.registry.register_workflow(Workflow("child", ["delegates"], registry=peer.registry, data_class="internal"))


@pytest.fixture
async def peer(guarded: Guard) -> Guarded:
    return await guarded(POLICY, workflows)


async def put(client: PeerClient, lifetime: str = "context", **options: Any) -> RemoteRef:
    result = await client.run_remote_workflow("put", [], f'"{lifetime}"', **options)
    [ref] = result.remote_refs.values()
    return ref


async def uuids(client: PeerClient) -> list[Any]:
    return [held.ref.uuid for held in await client.list_refs()]


async def test_as_strict(peer: Guarded) -> None:
    """What a run left goes to a port of the same class, and to a stricter one."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    strict, lax = await put(personal, invocation_id="strict"), await put(internal, invocation_id="lax")
    assert await personal.deref(strict) == await personal.deref(lax) == await internal.deref(lax) == b"value"
    assert await uuids(personal) == [strict.uuid, lax.uuid]
    assert [event.event_type async for event in personal.attach("lax")] == ["demo::Half", "blazen::StopEvent"]
    assert (await personal.cancel("lax")).outcome == "already finished"
    assert await personal.release(lax) is True


async def test_laxer(peer: Guarded, refusals: Refusals) -> None:
    """Through a laxer port neither the answer nor a ref of it is there; the log has a line of each that was asked for."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    ref = await put(personal, invocation_id="one")
    with pytest.raises(RefNotFoundError) as there:
        await internal.deref(ref)
    with pytest.raises(RefNotFoundError):
        [chunk async for chunk in internal.deref_chunks(ref)]
    assert await internal.release(ref) is False
    with pytest.raises(InvocationNotFoundError) as known:
        [event async for event in internal.attach("one")]
    with pytest.raises(InvocationNotFoundError):
        await internal.cancel("one")
    assert len(lines := refusals()) == 5
    assert all("with data class 'internal', workflow 'put'" in line and "personal" in line for line in lines)
    assert f"session ref {ref.uuid} of a run with personal data" in lines[0]
    assert await uuids(internal) == []
    assert refusals() == []
    assert str(there.value) == f"session ref {ref.uuid} not found"
    assert str(known.value) == "no invocation one of this caller's is known here"
    assert await personal.deref(ref) == b"value"


async def test_by_blazens_own_calls(peer: Guarded) -> None:
    """The two calls of Blazen's own clients about refs are under the same rule."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    ref = await put(personal)
    internal._traits = personal._traits = type(personal._traits)()  # as from a peer that tells nothing
    with pytest.raises(RefNotFoundError):
        await internal.deref(ref)
    assert await personal.deref(ref) == b"value"


async def test_a_class_of_no_flow_of_the_workflow(peer: Guarded) -> None:
    """A stamp of another flow opens the methods, and nothing of this workflow's."""
    personal, public = await peer.client("intake", "personal"), await peer.client("intake", "public")
    ref = await put(personal)
    with pytest.raises(RefNotFoundError):
        await public.deref(ref)
    assert await uuids(public) == []


async def test_asking_does_not_renew(guarded: Guard) -> None:
    """A laxer port cannot keep a ref alive, nor end it."""
    peer = await guarded(POLICY, workflows)
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    ref = await put(personal)
    [before] = await personal.list_refs()
    with pytest.raises(RefNotFoundError):
        await internal.deref(ref)
    [after] = await personal.list_refs()
    assert before.lease_left_secs is not None
    assert after.lease_left_secs is not None
    assert after.lease_left_secs <= before.lease_left_secs


async def test_parents_end(peer: Guarded) -> None:
    """The end of a parent run, told through a laxer port, ends nothing of a stricter run."""
    personal, internal = await peer.port("intake", "personal"), await peer.port("intake", "internal")
    parent = (("blazen-parent-run-id", "the-parent"),)
    personal.extra = parent
    client = await personal.connect(lane="never")  # the metadata are of a call on its own
    ref = await put(client, "parent_finish")
    lax = await internal.connect()
    for told, left in ((lax, [ref.uuid]), (client, [])):
        request = control_pb2.ParentEndedRequest(parent_run_id="the-parent")
        await told._answer(told._endpoint().parent_ended(request, metadata=told._pairs(None), timeout=10))
        assert await uuids(client) == left


async def test_inside_a_run(peer: Guarded) -> None:
    """A run gets the value of a ref of a run whose data is as lax as its own, and none of a stricter one's."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    strict, lax = await put(personal), await put(internal)

    async def peek(client: PeerClient, ref: RemoteRef) -> Any:
        return (await client.run_remote_workflow("peek", [], f'"{ref.uuid}"')).result

    assert await peek(personal, strict) == await peek(personal, lax) == await peek(internal, lax) == "value"
    with pytest.raises(Exception, match=f"session ref {strict.uuid} not found"):
        await peek(internal, strict)


async def test_a_stricter_child_here(peer: Guarded) -> None:
    """A local child that declares a stricter class leaves refs of that class, which a laxer port does not see."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    assert (await internal.run_remote_workflow("child", [], '"explicit_drop"')).result == ["done", "internal"]
    assert await uuids(internal) == []
    [held] = await personal.list_refs()
    assert await personal.deref(held.ref) == b"value"


async def test_the_policy_forbids_the_pair(guarded: Guard, tmp_path: Any, refusals: Refusals) -> None:
    """Once no flow is left between the two, refs and answers are refused like any call."""
    file = tmp_path / "policy.json"
    file.write_text(POLICY.to_json())
    peer = await guarded(file, workflows)
    client = await peer.client("intake", "personal")
    ref = await put(client, invocation_id="one")
    file.write_text(policy_of(flow("audit", "analyst", ["put"], "personal")).to_json())
    for call in (client.deref(ref), client.release(ref), client.list_refs(), client.cancel("one"), client.describe()):
        with pytest.raises(PermissionDeniedError):
            await call
    with pytest.raises(PermissionDeniedError):
        [event async for event in client.attach("one")]
    assert len(refusals()) in (6, 7)  # a frame that is refused at the gate is tried once more, on a lane of its own


async def test_a_workflow_taken_out(guarded: Guard, tmp_path: Any) -> None:
    """Once no flow names the workflow, what its runs left is not there any more; when one does again, it is."""
    file = tmp_path / "policy.json"
    file.write_text(POLICY.to_json())
    peer = await guarded(file, workflows)
    client = await peer.client("intake", "personal")
    ref = await put(client, invocation_id="one")
    file.write_text(policy_of(flow("intake", "analyst", ["peek"], "personal")).to_json())
    with pytest.raises(RefNotFoundError):
        await client.deref(ref)
    with pytest.raises(InvocationNotFoundError):
        await client.cancel("one")
    file.write_text(POLICY.to_json())
    assert await client.deref(ref) == b"value"
