"""What a peer with a policy runs, and what it refuses before it runs anything: workflow, steps, class, proof, metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blazen_peer import (
    EncodeError,
    InvocationConflictError,
    InvocationNotFoundError,
    PeerClient,
    PermissionDeniedError,
    StartEvent,
    StopEvent,
    UnknownStepError,
    ValidationError,
    Workflow,
    WorkflowBuilder,
    WorkflowError,
)
from blazen_peer.policy import Policy
from tests.peer.policy.guarded import CLASSES, Guarded, flow, policy_of

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Guard = Callable[..., Awaitable[Guarded]]
Refusals = Callable[[], list[str]]

POLICY = policy_of(
    flow("intake", "analyst", ["analyze", "count", "by-size", "absent"], "personal", "internal"),
    flow("intake", "analyst", ["publish"], "public"),
    flow("audit", "analyst", ["count"], "personal"),
)


def workflows(peer: Guarded) -> None:
    """What the server has: *analyze* for internal data at the laxest, *count* that says nothing, one that the input decides."""
    peer.serve("analyze", "first", data_class="internal")
    peer.serve("count", "counted")
    peer.serve("publish", "published", data_class="public")
    peer.serve("secret", "hidden", data_class="public")
    peer.serve("by-size", "sized", data_class=lambda given: "internal" if given == "small" else "personal")


@pytest.fixture
async def peer(guarded: Guard) -> Guarded:
    return await guarded(POLICY, workflows)


ALLOWED = [
    pytest.param("intake", "personal", "analyze", [], id="the-whole-workflow"),
    pytest.param("intake", "personal", "analyze", ["first"], id="its-steps-by-name"),
    pytest.param("intake", "internal", "analyze", [], id="the-laxest-class-it-declares"),
    pytest.param("intake", "personal", "count", [], id="undeclared-with-the-strictest"),
    pytest.param("audit", "personal", "count", [], id="another-caller"),
    pytest.param("intake", "public", "publish", [], id="another-flow-of-the-pair"),
]


@pytest.mark.parametrize(("caller", "stamp", "workflow", "steps"), ALLOWED)
async def test_allowed(peer: Guarded, refusals: Refusals, caller: str, stamp: str, workflow: str, steps: list[str]) -> None:
    """What a flow names runs, once, with the stamp as its data class."""
    client = await peer.client(caller, stamp)
    assert (await client.run_remote_workflow(workflow, steps, '"x"')).result == "x"
    assert peer.begun.total() == 1
    assert refusals() == []


REFUSED = [
    pytest.param("intake", "personal", "secret", [], "no flow names the workflow 'secret'", id="no-flow-names-it"),
    pytest.param("intake", "personal", "no-such", [], "no flow names the workflow 'no-such'", id="nobody-has-it"),
    pytest.param("audit", "personal", "analyze", [], "no flow names the workflow 'analyze'", id="another-callers-workflow"),
    pytest.param("intake", "internal", "count", [], "declares no data class, so 'personal' alone", id="undeclared-and-laxer"),
    pytest.param(
        "intake", "internal", "by-size", ["sized"], "declares 'personal'; internal is laxer", id="the-input-is-stricter"
    ),
    pytest.param(
        "intake", "personal", "publish", [], "may be called with public data, not with personal", id="class-of-no-flow"
    ),
    pytest.param("intake", "personal", "analyze", ["counted"], "the step 'counted' is not of", id="a-step-of-another-workflow"),
    pytest.param("intake", "personal", "analyze", ["first", "counted"], "the step 'counted' is not of", id="one-foreign-step"),
    pytest.param("intake", "personal", "analyze", ["no-such"], "the step 'no-such' is not of", id="an-unknown-step"),
    pytest.param(
        "intake", "personal", "absent", ["first"], "no workflow of that name is registered", id="steps-of-no-workflow"
    ),
    pytest.param("intake", "personal", "", ["first"], "no flow names the workflow ''", id="no-name"),
    pytest.param("intake", "personal", "analyze\n", [], r"'analyze\\n'", id="a-name-with-a-newline"),
]


@pytest.mark.parametrize(("caller", "stamp", "workflow", "steps", "reason"), REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["invoke", "stream"])
async def test_refused(
    peer: Guarded, refusals: Refusals, caller: str, stamp: str, workflow: str, steps: list[str], reason: str, stream: bool
) -> None:
    """What no flow allows does not begin; the caller hears no more than that, the log has who, what, which class and why."""
    client = await peer.client(caller, stamp)
    with pytest.raises(PermissionDeniedError) as caught:
        await asked(client, workflow, steps, '"canary-of-the-payload"', stream=stream)
    assert str(caught.value) == (
        "the policy of analyst does not allow this call: its log says why, and blazen-mesh explain what would"
    )
    assert peer.begun.total() == 0
    [line] = refusals()
    assert f"spiffe://mesh.test/peer/{caller} with data class '{stamp}', workflow {workflow!r}: " in line
    assert reason.replace("\\\\", "\\") in line
    assert "canary" not in line
    assert "\n" not in line


async def asked(client: PeerClient, workflow: str, steps: list[str], text: str, *, stream: bool, **options: Any) -> Any:
    if not stream:
        return (await client.run_remote_workflow(workflow, steps, text, **options)).result
    events = client.stream_remote_workflow(workflow, steps, text, **options)
    return [event async for event in events][-1].data


STAMPS = [
    pytest.param((), "one data class must be said, and 0 are", id="none"),
    pytest.param(("personal", "internal"), "one data class must be said, and 2 are", id="two"),
    pytest.param(("personal", "personal"), "one data class must be said, and 2 are", id="the-same-twice"),
    pytest.param(("personal,internal",), "no data class is called 'personal,internal'", id="two-joined"),
    pytest.param(("secret",), "no data class is called 'secret'", id="unknown"),
    pytest.param(("",), "no data class is called ''", id="empty"),
    pytest.param(("PERSONAL",), "no data class is called 'PERSONAL'", id="in-capitals"),
    pytest.param(("public",), "may be called with personal, internal data, not with public", id="of-another-flow"),
]


@pytest.mark.parametrize(("stamps", "reason"), STAMPS)
async def test_stamps(peer: Guarded, refusals: Refusals, stamps: tuple[str, ...], reason: str) -> None:
    """Exactly one value counts as a stamp, and it must be a class that the flow names."""
    client = await peer.client("intake", *stamps)
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], "1")
    assert peer.begun.total() == 0
    [line] = refusals()
    assert reason in line


async def test_stamp_without_the_proof(peer: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """A stamp and an identity that no sidecar vouches for are nothing: the caller is nobody."""
    port = await peer.port("intake", "personal")
    client = await port.connect()
    port.proof = ""
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], "1")
    port.proof = "f0rged" * 8
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], "1")
    assert peer.begun.total() == 0


async def test_no_flow_from_the_caller(peer: Guarded, refusals: Refusals) -> None:
    """A caller of whom the policy knows nothing may call nothing at all, not even describe."""
    client = await peer.client("stranger", "personal")
    for call in (client.describe(), client.list_refs(), client.cancel("x"), asked(client, "analyze", [], "1", stream=True)):
        with pytest.raises(PermissionDeniedError):
            await call
    assert peer.begun.total() == 0
    lines = refusals()
    assert len(lines) == 4
    assert all("no flow lets stranger call analyst" in line for line in lines)


SAID = [
    pytest.param(
        [("blazen-workflow", "count")], "the metadata names the workflow 'count', the payload 'analyze'", id="workflow"
    ),
    pytest.param([("blazen-data-class", "personal")], "through a port that stamps internal, which is laxer", id="class"),
    pytest.param([("blazen-data-class", "top")], "'top' data, a class that this mesh does not have", id="unknown-class"),
]


@pytest.mark.parametrize(("said", "reason"), SAID)
async def test_metadata_that_says_otherwise(
    peer: Guarded, refusals: Refusals, said: list[tuple[str, str]], reason: str
) -> None:
    """Metadata that names another workflow than the payload, or a stricter class than the stamp, is refused."""
    port = await peer.port("intake", "internal")
    client = await port.connect(lane="never")  # a lane's frames have no metadata of their own
    client._about = without_workflow(client._about)  # type: ignore[method-assign]
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1  # absent is no mismatch: Blazen's own clients
    port.extra = tuple(said)
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], "1")
    assert peer.begun.total() == 1
    [line] = refusals()
    assert reason in line


@pytest.mark.parametrize("name", ["blazen-workflow", "blazen-data-class"])
async def test_metadata_twice(peer: Guarded, name: str) -> None:
    """The same metadata twice is refused before anything is asked."""
    port = await peer.port("intake", "personal")
    port.extra = ((name, "analyze"), (name, "analyze"))
    client = await port.connect(lane="never")
    with pytest.raises(EncodeError, match="sent twice"):
        await client.run_remote_workflow("analyze", [], "1")
    assert peer.begun.total() == 0


def without_workflow(about: Any) -> Any:
    return lambda *args: about(*args)._replace(workflow=None)


async def test_a_flow_may_name_what_is_not_there(peer: Guarded) -> None:
    """A workflow that a flow names and nobody registered is unknown, and not forbidden."""
    client = await peer.client("intake", "personal")
    with pytest.raises(UnknownStepError, match="unknown workflow `absent`"):
        await client.run_remote_workflow("absent", [], "1")


async def test_a_step_twice(peer: Guarded) -> None:
    """A step named twice is a bad request, as without a policy."""
    client = await peer.client("intake", "personal")
    with pytest.raises(EncodeError):
        await client.run_remote_workflow("analyze", ["first", "first"], "1")
    assert peer.begun.total() == 0


async def test_steps_are_the_workflows_own(guarded: Guard) -> None:
    """Under one id the registry may hold another step than the workflow does: with a policy it is the workflow's that runs."""

    async def own(event: StartEvent) -> StopEvent:
        return StopEvent(result="the workflow's own")

    def prepare(peer: Guarded) -> None:
        peer.serve("other", "first")
        builder = WorkflowBuilder("analyze", data_class="internal")
        peer.registry.register_workflow(builder.step("first", None, None, own).build())

    peer = await guarded(POLICY, prepare)
    client = await peer.client("intake", "internal")
    assert (await client.run_remote_workflow("analyze", ["first"], "1")).result == "the workflow's own"
    assert peer.begun.total() == 0


async def test_the_input_decides(peer: Guarded) -> None:
    """A workflow's function of the input says how strict the stamp must be for this input."""
    internal, personal = await peer.client("intake", "internal"), await peer.client("intake", "personal")
    assert (await internal.run_remote_workflow("by-size", [], '"small"')).result == "small"
    assert (await personal.run_remote_workflow("by-size", [], '"large"')).result == "large"
    with pytest.raises(PermissionDeniedError):
        await internal.run_remote_workflow("by-size", [], '"large"')
    assert peer.begun["sized"] == 2


def broken(given: Any) -> str:
    raise KeyError(given)


@pytest.mark.parametrize(
    ("data_class", "reason"),
    [
        pytest.param(broken, "its data_class= raised KeyError", id="raises"),
        pytest.param(lambda given: None, "its data_class= gave NoneType, not a name", id="nothing"),
        pytest.param(lambda given: given, "its data_class= gave what names no data class", id="no-name"),
        pytest.param(lambda given: "secret", "declares the data class 'secret', which this mesh does not have", id="unknown"),
    ],
)
async def test_a_function_that_gives_no_class(guarded: Guard, refusals: Refusals, data_class: Any, reason: str) -> None:
    """What cannot tell the class of an input lets nothing run, and its error's text, which may hold the input, is not told."""
    peer = await guarded(POLICY, lambda peer: peer.serve("analyze", "first", data_class=data_class))
    client = await peer.client("intake", "personal")
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], '"canary of the input"')
    assert peer.begun.total() == 0
    [line] = refusals()
    assert reason in line
    assert "canary" not in line


async def test_run_knows_its_class(guarded: Guard) -> None:
    """The run's data is of the class that the call was stamped with, though its workflow would take a laxer one."""

    def prepare(peer: Guarded) -> None:
        @peer.registry.step("tells")
        async def tells(event: StartEvent, ctx: Any) -> StopEvent:
            return StopEvent(result=ctx.data_class)

        peer.registry.register_workflow(Workflow("analyze", ["tells"], registry=peer.registry, data_class="internal"))

    peer = await guarded(POLICY, prepare)
    for stamp in ("personal", "internal"):
        client = await peer.client("intake", stamp)
        assert (await client.run_remote_workflow("analyze", [], "1")).result == stamp


async def test_repeats(peer: Guarded) -> None:
    """The data class is part of what a repeat has in common with its first; a repeat that is not allowed gets no answer."""
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    assert (await personal.run_remote_workflow("analyze", [], "1", invocation_id="one")).result == 1
    assert (await personal.run_remote_workflow("analyze", [], "1", invocation_id="one")).result == 1
    with pytest.raises(InvocationConflictError):
        await internal.run_remote_workflow("analyze", [], "1", invocation_id="one")
    assert (await personal.run_remote_workflow("count", [], "1", invocation_id="two")).result == 1
    with pytest.raises(PermissionDeniedError):
        await internal.run_remote_workflow("count", [], "1", invocation_id="two")
    assert peer.begun == {"first": 1, "counted": 1}


async def test_a_refusal_is_not_stored(guarded: Guard) -> None:
    """A call that was refused ran nothing and left nothing: when the policy allows it, the same id runs."""
    peer = await guarded(POLICY, workflows)
    client = await peer.client("intake", "internal")
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("secret", [], "1", invocation_id="one")
    with pytest.raises(InvocationNotFoundError):
        await client.cancel("one")
    assert (await client.run_remote_workflow("analyze", [], "1", invocation_id="one")).result == 1


def without_classes() -> Policy:
    return Policy((), (flow("intake", "analyst", ["analyze"]),))


async def test_without_data_classes(guarded: Guard, refusals: Refusals) -> None:
    """A policy without data classes says who may call which workflow; a stamp has no place in it."""
    peer = await guarded(without_classes(), lambda peer: (peer.serve("analyze", "first"), peer.serve("count", "counted")))
    client = await peer.client("intake")
    assert (await client.run_remote_workflow("analyze", [], "1")).result == 1
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("count", [], "1")
    with pytest.raises(PermissionDeniedError):
        await (await peer.client("intake", "personal")).run_remote_workflow("analyze", [], "1")
    assert peer.begun == {"first": 1}
    assert len(refusals()) == 2


async def test_a_workflow_that_declares_what_the_mesh_lacks(guarded: Guard) -> None:
    """A workflow that wants a data class is not run in a mesh that has none."""
    peer = await guarded(without_classes(), lambda peer: peer.serve("analyze", "first", data_class="personal"))
    with pytest.raises(PermissionDeniedError):
        await (await peer.client("intake")).run_remote_workflow("analyze", [], "1")
    assert peer.begun.total() == 0


async def test_another_nodes_policy(guarded: Guard, refusals: Refusals) -> None:
    """The policy of another node allows nothing here, and the log says what may be wrong."""
    peer = await guarded(policy_of(flow("intake", "gpu", ["analyze"], "personal")), workflows)
    client = await peer.client("intake", "personal")
    with pytest.raises(PermissionDeniedError):
        await client.run_remote_workflow("analyze", [], "1")
    assert "no flow of this policy is to or from analyst (is it another node's file?)" in refusals()[-1]


@pytest.mark.parametrize("path", ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/no.such.Service/Method"])
async def test_methods_that_no_flow_opens(peer: Guarded, refusals: Refusals, path: str) -> None:
    """Reflection and unknown methods are refused, whoever calls."""
    client = await peer.client("intake", "personal")
    call = client._endpoint().channel.unary_unary(path)
    with pytest.raises(PermissionDeniedError):
        await client._answer(call(b"", metadata=client._authorization(), timeout=10))
    assert f"no flow opens the method {path!r}" in refusals()[0]


async def test_health_stays_open(peer: Guarded) -> None:
    """Sidecars and supervisors ask for health without a flow; the answer names the policy and says whether it is stale."""
    port = await peer.port("stranger")
    client = await port.connect()
    digest = peer.server._policy.state.digest if peer.server._policy else ""
    assert client._traits.policy == digest


def test_what_a_policy_demands(proof_file: Any) -> None:
    """A server with a policy and without a token is refused at once: nobody could be proven."""
    from blazen_peer import PeerServer

    with pytest.raises(ValidationError, match="a policy demands a token"):
        PeerServer("analyst", policy=POLICY, sidecar_proof_file=proof_file)


async def test_what_a_policy_demands_of_the_listener(guarded: Guard) -> None:
    """Without the sidecar's proof, or direct TLS, nobody could be proven: the server does not start."""
    from blazen_peer import PeerServer

    server = PeerServer("analyst", policy=POLICY, token="t0ken-" * 8)
    with pytest.raises(ValidationError, match="a policy demands the sidecar's proof or direct TLS"):
        await server.serve("127.0.0.1:0")


def test_classes_are_in_order() -> None:
    """The strictest class comes first in these tests."""
    assert [each.name for each in CLASSES] == ["personal", "internal", "public"]


async def test_cancelled_while_it_runs(guarded: Guard) -> None:
    """Cancel goes through the policy as well, and reaches the run through a port as strict as its own."""
    held = asyncio.Event()

    def prepare(peer: Guarded) -> None:
        @peer.registry.step("holds")
        async def holds(event: StartEvent) -> StopEvent:
            held.set()
            await asyncio.sleep(300)
            return StopEvent()

        peer.registry.register_workflow(Workflow("analyze", ["holds"], registry=peer.registry, data_class="internal"))

    peer = await guarded(POLICY, prepare)
    personal, internal = await peer.client("intake", "personal"), await peer.client("intake", "internal")
    call = asyncio.create_task(personal.run_remote_workflow("analyze", [], "1", 60, invocation_id="one"))
    async with asyncio.timeout(30):
        await held.wait()
        with pytest.raises(InvocationNotFoundError):
            await internal.cancel("one")
        assert (await personal.cancel("one")).outcome == "stopped"
        with pytest.raises(WorkflowError, match="workflow cancelled"):
            await call
