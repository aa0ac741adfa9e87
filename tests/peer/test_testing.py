"""``blazen_peer.testing``: each of its tools does what it says, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from blazen_peer import (
    Context,
    Event,
    InvocationConflictError,
    PeerClient,
    Retry,
    ServerSettings,
    StartEvent,
    StopEvent,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    ValidationError,
    Workflow,
    WorkflowError,
    isolated_registry,
    step,
    testing,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.testing import Peers, Recorder, peers, virtual_time

Connect = Callable[..., Awaitable[PeerClient]]

AT_ONCE = ServerSettings(lame_duck_secs=0, drain_secs=0)  # for blocks that leave a run behind


class Halves(Event, event_type="my_app::Halves"):
    number: int


@pytest.fixture
def registry(registry: Registry) -> Registry:
    """Steps: "echo"; "waits" for ever; "split" into two events for "in-a-thread", a plain function, which ends the run."""

    @registry.step("echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        await asyncio.Event().wait()
        raise AssertionError

    @registry.step("split")
    async def split(event: StartEvent) -> list[Halves]:
        return [Halves(number=1), Halves(number=2)]

    @registry.step("in-a-thread")
    def in_a_thread(event: Halves, ctx: Context) -> StopEvent | None:
        return StopEvent(result=str(ctx.caller)) if event.number == 2 else None

    return registry


async def echo(client: PeerClient, number: int = 1) -> Any:
    return (await client.run_remote_workflow("w", ["echo"], str(number), 20)).result


async def lost(client: PeerClient) -> TransportError:
    """Make a call that ends without an answer; return how."""
    with pytest.raises(TransportError) as caught:
        await echo(client)
    return caught.value


async def refused(client: PeerClient) -> bool:
    """Ask where nobody is; return whether that cannot have been heard."""
    with pytest.raises(TransportError) as caught:
        await client.describe()
    return not caught.value.may_have_run


# --- peers


async def test_peers(registry: Registry) -> None:
    """A server and a client that may call it; a caller without the token, or with another, may not."""
    async with peers(registry=registry) as pair:
        assert await echo(pair.client) == 1
        assert (pair.server.node_id, pair.client.node_id) == ("node-b", "node-a")
        assert pair.server.address.startswith("unix:")
        for token in (None, "x" * 43):
            stranger = await pair.connect("node-c", token=token)
            with pytest.raises(UnauthenticatedError):
                await echo(stranger)
        assert pair.recorder.count("echo") == 1


async def test_peers_have_tokens_of_their_own(registry: Registry) -> None:
    """No two blocks share a token, and a block without one is open to every local process."""
    async with peers(registry=registry) as one, peers(registry=registry, with_token=False) as open_one:
        assert one.token is not None
        assert open_one.token is None
        async with await PeerClient.connect_async(open_one.link.address, "node-z") as client:
            assert await echo(client) == 1
        async with peers(registry=registry) as other:
            assert one.token != other.token


async def test_which_steps() -> None:
    """Functions and ids of the process-wide registry are served, and nothing else of it; a workflow by its name."""
    with isolated_registry():

        @step("served")
        async def served(event: StartEvent) -> StopEvent:
            return StopEvent(result="served")

        @step("also")
        async def also(event: StartEvent) -> StopEvent:
            return StopEvent(result="also")

        @step("not")
        async def other(event: StartEvent) -> StopEvent:
            return StopEvent()

        async with peers([served, "also"], workflows=[Workflow("whole", [served])]) as pair:
            for step_id in ("served", "also"):
                assert (await pair.client.run_remote_workflow("w", [step_id], "null")).result == step_id
            with pytest.raises(UnknownStepError):
                await pair.client.run_remote_workflow("w", ["not"], "null")
            assert (await pair.client.run_remote_workflow("whole", [], "null")).result == "served"
            assert pair.recorder.count("served") == 2
        with pytest.raises(UnknownStepError):
            await peers(["nowhere"]).__aenter__()
        with pytest.raises(ValidationError, match="is not registered"):
            await peers([test_which_steps]).__aenter__()


async def test_leaving_by_an_error(registry: Registry) -> None:
    """An error in the block comes out as it is, without waiting for the runs, which are cancelled."""
    cancelled = asyncio.Event()

    @registry.step("notices")
    async def notices(event: StartEvent) -> StopEvent:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    calls: list[asyncio.Task[Any]] = []

    async def broken() -> None:
        async with peers(registry=registry, settings=ServerSettings(lame_duck_secs=60, drain_secs=60)) as pair:
            calls.append(asyncio.create_task(pair.client.run_remote_workflow("w", ["notices"], "null")))
            await pair.recorder.wait_for("notices")
            raise KeyError

    async with asyncio.timeout(10):
        with pytest.raises(KeyError):
            await broken()
        assert cancelled.is_set()
        with pytest.raises(TransportError):
            await calls[0]


# --- the recorder


async def test_recorder(registry: Registry) -> None:
    """Each execution is there with what it was called with, for whom; steps in threads as well."""
    async with peers(registry=registry) as pair:
        other = await pair.connect("node-c")
        for client in (pair.client, other):
            result = await client.run_remote_workflow("pipeline", ["split", "in-a-thread"], "7")
            assert result.result == f"claimed:{client.node_id}"
        await pair.recorder.wait_for("in-a-thread", 4)
        first, second = pair.recorder.of("split")
        assert [str(first.caller), str(second.caller)] == ["claimed:node-a", "claimed:node-c"]
        assert (first.event.data, first.workflow_name, first.node_id) == (7, "pipeline", "node-b")
        assert first.run_id != second.run_id
        assert first.invocation_id
        threads = [(e.event.data["number"], e.run_id) for e in pair.recorder.of("in-a-thread")]
        assert sorted(threads) == sorted((number, run.run_id) for run in (first, second) for number in (1, 2))
        assert len(pair.recorder.executions) == 6


async def test_recorder_of_local_runs(registry: Registry) -> None:
    """A local workflow is recorded by way of a watched registry; the registry itself is as it was; later steps count too."""
    recorder = Recorder()
    watched = recorder.watch(registry)

    @watched.step("late")
    async def late(event: StartEvent) -> StopEvent:
        return StopEvent(result="late")

    assert (await Workflow("w", [late], registry=watched).run()).result == "late"
    assert (await Workflow("w", [late], registry=registry).run()).result == "late"
    assert (await Workflow.from_step_ids("w", ["echo"], watched).run(3)).result == 3
    assert (recorder.count("late"), recorder.count("echo")) == (1, 1)
    assert str(recorder.of("late")[0].caller) == "anonymous"
    assert [item.id for item in watched.steps()] == [item.id for item in registry.steps()]
    assert watched.unregister_step("late")
    with pytest.raises(UnknownStepError):
        registry.resolve(["late"])
    with watched.isolated():
        assert registry.steps() == ()


async def test_recorder_counts_retries(registry: Registry) -> None:
    """Each try of a step that is tried again is an execution."""

    @registry.step("at-last", retry=Retry(attempts=3, delay_secs=60, max_delay_secs=600))
    async def at_last(event: StartEvent) -> StopEvent:
        if pair.recorder.count("at-last") < 3:
            raise ConnectionError
        return StopEvent(result="done")

    async with peers(registry=registry) as pair, virtual_time() as clock:
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["at-last"], "null", 3000))
        await pair.recorder.wait_for("at-last")
        await clock.advance(1000)
        assert (await call).result == "done"
    assert pair.recorder.count("at-last") == 3


async def test_recorder_waits(registry: Registry) -> None:
    """Waiting ends when the execution begins, and by an error that says how often there was one."""
    async with peers(registry=registry, settings=AT_ONCE) as pair:
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["waits"], "null", 20))
        await pair.recorder.wait_for("waits")
        assert not call.done()
        with pytest.raises(TimeoutError, match=r"step 'waits' was executed 1 times within 0\.05 s, not 2"):
            await pair.recorder.wait_for("waits", 2, timeout_secs=0.05)
        call.cancel()


async def test_recorder_waits_in_real_time(registry: Registry) -> None:
    """A wait for what never comes ends in virtual time too, where nothing else does."""
    async with virtual_time():
        with pytest.raises(TimeoutError):
            await Recorder().wait_for("never", timeout_secs=0.05)


# --- the link


FAULTS = [
    pytest.param(lambda pair: pair.link.refuse(), 0, False, id="refuse"),
    pytest.param(lambda pair: pair.link.drop_before_run(), 0, True, id="before"),
    pytest.param(lambda pair: pair.link.drop_after_run(), 1, True, id="after"),
]


@pytest.mark.parametrize(("ask", "executed", "may_have_run"), FAULTS)
async def test_faults(registry: Registry, ask: Callable[[Peers], None], executed: int, may_have_run: bool) -> None:
    """A call that is refused or lost before the run runs nothing, one lost after it ran once; the next call passes."""
    async with peers(registry=registry) as pair:
        ask(pair)
        error = await lost(pair.client)
        assert error.may_have_run is may_have_run
        assert pair.recorder.count("echo") == executed
        assert await echo(pair.client, 2) == 2
        assert pair.recorder.count("echo") == executed + 1
        assert pair.link.calls() == 2


@pytest.mark.parametrize("ask", [fault.values[0] for fault in FAULTS], ids=[str(fault.id) for fault in FAULTS])
async def test_faults_and_repeats(registry: Registry, ask: Callable[[Peers], None]) -> None:
    """A caller that repeats gets its answer whatever was lost, and the step was executed once."""
    async with peers(registry=registry) as pair:
        ask(pair)
        assert (await pair.client.run_remote_workflow("w", ["echo"], "5", 20, retries=2)).result == 5
        assert (pair.recorder.count("echo"), pair.link.calls()) == (1, 2)


async def test_faults_in_turn(registry: Registry) -> None:
    """Faults are used up in the order they were asked for, each as often as it was; other methods pass."""
    async with peers(registry=registry) as pair:
        pair.link.drop_before_run(2)
        pair.link.refuse()
        pair.link.refuse(method="Describe")
        assert [(await lost(pair.client)).may_have_run for _ in range(3)] == [True, True, False]
        assert await echo(pair.client) == 1
        with pytest.raises(TransportError):
            await pair.client.describe()
        assert (await pair.client.describe()).node_id == "node-b"
        assert (pair.link.calls(), pair.link.calls("Describe"), pair.link.calls("Check")) == (4, 2, 1)


async def test_a_refusal_is_lost_too(registry: Registry) -> None:
    """What is dropped after the run may be a refusal: the caller cannot know."""
    async with peers(registry=registry) as pair:
        pair.link.drop_after_run()
        with pytest.raises(TransportError) as caught:
            await pair.client.run_remote_workflow("w", ["nowhere"], "null")
        assert caught.value.may_have_run is True
        with pytest.raises(ValidationError, match="times is 0"):
            pair.link.refuse(0)


async def test_delay(registry: Registry) -> None:
    """A delayed call is answered that much later, by the loop's time: at once in virtual time; others do not wait for it."""
    async with peers(registry=registry) as pair, virtual_time() as clock:
        pair.link.delay(60)
        slow = asyncio.create_task(echo(pair.client, 1))
        while pair.link.calls() == 0:
            await asyncio.to_thread(time.sleep, 0.001)
        assert await echo(pair.client, 2) == 2
        await clock.advance(59.9)
        assert pair.recorder.count("echo") == 1
        await clock.advance(0.1)
        assert await slow == 1


async def test_a_stream_broken_midway(registry: Registry) -> None:
    """A stream breaks after as many answers as asked for."""
    seen: list[bytes] = []

    async def watch(channel: grpc.aio.Channel) -> None:
        async for message in channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=20):
            seen.append(message)  # noqa: PERF401 - one by one, as they come

    async with peers(registry=registry) as pair, grpc.aio.insecure_channel(pair.link.address) as channel, asyncio.timeout(15):
        pair.link.drop_midway(1, method="Watch")
        watching = asyncio.create_task(watch(channel))
        while not seen:
            await asyncio.to_thread(time.sleep, 0.001)
        drained = asyncio.create_task(pair.server.drain())  # so that there is a second answer
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watching
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(seen) == 1
        await drained


async def test_a_stream_that_goes_on(registry: Registry) -> None:
    """A stream of our client that breaks midway, by the link or by its connection, goes on without a gap when it may."""
    go = asyncio.Event()

    @registry.step("counts")
    async def counts(event: StartEvent, ctx: Context) -> StopEvent:
        for number in range(1, 4):
            ctx.emit(Halves(number=number))
        await go.wait()
        ctx.emit(Halves(number=4))
        return StopEvent(result="done")

    async with peers(registry=registry) as pair, asyncio.timeout(20):
        pair.link.drop_midway(2, method="StreamSubWorkflowEvents")
        seen: list[Any] = []
        async for event in pair.client.stream_remote_workflow("w", ["counts"], "null", 20, retries=3):
            seen.append(event.data)
            if len(seen) == 3:
                await pair.break_connections()
                go.set()
        assert seen == [*({"number": number} for number in range(1, 5)), "done"]
        assert pair.recorder.count("counts") == 1


async def test_a_stream_lost_whole(registry: Registry) -> None:
    """Of a stream that is dropped after its run nothing arrives, and it ran."""
    async with peers(registry=registry) as pair, asyncio.timeout(10):
        pair.link.drop_after_run(method="StreamSubWorkflowEvents")
        with pytest.raises(TransportError) as caught:
            await anext(aiter(pair.client.stream_remote_workflow("w", ["echo"], "7", 8)))
        assert caught.value.may_have_run is True
        assert pair.recorder.count("echo") == 1


async def test_down(registry: Registry) -> None:
    """While the link is down nothing can be reached; once it is up again the stored answer arrives with the next connection."""
    go = asyncio.Event()

    @registry.step("holds")
    async def holds(event: StartEvent) -> StopEvent:
        await go.wait()
        return StopEvent(result=event.data)

    async with peers(registry=registry) as pair, asyncio.timeout(20):
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["holds"], "7", 30, retries=8))
        await pair.recorder.wait_for("holds")
        await pair.link.down()
        await pair.link.down()
        while (await lost(pair.client)).may_have_run:
            pass  # the client has not noticed yet
        go.set()
        await pair.link.up()
        await pair.link.up()
        assert (await call).result == 7
        assert pair.recorder.count("holds") == 1
        assert pair.link.connections == 2


async def test_down_by_a_lane(registry: Registry) -> None:
    """A client that uses lanes takes its calls up by itself once the link is up again: a link that is down is no peer that is
    gone."""
    go = asyncio.Event()

    @registry.step("holds")
    async def holds(event: StartEvent) -> StopEvent:
        await go.wait()
        return StopEvent(result=event.data)

    async with peers(registry=registry) as pair, asyncio.timeout(20):
        client = await pair.connect("node-c", lane="always")
        call = asyncio.create_task(client.run_remote_workflow("w", ["holds"], "7", 30))
        await pair.recorder.wait_for("holds")
        await pair.link.down()
        while not await refused(client):  # it has not noticed yet
            pass
        assert not call.done()
        await pair.link.up()
        go.set()
        assert (await call).result == 7
        assert pair.recorder.count("holds") == 1


async def test_refusals_pass(registry: Registry) -> None:
    """What the server itself answers, errors with their fields and a result, comes through the link as it was."""
    async with peers(registry=registry) as pair:
        with pytest.raises(UnknownStepError) as caught:
            await pair.client.run_remote_workflow("w", ["nowhere"], "null")
        assert caught.value.step_id == "nowhere"
        async with await PeerClient.connect_async(pair.server.address, "node-d", token=pair.token) as straight:
            assert straight._traits == pair.client._traits
            assert await echo(straight) == 1
        assert pair.link.calls() == 1


async def test_a_call_given_up_through_the_link(registry: Registry, severed: asyncio.Event) -> None:
    """A caller that gives its call up is noticed by the server, as without a link; the run goes on."""
    async with peers(registry=registry, settings=AT_ONCE) as pair, asyncio.timeout(10):
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["waits"], "null", 20))
        await pair.recorder.wait_for("waits")
        call.cancel()
        await severed.wait()
        assert pair.server._invocations.in_progress == 1


# --- broken connections and dead peers


async def test_broken_connections(registry: Registry) -> None:
    """Calls in flight end with TransportError, their runs go on, and the client can call again at once."""
    go, finished = asyncio.Event(), asyncio.Event()

    @registry.step("finishes")
    async def finishes(event: StartEvent) -> StopEvent:
        await go.wait()
        finished.set()
        return StopEvent()

    async with peers(registry=registry) as pair, asyncio.timeout(20):
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["finishes"], "null", 20))
        await pair.recorder.wait_for("finishes")
        await pair.break_connections()
        with pytest.raises(TransportError) as caught:
            await call
        assert caught.value.may_have_run is True
        assert await echo(pair.client) == 1
        assert not finished.is_set()
        go.set()
        await finished.wait()
        assert pair.recorder.count("finishes") == 1


async def test_kill(registry: Registry) -> None:
    """A killed peer answers nobody, not even those who wait; what comes up again is another process, and can be called."""
    async with peers(registry=registry) as pair, asyncio.timeout(20):
        before = pair.server
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["waits"], "null", 20))
        await pair.recorder.wait_for("waits")
        await pair.kill()
        with pytest.raises(TransportError) as caught:
            await call
        assert caught.value.may_have_run is True
        assert (await lost(pair.client)).may_have_run is False
        with pytest.raises(ValidationError, match="restart it"):
            _ = pair.server
        await pair.restart()
        assert await echo(pair.client) == 1
        assert pair.server._instance_id != before._instance_id
        await pair.restart()
        assert await echo(pair.client) == 1
        assert (pair.recorder.count("waits"), pair.recorder.count("echo")) == (1, 2)


# --- virtual time


async def test_a_deadline_passes_at_once(registry: Registry) -> None:
    """A remote run of 300 s times out when 300 s have passed and not a moment before, in no time at all."""
    began = time.monotonic()
    async with peers(registry=registry) as pair, virtual_time() as clock:
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["waits"], "null", 300))
        await pair.recorder.wait_for("waits")
        await clock.advance(299.999)
        assert pair.server._invocations.in_progress == 1
        assert not call.done()
        await clock.advance(0.001)
        with pytest.raises(WorkflowError, match=r"^workflow timed out after 300s$"):
            await call
    assert time.monotonic() - began < 5


async def test_time_stands_still(registry: Registry) -> None:
    """In the block time passes by ``advance`` alone; afterwards it goes on from there, and never goes back."""
    loop = asyncio.get_running_loop()
    async with virtual_time() as clock:
        began = clock.now
        await asyncio.to_thread(time.sleep, 0.02)
        assert loop.time() == clock.now == began
        await clock.advance(1000)
        assert loop.time() == began + 1000
        with pytest.raises(ValidationError, match="does not go back"):
            await clock.advance(-1)
    after = loop.time()
    assert began + 1000 <= after < began + 1005
    await asyncio.sleep(0.01)
    assert after + 0.009 <= loop.time() < after + 5


async def test_timers_in_order() -> None:
    """Each timer goes off at its own moment, those that another one sets included; a cancelled one and a later one do not."""
    seen: list[tuple[str, float]] = []
    async with virtual_time() as clock:
        loop, began = asyncio.get_running_loop(), clock.now

        def note(name: str) -> None:
            seen.append((name, round(loop.time() - began, 6)))

        async def beats() -> None:
            while True:
                await asyncio.sleep(10)
                note("beat")

        beating = asyncio.create_task(beats())
        loop.call_later(25, note, "once")
        loop.call_later(5, lambda: loop.call_later(1, note, "nested"))
        loop.call_later(7, note, "cancelled").cancel()
        loop.call_later(36, note, "later")
        await clock.advance(35)
        beating.cancel()
    assert seen == [("nested", 6), ("beat", 10), ("beat", 20), ("once", 25), ("beat", 30)]


async def test_a_step_that_never_stops_giving_way() -> None:
    """A step that is always ready holds ``advance`` at no moment for ever; its deadline passes."""

    async def spin(event: StartEvent) -> StopEvent:
        while True:  # noqa: ASYNC110 - the fact
            await asyncio.sleep(0)

    registry = Registry()
    registry.step("spin")(spin)
    async with virtual_time() as clock:
        run = asyncio.create_task(Workflow("w", ["spin"], registry=registry).run(timeout_secs=300))
        await clock.advance(300)
        with pytest.raises(WorkflowError, match="timed out after 300s"):
            await run


async def test_a_step_in_a_thread_sees_virtual_time(registry: Registry) -> None:
    """The time that a step has left is exact, in a thread as well."""
    left: list[float | None] = []
    go = threading.Event()

    @registry.step("looks")
    def looks(event: StartEvent, ctx: Context) -> StopEvent:
        left.append(ctx.time_left_secs)
        assert go.wait(20)
        left.append(ctx.time_left_secs)
        return StopEvent()

    async with peers(registry=registry) as pair, virtual_time() as clock:
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["looks"], "null", 60))
        await pair.recorder.wait_for("looks")
        while not left:
            await asyncio.to_thread(time.sleep, 0.001)
        await clock.advance(45)
        go.set()
        await call
    assert left == [pytest.approx(60), pytest.approx(15)]


async def test_drain_in_virtual_time(registry: Registry) -> None:
    """A drain's times pass at once too, and a block left in virtual time ends by itself in real time."""
    settings = ServerSettings(lame_duck_secs=30, drain_secs=60)
    async with peers(registry=registry, settings=settings) as pair, virtual_time() as clock:
        call = asyncio.create_task(pair.client.run_remote_workflow("w", ["waits"], "null", 300))
        await pair.recorder.wait_for("waits")
        drained = asyncio.create_task(pair.server.drain())
        await clock.advance(30)
        assert (await lost(pair.client)).may_have_run is False
        await clock.advance(60)
        with pytest.raises(WorkflowError, match=r"^workflow cancelled$"):
            await call
        await drained


def test_other_event_loops() -> None:
    """An event loop whose time cannot be had is refused in words."""
    uvloop = pytest.importorskip("uvloop")

    async def enter() -> None:
        async with virtual_time():
            pass

    refused = pytest.raises(ValidationError, match="an event loop of asyncio itself, not uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, refused:
        runner.run(enter())


# --- the package


PARAMETERS = {
    "peers": "steps *workflows *registry *with_token *server_node_id *client_node_id *settings *data_class *lane",
    "virtual_time": "",
    "Link.calls": "self method",
    "Link.delay": "self secs times *method",
    "Link.drop_after_run": "self times *method",
    "Link.drop_before_run": "self times *method",
    "Link.drop_midway": "self messages times *method",
    "Link.refuse": "self times *method",
    "Peers.connect": "self node_id options",
    "Recorder.count": "self step_id",
    "Recorder.of": "self step_id",
    "Recorder.wait_for": "self step_id count *timeout_secs",
    "Recorder.watch": "self registry",
    "VirtualClock.advance": "self secs",
}


def test_the_list() -> None:
    """The public names are these, and each says what it does: adding one is a decision, taking one away breaks users."""
    names = ["Execution", "Link", "Peers", "Recorder", "VirtualClock", "peers", "virtual_time"]
    assert sorted(testing.__all__) == names
    for name in names:
        thing = getattr(testing, name)
        members = vars(thing).items() if inspect.isclass(thing) else ()
        ours = {f"{name}.{key}": value for key, value in members if not key.startswith("_") and callable(value)}
        assert [key for key, value in {name: thing, **ours}.items() if not inspect.getdoc(value)] == []


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_signatures(name: str, parameters: str) -> None:
    """The parameters that users write are called so and stand in this order; ``*``: by name alone."""
    thing: Any = testing
    for part in name.split("."):
        thing = getattr(thing, part)
    found = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in inspect.signature(thing).parameters.values()]
    assert found == parameters.split()


def test_importing_needs_no_pytest() -> None:
    """The package imports no test framework, and is not imported by anybody who does not ask for it."""
    code = (
        "import sys, blazen_peer\n"
        "assert 'blazen_peer.testing' not in sys.modules\n"
        "import blazen_peer.testing\n"
        "assert not {'pytest', '_pytest', 'unittest'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_stored_answers_age_in_virtual_time(registry: Registry) -> None:
    """A repeat gets the stored answer for ten minutes, and is refused, not run again, after them."""

    @registry.step("demo::once")
    async def once(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    async with peers(registry=registry) as pair, virtual_time() as clock:

        async def repeat() -> Any:
            return (await pair.client.run_remote_workflow("w", ["demo::once"], "1", 60, invocation_id="same")).result

        assert await repeat() == 1
        await clock.advance(599)
        assert await repeat() == 1
        await clock.advance(2)
        with pytest.raises(InvocationConflictError, match="no longer kept"):
            await repeat()
        assert pair.recorder.count("demo::once") == 1
