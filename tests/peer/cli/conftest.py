"""For tests of the command: a peer that serves in a thread of its own, and the command run in this process.

One way alone: a command makes one call, and a lane is asked for by ``run --lane``, which ``test_run.py`` holds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from blazen_peer import Context, Event, PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.cli import main
from blazen_peer.runtime.registry import Registry


class Outcome(NamedTuple):
    """What one command gave."""

    code: int
    out: str
    err: str


class Greeting(StartEvent):
    """Whom to greet."""

    who: str
    times: int | None = None


class Greeted(Event, event_type="demo::Greeted"):
    text: str


class Peer(NamedTuple):
    """A peer that serves in a thread of its own."""

    address: str
    held: threading.Event
    let_go: threading.Event


def a_registry(held: threading.Event, let_go: threading.Event) -> Registry:
    registry = Registry()

    @registry.step("demo::echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    @registry.step("demo::put")
    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        ref = ctx.put_ref(event.data.encode(), type_tag="demo::Text")
        return StopEvent(result=str(ref.uuid))

    @registry.step("demo::greet")
    async def greet(event: Greeting) -> Greeted:
        return Greeted(text=f"hello {event.who}")

    @registry.step("demo::boom")
    async def boom(event: StartEvent) -> StopEvent:
        raise RuntimeError("out of \x1b[31mink\x1b[0m\nand paper")

    @registry.step("demo::emit")
    async def emit(event: StartEvent, ctx: Context) -> StopEvent:
        for n in range(event.data):
            ctx.emit(Event.dynamic("demo::Counted", {"n": n, "odd": "\x1b"}))
        return StopEvent(result="emitted")

    @registry.step("demo::hold")
    def hold(event: StartEvent) -> StopEvent:
        held.set()
        assert let_go.wait(20)
        return StopEvent(result="held")

    registry.register_workflow(Workflow("echo", [echo], registry=registry))
    return registry


@pytest.fixture
def a_peer() -> Iterator[Callable[..., Peer]]:
    """A factory: a peer of :func:`a_registry` in a thread of its own, since the command blocks this one."""
    let_gos: list[threading.Event] = []
    ends: list[Callable[[], None]] = []

    def start(**options: Any) -> Peer:
        held, let_go, ready = threading.Event(), threading.Event(), threading.Event()
        options.setdefault("settings", ServerSettings(lame_duck_secs=0, drain_secs=0))
        found: list[Any] = []

        async def serve() -> None:
            server = PeerServer("node-b", registry=a_registry(held, let_go), **options)
            stop = asyncio.Event()
            async with server.serving():
                found.extend((server.address, asyncio.get_running_loop(), stop))
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(10)
        address, loop, stop = found

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive()

        let_gos.append(let_go)
        ends.append(end)
        return Peer(address, held, let_go)

    yield start
    for let_go in let_gos:
        let_go.set()
    for end in ends:
        end()


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command in this process; what goes past ``sys.stdout`` and ``sys.stderr`` is seen too."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: str) -> Outcome:
        code = main(argv)
        return Outcome(code, *capfd.readouterr())

    return run


def _one_line(outcome: Outcome) -> str:
    assert outcome.out == ""
    assert outcome.err.endswith("\n")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("blazen-peer: ")
    return outcome.err.removeprefix("blazen-peer: ").rstrip("\n")


@pytest.fixture
def one_line() -> Callable[[Outcome], str]:
    """Return the one line of an error, which is all that was printed."""
    return _one_line
