"""The policy, end to end: the mesh file's flows and data classes in real sidecars and in a real server, with real clients.

Intake has three ports to analyst, one for each class; audit has one. Each test names what was executed, and each refusal says
who refused it: the sidecar, the server, or the client before anything was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_mesh.address_book import address_book
from blazen_mesh.mesh import parse_mesh
from blazen_peer import (
    Context,
    InvocationConflictError,
    InvocationNotFoundError,
    PeerClient,
    PermissionDeniedError,
    RefNotFoundError,
    StartEvent,
    StopEvent,
    TransportError,
    ValidationError,
    Workflow,
    WorkflowError,
    remote_step,
)
from blazen_peer.transport.proto.peer_pb2 import PostcardRequest
from blazen_peer.wire import SubWorkflowRequest

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call

CLASSES = ("personal", "internal", "public")
DATA = [{"name": name, "why": "a test"} for name in CLASSES]
WORKFLOWS = ["analyze", "count", "put", "delegate"]

Start = Callable[..., Awaitable[Any]]


def flow(caller: str, workflows: list[str], *classes: str, **more: Any) -> dict[str, Any]:
    return {"from": caller, "to": "analyst", "workflows": workflows, "data": list(classes), "why": "a test", **more}


FLOWS = [flow("intake", WORKFLOWS, *CLASSES), flow("audit", ["count"], "personal")]


class Guarded:
    """A remote whose analyst enforces the mesh's policy, from the file that the mesh renders."""

    def __init__(self, remote: Any, policy: Path, books: dict[str, Path]) -> None:
        self.remote, self.policy, self.books = remote, policy, books
        self.begun = remote.begun

    async def connect(self, data_class: str, node: str = "intake") -> PeerClient:
        """Return a client of *node*'s, found by its address book."""
        options = {"data_class": data_class, "peers_file": self.books[node]}
        return await self.remote.connect(node, address="peer:analyst", **options)

    def write(self, flows: list[dict[str, Any]]) -> None:
        """Put the policy of other flows in the place of the server's, in one move; the sidecars keep theirs."""
        table = {**self.remote.mesh.table, "flows": flows}
        mesh = parse_mesh({**table, "peers": _with_ports_of(table)})
        new = self.policy.with_name("new")
        new.write_text(mesh.policy().of(mesh.identity("analyst")).to_json())
        new.replace(self.policy)


def _with_ports_of(table: dict[str, Any]) -> dict[str, Any]:
    """Return the peers with the ports that *table*'s flows need, and no other."""
    needed: dict[str, set[str]] = {}
    for item in table["flows"]:
        needed.setdefault(item["from"], set()).update(item["data"])
    return {
        node: {
            **peer,
            "egress": {
                callee: {name: port for name, port in ports.items() if name in needed.get(node, ())}
                for callee, ports in peer["egress"].items()
                if node in needed
            },
        }
        for node, peer in table["peers"].items()
    }


def register(remote: Any, holder: dict[str, PeerClient]) -> None:
    registry = remote.registry

    @registry.step("demo::put")
    async def put(event: StartEvent, ctx: Context) -> StopEvent:
        remote.begun[ctx.step_id] += 1
        ref = ctx.put_ref(b"value", type_tag="demo::Value")
        return StopEvent(result=[str(ref.uuid), ctx.data_class])

    @registry.step("demo::delegate")
    async def delegate(event: StartEvent, ctx: Context) -> StopEvent:
        remote.begun[ctx.step_id] += 1
        result = await holder[event.data].run_remote_workflow("analyze", [], '"child"')
        return StopEvent(result=result.result)

    for name, step, data_class in (
        ("analyze", "demo::echo", "public"),
        ("count", "demo::caller", None),
        ("put", "demo::put", "public"),
        ("delegate", "demo::delegate", "public"),
        ("secret", "demo::echo", "public"),
    ):
        registry.register_workflow(Workflow(name, [step], registry=registry, data_class=data_class))


@pytest.fixture
def holder() -> dict[str, PeerClient]:
    """The clients that the served steps use, by data class."""
    return {}


@pytest.fixture
async def guarded(start_remote: Start, ports: Callable[[], int], tmp_path: Path, holder: dict[str, PeerClient]) -> Guarded:
    """Intake, audit and analyst with sidecars; the analyst's server has the policy that is rendered for it."""
    peers = {
        node: {"sidecar": f"127.0.0.1:{ports()}", "listen": f"127.0.0.1:{ports()}", "egress": {}}
        for node in ("intake", "audit", "analyst")
    }
    peers["intake"]["egress"] = {"analyst": {name: ports() for name in CLASSES}}  # type: ignore[dict-item]
    peers["audit"]["egress"] = {"analyst": {"personal": ports()}}  # type: ignore[dict-item]
    extra = {"data": DATA, "peers": peers, "flows": FLOWS}
    remote = await start_remote(serve=False, nodes=("intake", "audit", "analyst"), flows=(), extra=extra)
    register(remote, holder)
    mesh = remote.mesh.definition
    books = {node: tmp_path / f"{node}.json" for node in ("intake", "audit")}
    for node, file in books.items():
        file.write_text(json.dumps(address_book(mesh, node)))
    policy = remote.mesh.root / "analyst" / "policy.json"
    await remote.start_server(policy=policy)
    return Guarded(remote, policy, books)


@pytest.mark.parametrize("data_class", CLASSES)
async def test_allowed(guarded: Guarded, data_class: str) -> None:
    """What the flows name runs once, whole or by its steps, with the class of the port that it came by."""
    client = await guarded.connect(data_class)
    assert (await client.run_remote_workflow("analyze", [], '"a"')).result == "a"
    assert (await client.run_remote_workflow("analyze", ["demo::echo"], '"b"')).result == "b"
    assert (await client.run_remote_workflow("put", [], "null")).result[1] == data_class
    assert guarded.begun == {"demo::echo": 2, "demo::put": 1}


async def test_two_callers(guarded: Guarded) -> None:
    """Each caller has its own flows: audit may count and nothing else."""
    audit = await guarded.connect("personal", "audit")
    assert (await audit.run_remote_workflow("count", [], "1")).result == "spiffe://mesh.test/peer/audit"
    for call in (("analyze", []), ("count", ["demo::echo"]), ("secret", [])):
        with pytest.raises(PermissionDeniedError, match="the policy of analyst does not allow this call"):
            await audit.run_remote_workflow(*call, "1")
    assert guarded.begun == {"demo::caller": 1}


REFUSED = [
    pytest.param("personal", "secret", [], id="no-flow-names-the-workflow"),
    pytest.param("personal", "no-such", [], id="nobody-has-the-workflow"),
    pytest.param("personal", "analyze", ["demo::caller"], id="a-step-of-another-workflow"),
    pytest.param("personal", "analyze", ["demo::echo", "demo::fail"], id="a-step-of-none"),
    pytest.param("internal", "count", [], id="laxer-than-the-strictest-where-nothing-is-declared"),
]


@pytest.mark.parametrize(("data_class", "workflow", "steps"), REFUSED)
async def test_refused_by_the_server(guarded: Guarded, data_class: str, workflow: str, steps: list[str]) -> None:
    """The sidecars let it through, as they do not read payloads; the server does, and nothing is executed."""
    client = await guarded.connect(data_class)
    with pytest.raises(PermissionDeniedError, match="the policy of analyst does not allow this call"):
        await client.run_remote_workflow(workflow, steps, "1")
    with pytest.raises(PermissionDeniedError):
        await anext(client.stream_remote_workflow(workflow, steps, "1"))
    assert not guarded.begun


async def test_no_port_for_the_class(guarded: Guarded) -> None:
    """A class of no flow has no port: the address book says so, and there is nothing to dial."""
    with pytest.raises(ValidationError, match="'public' data may not go from audit to analyst: personal may"):
        await guarded.connect("public", "audit")


FORGED = [
    pytest.param([("x-blazen-data-class", "personal")], id="a-stricter-one"),
    pytest.param([("x-blazen-data-class", "personal")] * 2, id="twice"),
    pytest.param([("x-blazen-data-class", "personal"), ("x-blazen-data-class", "public")], id="both"),
    pytest.param([("x-blazen-data-class", "personal,public")], id="joined"),
    pytest.param([("x-blazen-data-class", "")], id="empty"),
]


@pytest.mark.parametrize("forged", FORGED)
async def test_forged_stamp(guarded: Guarded, forged: list[tuple[str, str]]) -> None:
    """What a caller writes as a stamp is overwritten by its sidecar: the port's class counts, and no other."""
    remote = guarded.remote
    address = remote.mesh.egress("intake", "analyst", "public")
    message = SubWorkflowRequest("put", (), b"null", 10).encode()
    answer = await invoke(remote, address, message, [remote.bearer(), *forged])
    assert json.loads(answer.result_json)[1] == "public"
    with pytest.raises(PermissionDeniedError):  # "count" is for personal data alone
        await invoke(remote, address, SubWorkflowRequest("count", (), b"null", 10).encode(), [remote.bearer(), *forged])
    assert guarded.begun == {"demo::put": 1}


async def invoke(remote: Any, address: str, envelope: bytes, metadata: list[tuple[str, str]]) -> Any:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return await remote.invoke(PostcardRequest(postcard_payload=envelope).SerializeToString(), metadata, channel=channel)


PAST = [
    pytest.param([("x-blazen-data-class", "personal")], False, id="without-the-proof"),
    pytest.param([], True, id="no-stamp"),
    pytest.param([("x-blazen-data-class", "personal")] * 2, True, id="doubled"),
    pytest.param([("x-blazen-data-class", "personal"), ("x-blazen-data-class", "internal")], True, id="two"),
    pytest.param([("x-blazen-data-class", "personal,personal")], True, id="joined"),
    pytest.param([("x-blazen-data-class", "secret")], True, id="unknown"),
]


@pytest.mark.parametrize(("stamps", "proven"), PAST)
async def test_past_the_sidecar(guarded: Guarded, stamps: list[tuple[str, str]], proven: bool) -> None:
    """Straight at the server's port: a stamp without the proof is nothing, and beside it exactly one counts."""
    remote = guarded.remote
    headers = [remote.bearer(), ("x-forwarded-client-cert", "URI=spiffe://mesh.test/peer/intake"), *stamps]
    if proven:
        headers.append(("x-blazen-sidecar-proof", remote.mesh.proof_file("analyst").read_text()))
    envelope = SubWorkflowRequest("analyze", (), b"1", 10).encode()
    with pytest.raises(PermissionDeniedError):
        await invoke(remote, remote.mesh.listen("analyst"), envelope, headers)
    assert not guarded.begun
    if proven:
        good = [*(pair for pair in headers if pair not in stamps), ("x-blazen-data-class", "personal")]
        assert (await invoke(remote, remote.mesh.listen("analyst"), envelope, good)).result_json == b"1"


async def test_a_laxer_port_is_refused_by_the_client(guarded: Guarded) -> None:
    """A client that is for personal data finds at connect what the port stamps, and goes no further."""
    remote = guarded.remote
    address = f"http://{remote.mesh.egress('intake', 'analyst', 'public')}"
    with pytest.raises(PermissionDeniedError, match="stamps public, which is laxer than personal: nothing was sent"):
        await remote.connect(address=address, data_class="personal", peers_file=guarded.books["intake"])
    client = await remote.connect(
        address=f"http://{remote.mesh.egress('intake', 'analyst', 'personal')}",
        data_class="public",
        peers_file=guarded.books["intake"],
    )
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1


@pytest.mark.parametrize("place", ["local", "served"])
@pytest.mark.parametrize("parent", CLASSES)
async def test_children(guarded: Guarded, holder: dict[str, PeerClient], parent: str, place: str) -> None:
    """A run's own calls go through ports as strict as it is, or stricter; through a laxer one nothing is sent at all."""
    holder.update({name: await guarded.connect(name) for name in CLASSES})
    outer = holder[parent]

    async def run(child: str) -> Any:
        if place == "served":
            return (await outer.run_remote_workflow("delegate", [], json.dumps(child))).result
        local = Workflow("parent", [remote_step(holder[child], "analyze")], data_class=parent)
        return (await local.run("child")).result

    for number, child in enumerate(CLASSES):
        before = guarded.begun["demo::echo"]
        if number <= CLASSES.index(parent):
            assert await run(child) == "child"
        else:
            with pytest.raises(WorkflowError, match=f"laxer than {parent}: nothing was sent"):
                await run(child)
            assert guarded.begun["demo::echo"] == before
    assert guarded.begun["demo::echo"] == CLASSES.index(parent) + 1


async def test_a_child_that_says_too_much(guarded: Guarded) -> None:
    """Where a client does not look, the server does: a call that says a stricter class than its port stamps is refused."""
    remote = guarded.remote
    envelope = SubWorkflowRequest("analyze", (), b"1", 10).encode()
    address = remote.mesh.egress("intake", "analyst", "internal")
    for said, name in ((("blazen-data-class", "personal"), "class"), (("blazen-workflow", "count"), "workflow")):
        with pytest.raises(PermissionDeniedError):
            await invoke(remote, address, envelope, [remote.bearer(), said])
        assert not guarded.begun, name
    said = [("blazen-data-class", "internal"), ("blazen-workflow", "analyze")]
    assert (await invoke(remote, address, envelope, [remote.bearer(), *said])).result_json == b"1"


async def test_refs_and_answers_through_a_laxer_port(guarded: Guarded) -> None:
    """What a run with personal data left is not there for a laxer port: no ref, no answer, no events, nothing to cancel."""
    personal, internal = await guarded.connect("personal"), await guarded.connect("internal")
    result = await personal.run_remote_workflow("put", [], "null", invocation_id="one")
    [ref] = result.remote_refs.values()
    with pytest.raises(RefNotFoundError):
        await internal.deref(ref)
    assert await internal.list_refs() == ()
    assert await internal.release(ref) is False
    with pytest.raises(InvocationNotFoundError):
        await internal.cancel("one")
    with pytest.raises(InvocationNotFoundError):
        await anext(internal.attach("one"))
    with pytest.raises(InvocationConflictError):
        await internal.run_remote_workflow("put", [], "null", invocation_id="one")
    assert await personal.deref(ref) == b"value"
    assert guarded.begun == {"demo::put": 1}


async def test_policy_changes_while_it_runs(guarded: Guarded) -> None:
    """Calls after a change are under the new policy, with no restart and no call lost; a bad file changes nothing."""
    client, audit = await guarded.connect("internal"), await guarded.connect("personal", "audit")
    answered = 0

    async def calls(until: asyncio.Event) -> None:
        nonlocal answered
        while not until.is_set():
            assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
            answered += 1

    stop = asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(calls(stop))
        narrow = [flow("intake", ["analyze"], *CLASSES), flow("audit", ["count", "analyze"], "personal")]
        for _ in range(3):
            assert (await client.run_remote_workflow("put", [], "null")).result[1] == "internal"
            with pytest.raises(PermissionDeniedError):
                await audit.run_remote_workflow("analyze", [], "1")
            guarded.write(narrow)
            with pytest.raises(PermissionDeniedError):
                await client.run_remote_workflow("put", [], "null")
            assert (await audit.run_remote_workflow("analyze", [], "1")).result == 1
            guarded.policy.write_text("{")
            assert (await audit.run_remote_workflow("analyze", [], "1")).result == 1
            assert (await audit.describe()).policy.problem
            guarded.write(FLOWS)
            assert not (await audit.describe()).policy.problem
        stop.set()
    assert answered > 0
    assert guarded.begun["demo::put"] == 3


async def test_exception_that_is_over(guarded: Guarded) -> None:
    """A flow whose last day is past allows nothing, though sidecars rendered before still let it through."""
    guarded.write([FLOWS[0], flow("audit", ["count"], "personal", until=date(2020, 1, 1))])
    audit = await guarded.connect("personal", "audit")
    with pytest.raises(PermissionDeniedError):
        await audit.run_remote_workflow("count", [], "1")
    assert not guarded.begun


async def test_port_given_away(guarded: Guarded) -> None:
    """A port that is configured anew for a laxer class takes no data of a client that is for a stricter one."""
    remote = guarded.remote
    client = await guarded.connect("personal")
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
    old = dict(remote.mesh.table["peers"]["intake"]["egress"]["analyst"])
    await remote.mesh.sidecars["intake"].stop()
    swapped = {**old, "personal": old["public"], "public": old["personal"]}
    remote.mesh.table["peers"]["intake"]["egress"]["analyst"] = swapped
    remote.mesh.definition = parse_mesh(remote.mesh.table)
    await remote.mesh.start_sidecar("intake")
    with pytest.raises(PermissionDeniedError, match="stamps public, which is laxer than personal: nothing was sent"):
        await asyncio.wait_for(until_answered(client), 30)
    assert guarded.begun["demo::echo"] == 1


async def until_answered(client: PeerClient) -> None:
    """Call until somebody answers: connections to the sidecar that was stopped break first."""
    while True:
        with contextlib.suppress(TransportError):
            await client.run_remote_workflow("analyze", [], "1")
            return
