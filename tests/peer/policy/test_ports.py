"""The client's side: the address book, what a port stamps, and what a run's data may be sent through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import (
    Context,
    PeerClient,
    PermissionDeniedError,
    StartEvent,
    StopEvent,
    ValidationError,
    Workflow,
    WorkflowError,
    remote_step,
)
from blazen_peer.runtime.registry import Registry
from blazen_peer.testing import peers
from tests.peer.policy.guarded import TOKEN, Guarded, Port, flow, policy_of

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Guard = Callable[..., Awaitable[Guarded]]

POLICY = policy_of(flow("intake", "analyst", ["analyze"], "personal", "internal", "public"))
ORDER = ["personal", "internal", "public"]


def serves(peer: Guarded) -> None:
    @peer.registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        peer.begun["tells"] += 1
        return StopEvent(result=ctx.data_class)

    peer.registry.register_workflow(Workflow("analyze", ["tells"], registry=peer.registry, data_class="public"))


@pytest.fixture
async def peer(guarded: Guard) -> Guarded:
    return await guarded(POLICY, serves)


def book(path: Path, entries: dict[str, list[tuple[str | None, str]]], data: list[str] = ORDER) -> Path:
    peers = {
        name: [{"data_class": data_class, "address": address} for data_class, address in ports]
        for name, ports in entries.items()
    }
    file = path / "peers.json"
    file.write_text(json.dumps({"node": "intake", "region": None, "data": data, "peers": peers}))
    return file


@pytest.fixture
async def ports(peer: Guarded) -> dict[str, Port]:
    """Intake's three ports to analyst."""
    return {name: await peer.port("intake", name) for name in ORDER}


@pytest.fixture
def peers_file(tmp_path: Path, ports: dict[str, Port]) -> Path:
    entries: list[tuple[str | None, str]] = [(name, port.address.removeprefix("http://")) for name, port in ports.items()]
    return book(tmp_path, {"analyst": entries, "gpu": [("internal", "127.0.0.1:1")]})


@pytest.mark.parametrize("data_class", ORDER)
async def test_by_the_book(peers_file: Path, connect: Any, data_class: str) -> None:
    """``peer:NAME`` with a class leads to the port of that class, and calls say the class; the node's name is the book's."""
    client = await connect("peer:analyst", None, token=TOKEN, data_class=data_class, peers_file=peers_file)
    assert (await client.run_remote_workflow("analyze", [], "1")).result == data_class
    assert client.node_id == "intake"


async def test_by_the_environment(peers_file: Path, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``BLAZEN_PEERS_FILE`` names the book where no argument does."""
    monkeypatch.setenv("BLAZEN_PEERS_FILE", str(peers_file))
    client = await connect("peer:analyst", None, token=TOKEN, data_class="internal")
    assert (await client.run_remote_workflow("analyze", [], "1")).result == "internal"


def test_blocking(peers_file: Path) -> None:
    """The blocking connect finds peers by the same book."""
    with pytest.raises(ValidationError, match="may call no peer"):
        PeerClient.connect("peer:nobody", data_class="internal", peers_file=peers_file)


ALL = "analyst (personal, internal, public), gpu (internal)"
NOT_THERE = [
    pytest.param("peer:nobody", "personal", f"intake may call no peer 'nobody': its address book has {ALL}", id="peer"),
    pytest.param("peer:", "personal", "intake may call no peer ''", id="no-name"),
    pytest.param("peer:gpu", "personal", "'personal' data may not go from intake to gpu: internal may", id="class"),
    pytest.param("peer:gpu", "secret", "'secret' data may not go from intake to gpu: internal may", id="unknown-class"),
    pytest.param("peer:analyst", None, "say the data class of what goes to analyst: personal, internal, public", id="no-class"),
    pytest.param("peer:analyst", "a b", "data class 'a b' is not valid", id="no-name-of-a-class"),
    pytest.param("peer:analyst", "*", "there is no wildcard", id="wildcard"),
]


@pytest.mark.parametrize(("address", "data_class", "error"), NOT_THERE)
async def test_not_in_the_book(peers_file: Path, connect: Any, address: str, data_class: str | None, error: str) -> None:
    """What the book does not have is refused before anything is dialled, with what it has."""
    with pytest.raises(ValidationError) as caught:
        await connect(address, None, token=TOKEN, data_class=data_class, peers_file=peers_file)
    assert error in str(caught.value)


async def test_no_book(connect: Any, tmp_path: Path) -> None:
    """Without a book, or with one that does not read, the error says what to do."""
    with pytest.raises(ValidationError, match="set BLAZEN_PEERS_FILE, or give peers_file="):
        await connect("peer:analyst", None)
    with pytest.raises(ValidationError, match=r"cannot read the address book .*No such file"):
        await connect("peer:analyst", None, peers_file=tmp_path / "peers.json")
    (tmp_path / "peers.json").write_text('{"node": "intake"}')
    with pytest.raises(ValidationError, match=r"peers\.json is no address book: peers: Field required"):
        await connect("peer:analyst", None, peers_file=tmp_path / "peers.json")
    with pytest.raises(ValidationError, match="say who calls: client_node_id="):
        await connect("http://127.0.0.1:1", None)


@pytest.mark.parametrize("address", ["10.0.0.9:16001", "analyst.internal:16001", "https://127.0.0.1:1", "16001"])
async def test_a_book_leads_to_this_machine(connect: Any, tmp_path: Path, address: str) -> None:
    """A sidecar's ports are on loopback: a book that names another machine would send it data and token in plain text."""
    file = book(tmp_path, {"analyst": [("personal", address)]})
    with pytest.raises(ValidationError, match=r"is no address book: peers\.analyst\.0\.address: Value error, "):
        await connect("peer:analyst", None, token=TOKEN, peers_file=file)


async def test_a_mesh_without_classes(guarded: Guard, connect: Any, tmp_path: Path) -> None:
    """In a mesh without data classes a peer has one port, and there is no class to say."""
    plain = policy_of(flow("intake", "analyst", ["analyze"]), classes=())
    peer = await guarded(plain, lambda peer: peer.serve("analyze", "first"))
    port = await peer.port("intake")
    file = book(tmp_path, {"analyst": [(None, port.address.removeprefix("http://"))]}, data=[])
    client = await connect("peer:analyst", None, token=TOKEN, peers_file=file)
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
    with pytest.raises(ValidationError, match="this mesh has no data classes"):
        await connect("peer:analyst", None, token=TOKEN, peers_file=file, data_class="personal")


async def test_without_a_sidecar(serve: Any, connect: Any) -> None:
    """A client that is for a class connects to nothing that stamps none."""
    server = await serve()
    with pytest.raises(PermissionDeniedError, match="stamps no data class, and personal data is to go there"):
        await connect(server, data_class="personal")


LAXER = [
    pytest.param("personal", "internal", "stamps internal, which is laxer than personal", id="laxer"),
    pytest.param("internal", "public", "stamps public, which is laxer than internal", id="another-laxer"),
    pytest.param("personal", "secret", "whether that is as strict as personal is not known here", id="unknown"),
    pytest.param("personal", None, "stamps no data class", id="nothing"),
]


@pytest.mark.parametrize(("wanted", "told", "error"), LAXER)
async def test_laxer_port(
    peer: Guarded, ports: dict[str, Port], peers_file: Path, connect: Any, wanted: str, told: str | None, error: str
) -> None:
    """A port that stamps a laxer class than the client is for is refused at connect; nothing but the health check was sent."""
    port = ports[wanted]
    port.told = told
    with pytest.raises(PermissionDeniedError, match=error):
        await connect("peer:analyst", None, token=TOKEN, data_class=wanted, peers_file=peers_file)
    assert port.calls == {"Check": 1}


async def test_stricter_port(ports: dict[str, Port], peers_file: Path, connect: Any) -> None:
    """A port that stamps a stricter class than the client asks for will do."""
    address = ports["personal"].address
    client = await connect(address, "intake", token=TOKEN, data_class="internal", peers_file=peers_file)
    assert (await client.run_remote_workflow("analyze", [], "1")).result == "personal"


@pytest.mark.parametrize("how", ["invoke", "stream", "with-retries"])
async def test_laxer_after_a_reconnect(peer: Guarded, ports: dict[str, Port], peers_file: Path, connect: Any, how: str) -> None:
    """When the connection is made anew, what the port stamps is asked anew: data does not go through what became laxer."""
    port = ports["personal"]
    client = await connect("peer:analyst", None, token=TOKEN, data_class="personal", peers_file=peers_file)
    assert (await client.run_remote_workflow("analyze", [], "1")).result == "personal"
    await port.stop()
    port.stamps, port.told = ("public",), "public"
    await port.start()
    before = port.calls.copy()
    if how == "stream":
        asked: Any = anext(client.stream_remote_workflow("analyze", [], "1"))
    else:
        asked = client.run_remote_workflow("analyze", [], "1", retries=5 if how == "with-retries" else 0)
    with pytest.raises(PermissionDeniedError, match="stamps public, which is laxer than personal"):
        await asyncio.wait_for(asked, 30)
    assert set(port.calls - before) in ({"Check"}, {"Lane"})  # a lane whose opening is answered carries nothing yet
    with pytest.raises(PermissionDeniedError, match="stamps public, which is laxer than personal"):  # too large for a frame
        await client.run_remote_workflow("analyze", [], json.dumps("x" * 300_000))
    assert set(port.calls - before) <= {"Check", "Lane"}
    assert peer.begun["tells"] == 1
    await port.stop()
    port.stamps, port.told = ("personal",), "personal"
    await port.start()
    async with asyncio.timeout(30):
        assert (await client.run_remote_workflow("analyze", [], "1", retries=20)).result == "personal"


async def test_laxer_after_a_reconnect_for_a_child(
    peer: Guarded, ports: dict[str, Port], peers_file: Path, connect: Any
) -> None:
    """So it is for a client that was made for no class, and is used in a step of a run that has one."""
    port = ports["personal"]
    client = await connect(port.address, "intake", token=TOKEN, peers_file=peers_file)
    parent = Workflow("parent", [remote_step(client, "analyze")], data_class="personal")
    assert (await parent.run({})).result == "personal"
    await port.stop()
    port.stamps, port.told = ("public",), "public"
    await port.start()
    with pytest.raises(WorkflowError, match="stamps public, which is laxer than personal"):
        await asyncio.wait_for(parent.run({}), 30)
    assert peer.begun["tells"] == 1


CHILDREN = [
    pytest.param("personal", "personal", True, id="the-same"),
    pytest.param("internal", "internal", True, id="the-same-laxer-one"),
    pytest.param("internal", "personal", True, id="stricter"),
    pytest.param("public", "personal", True, id="much-stricter"),
    pytest.param("personal", "internal", False, id="laxer"),
    pytest.param("personal", "public", False, id="much-laxer"),
    pytest.param("internal", "public", False, id="laxer-by-one"),
]


@pytest.mark.parametrize("named", [True, False], ids=["client-with-a-class", "client-without"])
@pytest.mark.parametrize(("parent", "child", "allowed"), CHILDREN)
async def test_children(
    peer: Guarded, ports: dict[str, Port], peers_file: Path, connect: Any, parent: str, child: str, allowed: bool, named: bool
) -> None:
    """A call in a step goes through ports as strict as its run, or stricter; where it may not, nothing is sent."""
    if named:
        client = await connect("peer:analyst", None, token=TOKEN, data_class=child, peers_file=peers_file)
    else:
        client = await connect(ports[child].address, "intake", token=TOKEN, peers_file=peers_file)
    before = ports[child].calls.copy()
    local = Workflow("parent", [remote_step(client, "analyze")], data_class=parent)
    if allowed:
        assert (await local.run({})).result == child
    else:
        with pytest.raises(WorkflowError, match="laxer than") as caught:
            await local.run({})
        assert isinstance(caught.value.__cause__, PermissionDeniedError)
        assert ports[child].calls == before
        assert peer.begun.total() == 0


async def test_children_of_a_served_run(guarded: Guard, registry: Registry) -> None:
    """In a server with a policy the order is the policy's: a run's class is its stamp, and its calls are held to it."""
    holder: dict[str, PeerClient] = {}

    def prepare(peer: Guarded) -> None:
        serves(peer)

        @peer.registry.step("delegates")
        async def delegates(event: StartEvent) -> StopEvent:
            result = await holder[event.data].run_remote_workflow("analyze", [], "1")
            return StopEvent(result=result.result)

        @peer.registry.step("streams")
        async def streams(event: StartEvent) -> StopEvent:
            events = holder[event.data].stream_remote_workflow("analyze", [], "1")
            return StopEvent(result=[item.data async for item in events])

        @peer.registry.step("blocks")
        def blocks(event: StartEvent) -> StopEvent:
            return StopEvent(result=holder[event.data].run_remote_workflow_blocking("analyze", [], "1").result)

        for step in ("delegates", "streams", "blocks"):
            peer.registry.register_workflow(Workflow(step, [step], registry=peer.registry, data_class="public"))

    wide = policy_of(flow("intake", "analyst", ["analyze", "delegates", "streams", "blocks"], *ORDER))
    peer = await guarded(wide, prepare)
    holder.update({name: await peer.client("intake", name) for name in ORDER})
    for step in ("delegates", "streams", "blocks"):
        for number, parent in enumerate(ORDER):
            outer = await peer.client("intake", parent)
            for child in ORDER[: number + 1]:
                answer = (await outer.run_remote_workflow(step, [], json.dumps(child))).result
                assert answer == ([child] if step == "streams" else child)
            begun = peer.begun.copy()
            for child in ORDER[number + 1 :]:
                with pytest.raises(WorkflowError, match=f"stamps {child}, which is laxer than {parent}"):
                    await outer.run_remote_workflow(step, [], json.dumps(child))
            assert peer.begun == begun


async def test_unknown_order(ports: dict[str, Port], connect: Any) -> None:
    """Where nobody says which class is stricter, data does not go through another class's port."""
    client = await connect(ports["internal"].address, "intake", token=TOKEN)
    with pytest.raises(WorkflowError, match="whether that is as strict as public is not known here"):
        await Workflow("parent", [remote_step(client, "analyze")], data_class="public").run({})


async def test_port_that_stamps_nothing(serve: Any, connect: Any, registry: Registry) -> None:
    """A run with a data class sends nothing to a peer without a sidecar; one without a class does."""

    @registry.step("echo")
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=1)

    client = await connect(await serve())
    remote = remote_step(client, "w", ["echo"])
    assert (await Workflow("parent", [remote]).run({})).result == 1
    with pytest.raises(WorkflowError, match="stamps no data class"):
        await Workflow("parent", [remote], data_class="personal").run({})


async def test_local_children(registry: Registry) -> None:
    """A local child has the stricter class of the two, and none is started whose class cannot be compared."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.data_class)

    def child(data_class: str | None) -> Workflow:
        return Workflow("child", ["tells"], registry=registry, data_class=data_class)

    def parent(inner: Workflow, data_class: str | None) -> Workflow:
        async def run(event: StartEvent) -> StopEvent:
            return StopEvent(result=(await inner.run(event.data)).result)

        registry.step(f"run-{len(registry.steps())}")(run)
        return Workflow("parent", [run], registry=registry, data_class=data_class)

    assert (await parent(child(None), "internal").run(1)).result == "internal"
    assert (await parent(child("internal"), "internal").run(1)).result == "internal"
    assert (await parent(child("internal"), None).run(1)).result == "internal"
    assert (await child(None).run(1)).result is None
    with pytest.raises(WorkflowError, match="which of the two is stricter is known only in a server with a policy"):
        await parent(child("personal"), "internal").run(1)
    for given, inherited, expected in (("personal", "internal", "personal"), ("internal", "personal", "personal")):
        run = parent(child(given), inherited).start(1, classes=tuple(ORDER))
        assert (await run.wait()).result == expected


async def test_local_children_that_are_started(registry: Registry) -> None:
    """``Workflow.start`` in a step makes a child as ``run`` does: its class is no laxer."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.data_class)

    inner = Workflow("child", ["tells"], registry=registry)

    @registry.step("starts")
    async def starts(event: StartEvent) -> StopEvent:
        return StopEvent(result=(await inner.start(event.data).wait()).result)

    assert (await Workflow("parent", ["starts"], registry=registry, data_class="personal").run(1)).result == "personal"


@pytest.mark.parametrize("data_class", ["", "a b", "*", 5, b"x"], ids=repr)
def test_declared_class(registry: Registry, data_class: Any) -> None:
    """A workflow declares the name of a class, or a function."""

    @registry.step("s")
    async def s(event: StartEvent) -> StopEvent:
        return StopEvent()

    with pytest.raises(ValidationError):
        Workflow("w", ["s"], registry=registry, data_class=data_class)


async def test_testing_peers(registry: Registry) -> None:
    """``blazen_peer.testing`` stamps what it is told to, also after a restart, so that runs with a data class can be tested."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=ctx.data_class)

    registry.register_workflow(Workflow("w", ["tells"], registry=registry, data_class="internal"))
    async with peers(registry=registry, data_class="personal", lane="auto") as pair:
        parent = Workflow("parent", [remote_step(pair.client, "w")], data_class="personal")
        assert (await parent.run({})).result == "internal"
        await pair.restart()
        assert (await parent.run({})).result == "internal"
        with pytest.raises(WorkflowError, match="whether that is as strict as internal is not known here"):
            await Workflow("parent", [remote_step(pair.client, "w")], data_class="internal").run({})
    async with peers(registry=registry, lane="auto") as pair:
        with pytest.raises(WorkflowError, match="stamps no data class"):
            await Workflow("parent", [remote_step(pair.client, "w")], data_class="personal").run({})
