"""What a step does by its context: state, exports, events sent and collected, logging."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from blazen_peer.errors import ValidationError, WorkflowError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.runtime import Context, Workflow, WorkflowBuilder, WorkflowResult
from blazen_peer.runtime import run as run_module


class Part(Event, event_type="demo::Part"):
    n: int


class Note(Event, event_type="demo::Note"):
    text: str = ""


def flow(*steps: tuple[Any, Any, Any]) -> Workflow:
    """Build a workflow of (accepts, emits, handler)."""
    builder = WorkflowBuilder("w")
    for number, (accepts, emits, handler) in enumerate(steps):
        builder.step(f"step-{number}", [accepts], emits, handler)
    return builder.build()


async def test_state_is_the_runs() -> None:
    """What one step sets another gets, in a thread as well, any object; another run of the workflow does not see it."""

    async def first(event: StartEvent, ctx: Context) -> Part:
        assert ctx.get("held") is None
        assert ctx.get("held", 7) == 7
        ctx.set("held", {event.data})
        return Part(n=1)

    def second(event: Part, ctx: Context) -> StopEvent:
        ctx.get("held").add("more")
        return StopEvent(result=sorted(ctx.get("held")))

    workflow = flow((StartEvent, None, first), (Part, None, second))
    results = await asyncio.gather(*(workflow.run(name) for name in ("a", "b")))
    assert [result.result for result in results] == [["a", "more"], ["b", "more"]]
    assert results[0].state == {}


async def test_export() -> None:
    """What is exported comes back beside the result as it was then; the rest of the state does not."""

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        words = ["a"]
        ctx.set("secret", object())
        ctx.export("words", words)
        ctx.export("none", None)
        ctx.export("words", [*words, "b"])
        words.append("later")
        assert ctx.get("words") == ["a", "b"]
        return StopEvent(result=1)

    result = await flow((StartEvent, None, one)).run(None)
    assert result.state == {"words": ["a", "b"], "none": None}
    assert result.state_json == {"words": '["a","b"]', "none": "null"}
    assert result != WorkflowResult(result.event, result.data_json)


BAD = [
    pytest.param("k", float("nan"), "the exported value 'k' is not strict JSON: NaN", id="nan"),
    pytest.param("k", 2**64, "the exported value 'k' is not strict JSON: an integer", id="too-large"),
    pytest.param("k", {"a": object()}, "the exported value 'k' is not strict JSON: a value of type 'object'", id="object"),
    pytest.param("k", "\ud800", "the exported value 'k' is not strict JSON: a lone surrogate", id="surrogate"),
    pytest.param(1, "x", "an exported key is printable text, not 1", id="key"),
    pytest.param("\ud800", "x", "an exported key is printable text", id="surrogate-key"),
]


@pytest.mark.parametrize(("key", "value", "why"), BAD)
async def test_export_refused(key: Any, value: Any, why: str) -> None:
    """An export that is not strict JSON fails the run and names the step; nothing of it is kept."""

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.export(key, value)
        return StopEvent()

    with pytest.raises(WorkflowError) as caught:
        await flow((StartEvent, None, one)).run(None)
    assert str(caught.value).startswith(f"step 'step-0' failed: {why}")
    assert caught.value.step_id == "step-0"


async def test_exports_of_a_failed_run() -> None:
    """A run that failed still tells what it had exported, to whoever holds it."""

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.export("progress", 0.5)
        raise ValueError("boom")

    run = flow((StartEvent, None, one)).start(None)
    with pytest.raises(WorkflowError, match="boom"):
        await run.wait()
    assert run.exported == {"progress": "0.5"}


async def test_send_event() -> None:
    """An event that is sent is routed at once: its step runs while the sender goes on."""
    answered = asyncio.Event()

    async def ask(event: StartEvent, ctx: Context) -> Part:
        ctx.send_event(Note(text="hello"))
        await answered.wait()
        return Part(n=1)

    async def answer(event: Note) -> None:
        answered.set()

    async def end(event: Part) -> StopEvent:
        return StopEvent(result="done")

    async with asyncio.timeout(10):
        workflow = flow((StartEvent, [Note, Part], ask), (Note, None, answer), (Part, None, end))
        assert (await workflow.run(None)).result == "done"


async def test_send_event_and_return_nothing() -> None:
    """A step that sends and returns nothing leaves the run going, from the loop and from a thread."""

    async def begin(event: StartEvent, ctx: Context) -> None:
        ctx.send_event(Part(n=1))

    def in_thread(event: Part, ctx: Context) -> None:
        for n in range(event.n, event.n + 100):
            ctx.send_event(Note(text=str(n)))

    async def gather(event: Note, ctx: Context) -> StopEvent | None:
        notes = ctx.collect(event, 100)
        return StopEvent(result=[note.text for note in notes]) if notes else None

    workflow = flow((StartEvent, [Part], begin), (Part, [Note], in_thread), (Note, None, gather))
    async with asyncio.timeout(10):
        assert (await workflow.run(None)).result == [str(n) for n in range(1, 101)]


@pytest.mark.parametrize("data", [{"n": 3}, {"n": "three"}], ids=["fits", "does-not-fit"])
async def test_send_dynamic_event(data: dict[str, Any]) -> None:
    """A dynamic event that is sent is validated into the class that the step wants."""

    async def begin(event: StartEvent, ctx: Context) -> None:
        ctx.send_event(Event.dynamic("demo::Part", data))

    async def end(event: Part) -> StopEvent:
        return StopEvent(result=event.n)

    run = flow((StartEvent, ["demo::Part"], begin), (Part, None, end)).start(None)
    if data["n"] == 3:
        assert (await run.wait()).result == 3
    else:
        with pytest.raises(WorkflowError, match="step 'step-1' cannot take demo::Part: n: Input should be"):
            await run.wait()


async def test_send_stop_event() -> None:
    """A StopEvent that is sent ends the run, and cancels its sender as any other step in flight."""
    cancelled = asyncio.Event()

    async def one(event: StartEvent, ctx: Context) -> None:
        ctx.send_event(StopEvent(result="sent"))
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.timeout(10):
        assert (await flow((StartEvent, [StopEvent], one)).run(None)).result == "sent"
        await cancelled.wait()
        while run_module._ALIVE:  # noqa: ASYNC110 - what is polled for has no event
            await asyncio.sleep(0)


async def test_send_event_nobody_takes() -> None:
    """An event that no step accepts fails the run, sent as well as returned."""

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.send_event(Note())
        await asyncio.Event().wait()
        return StopEvent()

    with pytest.raises(WorkflowError) as caught:
        await flow((StartEvent, None, one)).run(None)
    assert (str(caught.value), caught.value.step_id) == ("no handler for event type: demo::Note", "step-0")


async def test_send_event_after_the_end() -> None:
    """Whoever keeps a context beyond its run's end sends into nothing."""
    kept: list[Context] = []

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        kept.append(ctx)
        return StopEvent(result=1)

    assert (await flow((StartEvent, None, one)).run(None)).result == 1
    kept[0].send_event(Note())
    await asyncio.to_thread(kept[0].send_event, Note())
    await asyncio.sleep(0)
    assert not run_module._ALIVE


def test_send_event_after_the_loop() -> None:
    """A thread that outlives the event loop may send: nothing happens."""
    kept: list[Context] = []

    async def one(event: StartEvent, ctx: Context) -> StopEvent:
        kept.append(ctx)
        return StopEvent()

    asyncio.run(flow((StartEvent, None, one)).run(None))
    kept[0].send_event(Note())


async def test_send_what_is_no_event() -> None:
    """Only events are sent."""
    with pytest.raises(ValidationError, match="send_event takes an event, not dict"):
        Context().send_event({"a": 1})  # type: ignore[arg-type]


async def test_collect() -> None:
    """A fan-in gets its events as one list of their class, and again for the next ones; rounds do not mix."""
    rounds: list[list[int]] = []

    async def fan(event: StartEvent) -> list[Part]:
        return [Part(n=n) for n in range(9)]

    async def gather(event: Part, ctx: Context) -> StopEvent | None:
        parts = ctx.collect(event, 3)
        if parts is None:
            return None
        rounds.append([part.n for part in parts])
        return StopEvent() if len(rounds) == 3 else None

    await flow((StartEvent, None, fan), (Part, None, gather)).run(None)
    assert rounds == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_collect_apart() -> None:
    """Types, keys and steps are collected apart."""
    ctx = Context(step_id="a")
    assert ctx.collect(Part(n=1), 2) is None
    assert ctx.collect(Note(), 2) is None
    assert ctx.collect(Part(n=2), 2, key="other") is None
    assert Context(step_id="b", port=ctx._port).collect(Part(n=3), 2) is None
    assert ctx.collect(Part(n=4), 2) == [Part(n=1), Part(n=4)]
    assert ctx.collect(Part(n=5), 2, key="other") == [Part(n=2), Part(n=5)]
    assert ctx.collect(Part(n=6), 1) == [Part(n=6)]
    with pytest.raises(ValidationError, match="count is 0"):
        ctx.collect(Part(n=7), 0)


def test_collect_forgets() -> None:
    """What was returned is not kept."""
    ctx = Context()
    for n in range(1000):
        ctx.collect(Part(n=n), 10)
    assert ctx._port.memory._gathered == {}


def test_collect_from_threads() -> None:
    """Plain steps in many threads lose no event, and exactly one of each group gets the list."""
    ctx = Context()
    found: list[list[Part]] = []

    def many() -> None:
        for n in range(500):
            parts = ctx.collect(Part(n=n), 8)
            if parts is not None:
                found.append(parts)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(parts) for parts in found] == [8] * 250


async def test_logger(caplog: pytest.LogCaptureFixture) -> None:
    """A record of the context's logger has the names of the run and the step, beside what the call adds."""

    def one(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.logger.info("read %d pages", 3, extra={"pages": 3})
        return StopEvent()

    with caplog.at_level(logging.INFO, "blazen_peer.step"):
        await flow((StartEvent, None, one)).start(None, run_id="r1", invocation_id="i1").wait()
    [record] = caplog.records
    told = record.__dict__
    assert record.getMessage() == "read 3 pages"
    assert (told["run_id"], told["invocation_id"], told["step_id"], told["workflow_name"]) == ("r1", "i1", "step-0", "w")
    assert (told["pages"], told["trace_id"]) == (3, None)


def test_unit_test_of_a_step() -> None:
    """A step can be tested by a context without a run: it has a state, and what was sent can be looked at."""
    ctx = Context()
    ctx.set("a", 1)
    ctx.send_event(Note(text="x"))
    assert (ctx.get("a"), ctx.sent_events, ctx.attempt) == (1, [Note(text="x")], 1)
    assert Context().get("a") is None


def test_graph_problems() -> None:
    """A workflow whose classes say that it cannot go well is refused when it is built."""

    async def lost(event: StartEvent) -> Part:
        return Part(n=1)

    with pytest.raises(ValidationError) as caught:
        flow((StartEvent, None, lost))
    assert str(caught.value) == (
        "workflow 'w': step 'step-0' emits demo::Part, which no step accepts: add one, or do not emit it; "
        "no step that a run can reach emits blazen::StopEvent, so no run could finish: let one return StopEvent"
    )


def test_graph_warning() -> None:
    """Where names alone say it, building warns, and the warning points at the code that builds."""

    async def one(event: Event) -> Event:
        return StopEvent()

    with pytest.warns(UserWarning, match=r"^workflow 'w': step 'step-0' emits demo::Stray, which no step accepts") as caught:
        WorkflowBuilder("w").step("step-0", [START], ["demo::Stray", STOP], one).build()
    assert caught[0].filename == __file__
