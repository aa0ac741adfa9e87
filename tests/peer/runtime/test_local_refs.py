"""Session refs in local runs, which no server runs."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from blazen_peer.errors import RefNotFoundError, ValidationError, WorkflowError
from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.identity import ANONYMOUS
from blazen_peer.runtime import Context, RemoteRef, Workflow, WorkflowBuilder
from blazen_peer.runtime.context import RunInfo
from blazen_peer.runtime.local_refs import LOCAL_REFS


class Put(Event, event_type="demo::Put"):
    ref: str


def flow(handler: object) -> Workflow:
    return WorkflowBuilder("w").step("step", None, None, handler).build()  # type: ignore[arg-type]


async def there(ref: RemoteRef) -> bool:
    """Say whether a later run still finds *ref*."""

    async def look(event: StartEvent, ctx: Context) -> StopEvent:
        try:
            ctx.get_ref(ref)
        except RefNotFoundError:
            return StopEvent(result=False)
        return StopEvent(result=True)

    return bool((await flow(look).run()).result)


async def drop(ref: RemoteRef) -> bool:
    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.drop_ref(ref))

    return bool((await flow(step).run()).result)


LIFETIMES = [("context", False), ("explicit_drop", True), ("snapshot", False), ("parent_finish", False)]


@pytest.mark.parametrize(("lifetime", "stays"), LIFETIMES)
async def test_a_run(lifetime: str, stays: bool) -> None:
    """A local run's refs go with it, but for one that is to be dropped: that one the result tells, and a later run drops."""
    made: list[RemoteRef] = []

    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        made.append(ctx.put_ref(object(), type_tag="demo::T", lifetime=lifetime))
        assert ctx.get_ref(made[0]) is ctx.get_ref(str(made[0].uuid))
        return StopEvent()

    before = len(LOCAL_REFS)
    result = await flow(put).run()
    assert dict(result.remote_refs) == ({made[0].uuid: made[0]} if stays else {})
    assert await there(made[0]) is stays
    if stays:
        assert LOCAL_REFS.seconds_left(LOCAL_REFS.use(made[0].uuid, ANONYMOUS)) is None, "no caller elsewhere can die"
    assert [await drop(made[0]), await drop(made[0])] == [stays, False]
    assert len(LOCAL_REFS) == before


@pytest.mark.parametrize(("lifetime", "stays"), [("context", False), ("explicit_drop", True), ("parent_finish", True)])
async def test_a_child(lifetime: str, stays: bool) -> None:
    """In the step that started a child run its refs for the parent are there after the child; the parent's end takes them."""
    made: list[RemoteRef] = []

    async def child(event: StartEvent, ctx: Context) -> StopEvent:
        made.append(ctx.put_ref("value", type_tag="demo::T", lifetime=lifetime))
        return StopEvent()

    async def parent(event: StartEvent, ctx: Context) -> StopEvent:
        await flow(child).run()
        try:
            return StopEvent(result=ctx.get_ref(made[0]))
        except RefNotFoundError:
            return StopEvent(result="gone")

    result = await flow(parent).run()
    assert result.result == ("value" if stays else "gone")
    assert await there(made[0]) is (lifetime == "explicit_drop")
    await drop(made[0])


async def test_a_failed_run() -> None:
    """A run that fails leaves nothing, whatever its refs were to be."""
    made: list[RemoteRef] = []

    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        made.append(ctx.put_ref(b"value", type_tag="demo::T", lifetime="explicit_drop"))
        raise LookupError

    with pytest.raises(WorkflowError):
        await flow(put).run()
    assert not await there(made[0])


async def test_a_cancelled_run() -> None:
    """So does one that is cancelled."""
    made: list[RemoteRef] = []
    put_it = asyncio.Event()

    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        made.append(ctx.put_ref(b"value", type_tag="demo::T", lifetime="explicit_drop"))
        put_it.set()
        await asyncio.Event().wait()
        return StopEvent()

    running = asyncio.create_task(flow(put).run())
    async with asyncio.timeout(10):
        await put_it.wait()
    running.cancel()
    await asyncio.wait((running,))
    assert not await there(made[0])


async def test_before_a_snapshot() -> None:
    """A step that saves the state first lets go what may not last; the rest stays."""

    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        goes, stays = (ctx.put_ref(b"v", type_tag="demo::T", lifetime=lifetime) for lifetime in ("snapshot", "context"))
        assert ctx.before_snapshot() == 1
        assert ctx.before_snapshot() == 0
        assert ctx.get_ref(stays) == b"v"
        with pytest.raises(RefNotFoundError):
            ctx.get_ref(goes)
        return StopEvent()

    await flow(step).run()


async def test_a_step_that_outlives_its_run() -> None:
    """After the end of a run its steps put nothing more."""
    contexts: list[Context] = []

    async def step(event: StartEvent, ctx: Context) -> StopEvent:
        contexts.append(ctx)
        return StopEvent()

    await flow(step).run()
    with pytest.raises(ValidationError, match="the run is over"):
        contexts[0].put_ref(b"v", type_tag="demo::T")


def test_a_context_of_its_own() -> None:
    """For a unit test of a step a bare context has refs of its own."""
    ctx = Context()
    ref = ctx.put_ref("value", type_tag="demo::T", serializer=str.encode)
    assert (ctx.get_ref(ref), ctx.drop_ref(ref), ctx.drop_ref(ref)) == ("value", True, False)
    with pytest.raises(RefNotFoundError):
        Context().get_ref(ctx.put_ref(b"v", type_tag="demo::T"))
    with pytest.raises(ValidationError, match="belong to a run"):
        Context(RunInfo()).put_ref(b"v", type_tag="demo::T")


@pytest.mark.parametrize("ref", ["model", "", None, 5])
def test_no_uuid(ref: object) -> None:
    """What is no uuid is said to be none."""
    with pytest.raises(ValidationError, match="is not the uuid of a session ref"):
        Context().get_ref(ref)  # type: ignore[arg-type]


def test_every_way_to_name_a_ref() -> None:
    """A ref, its uuid, and its text are the same."""
    unknown: UUID = uuid4()
    for name in (RemoteRef(unknown, "", "demo::T", 0), unknown, str(unknown), f"urn:uuid:{unknown}"):
        with pytest.raises(RefNotFoundError, match=str(unknown)):
            Context().get_ref(name)


async def test_events_may_name_refs() -> None:
    """One step puts, the next one takes the live object by the text in the event."""

    thing = object()

    async def put(event: StartEvent, ctx: Context) -> Put:
        return Put(ref=str(ctx.put_ref(thing, type_tag="demo::T").uuid))

    async def take(event: Put, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.get_ref(event.ref) is thing)

    workflow = WorkflowBuilder("w").step("put", None, None, put).step("take", None, None, take).build()
    assert (await workflow.run()).result is True
