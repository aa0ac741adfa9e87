"""Traps 1, 2 and 12: what runs a workflow twice, and what ends a call before its time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_mesh.child import Child
from blazen_peer import Context, Event, PeerClient, PeerServer, ServerSettings, StartEvent, StopEvent
from blazen_peer.errors import TransportError
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.status import raised_by

pytestmark = pytest.mark.envoy
STAND_IN = Path(__file__).parents[1] / "stand_in.py"
SERVICE = "/blazen.peer.v1.BlazenPeer"
Walk = Callable[[Any], Iterator[dict[str, Any]]]
WAIT_SECS = 30.0


class TwoProcesses:
    """Two processes of one peer on one port, and the calls that each began."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.lines: dict[str, list[str]] = {"first": [], "second": []}
        self._changed = asyncio.Event()

    def note(self, name: str, line: str) -> None:
        self.lines[name].append(line)
        self._changed.set()

    async def said(self, text: str, *names: str) -> None:
        """Wait until each of *names*, or any where none is given, has written *text*."""
        async with asyncio.timeout(WAIT_SECS):
            while not (all if names else any)(any(text in line for line in self.lines[name]) for name in names or self.lines):
                self._changed.clear()
                await self._changed.wait()

    def begun(self, name: str | None = None) -> int:
        lines = [line for each in self.lines if name in (None, each) for line in self.lines[each]]
        return sum(line.startswith("call begins") for line in lines)


@pytest.fixture
async def two_processes() -> AsyncIterator[Callable[[str], Any]]:
    """Start both on an address, and wait until they serve."""
    pair = TwoProcesses()

    async def start(address: str) -> TwoProcesses:
        argv = [sys.executable, str(STAND_IN), "--listen", address, "--node-id", "analyst"]
        pair.children = [await Child.start(name, argv, on_line=pair.note) for name in pair.lines]
        await pair.said("serves", "first", "second")
        return pair

    yield start
    await asyncio.gather(*(child.kill() for child in pair.children))


def broadly(walk: Walk) -> Callable[[dict[str, Any]], None]:
    def alter(documents: dict[str, Any]) -> None:
        for name, document in documents.items():
            for item in walk(document) if name in ("lds.json", "rds.json") else ():
                if "retry_on" in item:
                    item["retry_on"] = "connect-failure,refused-stream,reset,unavailable"

    return alter


@pytest.mark.parametrize(
    ("method", "alters", "executions"),
    [
        pytest.param("InvokeSubWorkflow", False, 1, id="a-workflow-once"),
        pytest.param("InvokeSubWorkflow", True, 2, id="twice-with-broad-retries"),
        pytest.param("DerefSessionRef", False, 2, id="reading-again-harms-nobody"),
    ],
)
async def test_trap_01_a_call_whose_peer_dies(
    start_mesh: Any, two_processes: Any, walk: Walk, method: str, alters: bool, executions: int
) -> None:
    """A workflow whose peer dies in the middle is not sent again, though another process would take it; reading is."""
    mesh = await start_mesh(stand_ins=False, sidecars=[])
    alter = broadly(walk) if alters else None
    await asyncio.gather(*(mesh.start_sidecar(node, alter=alter) for node in ("intake", "analyst")))
    pair = await two_processes(mesh.listen("analyst"))
    channel = mesh.channel("intake", "analyst")
    call = asyncio.ensure_future(channel.unary_unary(f"{SERVICE}/{method}")(b"1", timeout=WAIT_SECS))
    await pair.said("call begins")
    await next(child for child in pair.children if pair.begun(child.name)).kill()
    if executions == 1:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        (entry,) = await mesh.wait_log("intake", log="call")
        assert (entry["grpc_status"], entry["upstream_attempts"]) == ("Unavailable", 1)
    else:
        assert await call == b"1"
    assert pair.begun() == executions


async def test_trap_01_a_callee_that_is_being_restarted(start_mesh: Any) -> None:
    """A call that finds no connection is sent again for a while, in which a sidecar is back: nothing of it was taken up."""
    mesh = await start_mesh(sidecars=["intake"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst", timeout=WAIT_SECS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    (entry,) = await mesh.wait_log("intake", log="call")
    assert (entry["upstream_attempts"], entry["flags"]) == (6, "URX,UF")


@pytest.mark.slow
async def test_trap_02_a_long_call_is_not_cut(start_mesh: Any, walk: Walk) -> None:
    """A call of 17 s without a deadline passes; with a route's own default it is cut after 15 s, and looks UNAVAILABLE."""

    def defaults(documents: dict[str, Any]) -> None:
        for item in walk(documents["lds.json"]):
            if "retry_policy" in item:
                del item["timeout"], item["max_stream_duration"]

    async def slowly(_: bytes) -> bytes:
        await asyncio.sleep(17)
        return b"done"

    mesh = await start_mesh(("intake", "archive", "analyst"), (("intake", "analyst"), ("archive", "analyst")), sidecars=[])
    mesh.peers["analyst"].answer = slowly
    await asyncio.gather(
        mesh.start_sidecar("intake"), mesh.start_sidecar("archive", alter=defaults), mesh.start_sidecar("analyst")
    )
    async with asyncio.timeout(60):
        ours, theirs = await asyncio.gather(
            *(mesh.call(caller, "analyst", timeout=None) for caller in ("intake", "archive")), return_exceptions=True
        )
    assert ours == b"done"
    assert isinstance(theirs, grpc.aio.AioRpcError)
    assert theirs.code() is grpc.StatusCode.UNAVAILABLE


async def test_trap_02_the_callers_deadline_holds(mesh: Any) -> None:
    """The caller's deadline reaches the peer, and ends a call that takes longer, near its time."""
    started = asyncio.Event()

    async def hang(_: bytes) -> bytes:
        started.set()
        await asyncio.sleep(60)
        return b""

    mesh.peers["analyst"].answer = hang
    begun = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("intake", "analyst", timeout=1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert started.is_set()
    assert 0.9 < time.monotonic() - begun < 3.0
    assert 0 < mesh.peers["analyst"].calls[0].secs_left <= 1.0


@pytest.mark.parametrize("timeout", [pytest.param(None, id="no-deadline"), pytest.param(60.0, id="a-later-deadline")])
async def test_trap_08_a_stream_does_not_outlive_the_age(start_mesh: Any, timeout: float | None) -> None:
    """A stream ends within the mesh's connection age, as what clients go on after by cursor; a unary call goes on."""
    mesh = await start_mesh(extra={"connection_age_secs": 5})

    async def slowly(request: bytes) -> bytes:
        await asyncio.sleep(6 if request == b"slow" else 0)
        return request

    mesh.peers["analyst"].answer = slowly
    call = asyncio.create_task(mesh.call("intake", "analyst", b"slow", timeout=60))
    begun, items, end = time.monotonic(), 0, None
    stream = mesh.channel("intake", "analyst").unary_stream(f"{SERVICE}/StreamSubWorkflowEvents")(b"", timeout=timeout)
    try:
        async for _ in stream:
            items += 1
    except grpc.aio.AioRpcError as error:
        end = raised_by(error)
    assert isinstance(end, TransportError)
    assert 1.5 < time.monotonic() - begun < 5
    assert items > 5
    assert await call == b"slow"


@pytest.mark.parametrize(
    ("pings_the_peer", "code"),
    [
        pytest.param(False, grpc.StatusCode.OK, id="between-sidecars-only"),
        pytest.param(True, grpc.StatusCode.UNAVAILABLE, id="towards-the-peer-too"),
    ],
)
async def test_trap_12_pings_kill_calls_on_a_python_server(
    start_mesh: Any, walk: Walk, pings_the_peer: bool, code: grpc.StatusCode
) -> None:
    """Pings ten times a second between sidecars harm no call; towards the peer they would end one ("Too many pings")."""

    def often(documents: dict[str, Any]) -> None:
        for item in walk(documents):
            if item.get("connection_keepalive"):
                item["connection_keepalive"] = {"interval": "0.1s", "timeout": "5s"}
        for cluster in documents["cds.json"]["resources"]:
            if cluster["name"] == "peer" and pings_the_peer:
                (options,) = cluster["typed_extension_protocol_options"].values()
                options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"] = {
                    "interval": "0.1s",
                    "timeout": "5s",
                }

    async def slowly(request: bytes) -> bytes:
        await asyncio.sleep(3)
        return request

    mesh = await start_mesh(sidecars=[])
    mesh.peers["analyst"].answer = slowly
    await asyncio.gather(*(mesh.start_sidecar(node, alter=often) for node in ("intake", "analyst")))
    got = grpc.StatusCode.OK
    try:
        await mesh.call("intake", "analyst", timeout=WAIT_SECS)
    except grpc.aio.AioRpcError as error:
        got = error.code()
    assert got is code


async def test_trap_08_our_client_goes_on_by_its_cursor(start_mesh: Any, way: str) -> None:
    """A stream that the sidecars cut again and again gives every event once, in order, and the result: with ``retries=``, or
    by lanes, which they cut as well."""
    mesh = await start_mesh(stand_ins=False, extra={"connection_age_secs": 3})
    registry, executed = Registry(), []

    @registry.step("demo::count")
    async def count(event: StartEvent, ctx: Context) -> StopEvent:
        executed.append(event.data)
        for number in range(event.data):
            ctx.emit(Event.dynamic("demo::Number", {"number": number}))
            await asyncio.sleep(0.1)
        return StopEvent(result="done")

    settings = ServerSettings(lame_duck_secs=0, drain_secs=5)
    server = PeerServer("analyst", registry=registry, sidecar_proof_file=mesh.proof_file("analyst"), settings=settings)
    async with (
        server.serving(mesh.listen("analyst")),
        await PeerClient.connect_async(f"http://{mesh.egress('intake', 'analyst')}", "intake") as client,
    ):
        stream = client.stream_remote_workflow(
            "count", ["demo::count"], "40", timeout_secs=60, retries=5 if way == "alone" else 0
        )
        numbers = [event.data["number"] async for event in stream if event.event_type == "demo::Number"]
    assert numbers == list(range(40))
    assert stream.result.result == "done"
    assert executed == [40]
    named = ("Attach", "Stream") if way == "alone" else ("Lane",)
    entries = [entry for entry in mesh.log("intake", log="call") if any(name in entry["method"] for name in named)]
    assert len(entries) >= 3
