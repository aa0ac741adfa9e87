"""The policy's evaluator: what it allows, what it refuses and how it says so, and its laws."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from itertools import product
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from hypothesis import assume, given
from hypothesis import strategies as st

from blazen_peer.errors import ValidationError
from blazen_peer.flows import region_of
from blazen_peer.identity import PeerId
from blazen_peer.policy import INVOKE, METHODS, DataClass, Flow, Policy
from blazen_peer.transport.proto import control_pb2, peer_pb2

INTAKE, ANALYST = PeerId("eu.mesh.test", "intake"), PeerId("eu.mesh.test", "analyst")
GPU, ARCHIVE = PeerId("us.mesh.test", "gpu"), PeerId("us.mesh.test", "archive")
CLASSES = (DataClass("personal", ("eu",)), DataClass("internal", ("eu", "us")), DataClass("public", ("eu", "us")))
POLICY = Policy(
    CLASSES,
    (
        Flow(INTAKE, ANALYST, frozenset({"analyze"}), frozenset({"personal", "internal"}), "analysis"),
        Flow(INTAKE, ANALYST, frozenset({"translate"}), frozenset({"public"}), "translation"),
        Flow(ANALYST, GPU, frozenset({"embed"}), frozenset({"internal"}), "embeddings", date(2027, 1, 1)),
    ),
)
PLAIN = Policy((), (Flow(INTAKE, ANALYST, frozenset({"analyze"}), why="analysis"),))


def decided(**changed: Any) -> Any:
    """Decide the call that is allowed, with some of it *changed*."""
    call = {
        "caller": INTAKE,
        "callee": ANALYST,
        "workflow": "analyze",
        "data_class": "personal",
        "laxest": "internal",
        **changed,
    }
    return call.pop("policy", POLICY).decide(**call)


def test_allowed() -> None:
    """The call that the refusals start from is allowed, by its flow, and the server was the last one asked."""
    found = decided()
    assert (found.allowed, found.place, found.flow, found.fix) == (True, "server", POLICY.flows[0], "")
    assert found.reason == "allowed by the flow intake -> analyst: analysis"


REFUSED = [
    pytest.param({"caller": ANALYST, "callee": INTAKE}, "egress", "no flow lets analyst call intake", "add a", id="other-way"),
    pytest.param({"caller": GPU}, "egress", "personal data may be in eu only, and gpu is in us", "no flow can", id="region"),
    pytest.param(
        {"caller": PeerId("us.mesh.test", "intake"), "data_class": "internal"},
        *("egress", "no flow lets spiffe://us.mesh.test/peer/intake call analyst", "add a flow"),
        id="same-name-of-another-region",
    ),
    pytest.param({"data_class": None}, "egress", "one data class must be said, and 0 are", "personal, internal", id="no-class"),
    pytest.param({"data_class": "Personal"}, "egress", "no data class is called 'Personal'", "[[data]]", id="unknown-class"),
    pytest.param(
        {"caller": ANALYST, "callee": GPU, "workflow": "embed", "data_class": "public"},
        *("egress", "analyst -> gpu: internal data may flow there, public may not", "add 'public' to the data"),
        id="class-of-no-flow",
    ),
    pytest.param(
        {"method": "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"},
        *("ingress", "no flow opens the method '/grpc.reflection", "reflection"),
        id="method",
    ),
    pytest.param({"workflow": "embed"}, "server", "the flows name analyze, translate", "add 'embed'", id="workflow"),
    pytest.param({"workflow": "analyze "}, "server", "no flow names the workflow 'analyze '", "add", id="workflow-and-space"),
    pytest.param(
        {"workflow": "translate", "laxest": "public"},
        *("server", "'translate' may be called with public data, not with personal", "add 'personal' to the data"),
        id="class-of-another-workflow",
    ),
    pytest.param(
        {"data_class": "internal", "laxest": None},
        *("server", "declares no data class, so 'personal' alone is taken; internal is laxer", "data_class='internal'"),
        id="declares-nothing",
    ),
    pytest.param(
        {"data_class": "internal", "laxest": "personal"},
        *("server", "declares 'personal'; internal is laxer", "call it with personal data"),
        id="laxer-than-declared",
    ),
    pytest.param({"laxest": "secret"}, "server", "'secret', which this mesh does not", "declare one of", id="bad-declared"),
    pytest.param({"said_workflow": "translate"}, "server", "the metadata names the workflow 'transl", "one name", id="said"),
    pytest.param(
        {"data_class": "internal", "run_class": "personal"},
        *("server", "a run with personal data, through a port that stamps internal", "the port that stamps personal"),
        id="run-is-stricter",
    ),
    pytest.param({"run_class": "secret"}, "server", "'secret' data, a class that this mesh", "declare one of", id="bad-run"),
    pytest.param({"policy": PLAIN}, "egress", "'personal' is said, and this mesh has none", "[[data]]", id="no-classes"),
    pytest.param(
        {"policy": PLAIN, "data_class": None},
        "server",
        "declares the data class 'internal', and this",
        "[[data]]",
        id="declares",
    ),
    pytest.param(
        {"policy": PLAIN, "data_class": None, "laxest": None, "run_class": "personal"},
        *("server", "a run with 'personal' data, and this mesh has no data classes", "[[data]]"),
        id="run-class-without-classes",
    ),
    pytest.param({"policy": Policy()}, "egress", "", "", id="empty"),
    pytest.param({"policy": Policy(CLASSES)}, "egress", "no flow lets", "add a flow", id="no-flows"),
]


@pytest.mark.parametrize(("changed", "place", "reason", "fix"), REFUSED)
def test_refused(changed: dict[str, Any], place: str, reason: str, fix: str) -> None:
    """One thing changed is refused at its place, with the reason and what would have to change, and by no flow."""
    found = decided(**changed)
    assert (found.allowed, found.place, found.flow) == (False, place, None), found
    assert reason in found.reason
    assert fix in found.fix


@pytest.mark.parametrize(
    ("changed", "flow"),
    [
        pytest.param({"data_class": "internal"}, 0, id="the-laxest-that-is-declared"),
        pytest.param({"laxest": "public"}, 0, id="declared-laxer-than-the-flow"),
        pytest.param({"laxest": None}, 0, id="the-strictest-without-a-declaration"),
        pytest.param({"said_workflow": "analyze"}, 0, id="said-the-same"),
        pytest.param({"run_class": "personal"}, 0, id="class-of-the-run"),
        pytest.param({"run_class": "public"}, 0, id="stricter-than-the-run"),
        pytest.param({"method": "/grpc.health.v1.Health/Check"}, 0, id="health"),
        pytest.param({"workflow": "translate", "data_class": "public", "laxest": "public"}, 1, id="second-flow"),
    ],
)
def test_still_allowed(changed: dict[str, Any], flow: int) -> None:
    """What a flow names is allowed, by that flow."""
    found = decided(**changed)
    assert found.flow is POLICY.flows[flow], found


def test_without_classes() -> None:
    """A mesh without data classes stamps none, takes away at the ingress what came, and the server refuses what is left."""
    assert PLAIN.decide(INTAKE, ANALYST, "analyze", None, laxest=None).allowed
    assert PLAIN.at_ingress(INTAKE, ANALYST, ["personal"], INVOKE).allowed
    assert not PLAIN.at_server(INTAKE, ANALYST, ["personal"], "analyze", laxest=None).allowed


@pytest.mark.parametrize(
    "stamps",
    [
        pytest.param([], id="none"),
        pytest.param(["personal", "personal"], id="twice"),
        pytest.param(["personal", "internal"], id="two"),
        pytest.param(["personal,internal"], id="joined"),
        pytest.param([""], id="empty"),
        pytest.param([" personal"], id="space"),
    ],
)
def test_exactly_one_stamp(stamps: list[str]) -> None:
    """Anything but exactly one value is refused, at the ingress and at the server."""
    assert not POLICY.at_ingress(INTAKE, ANALYST, stamps, INVOKE).allowed
    assert not POLICY.at_server(INTAKE, ANALYST, stamps, "analyze", laxest="public").allowed


def test_methods_are_the_real_services() -> None:
    """What a flow opens is every method of the peer's own services and of health, and nothing else."""
    files = (peer_pb2, control_pb2, health_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    assert set(METHODS) == {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert len(METHODS) == len(set(METHODS))


@pytest.mark.parametrize(
    ("day", "allowed"),
    [
        pytest.param(date(2026, 12, 31), True, id="before"),
        pytest.param(date(2027, 1, 1), True, id="the-last-day"),
        pytest.param(date(2027, 1, 2), False, id="after"),
    ],
)
def test_until(day: date, allowed: bool) -> None:
    """A flow with an end holds through that day."""
    assert POLICY.on(day).at_egress(ANALYST, GPU, "internal").allowed is allowed
    assert len(POLICY.on(day).flows) == (3 if allowed else 2)


def test_of_one_node() -> None:
    """A node gets the flows to and from it, and every class."""
    assert POLICY.of(ANALYST) == POLICY
    assert POLICY.of(GPU) == Policy(CLASSES, POLICY.flows[2:])
    assert POLICY.of(ARCHIVE) == Policy(CLASSES)


def test_rate() -> None:
    """A rate goes with the policy, of every node and day; a file from before there were any has none."""
    policy = replace(POLICY, calls_per_sec=5)
    assert Policy.from_json(policy.to_json()) == policy
    assert {part.calls_per_sec for part in (policy.of(GPU), policy.on(date(2027, 2, 1)), policy)} == {5}
    assert "calls_per_sec" not in POLICY.to_json()
    assert Policy.from_json(POLICY.to_json()).calls_per_sec is None


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        pytest.param(lambda: Flow(INTAKE, ANALYST, frozenset()), "intake -> analyst: no workflows", id="no-workflows"),
        pytest.param(lambda: Flow(INTAKE, ANALYST, frozenset({"*"})), "'\\*': there is no wildcard", id="any-workflow"),
        pytest.param(lambda: Flow(INTAKE, ANALYST, frozenset({"a*"})), "'a\\*': there is no wildcard", id="pattern"),
        pytest.param(lambda: Flow(INTAKE, ANALYST, frozenset({""})), "workflow '' is not valid", id="empty-workflow"),
        pytest.param(lambda: Flow(INTAKE, ANALYST, frozenset({"a\n"})), "is not valid", id="newline"),
        pytest.param(lambda: Flow(INTAKE, INTAKE, frozenset({"a"})), "without the mesh", id="to-itself"),
        pytest.param(lambda: DataClass("*"), "'\\*': there is no wildcard", id="any-class"),
        pytest.param(lambda: DataClass("a b"), "data class 'a b' is not valid", id="class-name"),
        pytest.param(lambda: Policy((DataClass("a"), DataClass("a"))), "is there twice", id="class-twice"),
        pytest.param(lambda: Policy((DataClass("a"), DataClass("b", ("eu",)))), "all must, or none", id="some-regions"),
        pytest.param(lambda: Policy(CLASSES, PLAIN.flows), "intake -> analyst: no data classes", id="flow-without-class"),
        pytest.param(lambda: Policy((), POLICY.flows), "in a policy that declares none", id="flow-with-class"),
        pytest.param(lambda: Policy(calls_per_sec=0), "calls_per_sec is 0: use 1 to", id="no-rate"),
        pytest.param(lambda: Policy(calls_per_sec=10_000_001), "calls_per_sec is 10000001", id="rate"),
        pytest.param(lambda: Policy(CLASSES[1:], POLICY.flows), "no data class is called 'personal'", id="unknown-class"),
        pytest.param(
            lambda: Policy(CLASSES, (Flow(ANALYST, GPU, frozenset({"embed"}), frozenset({"personal"})),)),
            "personal data may be in eu only, and gpu is in us",
            id="region",
        ),
    ],
)
def test_contradictions(make: Any, problem: str) -> None:
    """No policy can be made that says everything, says nothing clear, or contradicts itself."""
    with pytest.raises(ValidationError, match=problem):
        make()


def _edited(place: str, value: Any) -> str:
    document = json.loads(POLICY.to_json())
    inner: Any = document
    *way, last = place.split(".")
    for part in way:
        inner = inner[int(part)] if isinstance(inner, list) else inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "policy: Invalid JSON", id="empty"),
        pytest.param("[]", "policy: Input should be an object", id="array"),
        pytest.param(_edited("format", 2), "policy: format: Input should be 1", id="newer"),
        pytest.param(_edited("allow", "all"), "policy: allow: Extra inputs", id="unknown-key"),
        pytest.param(_edited("flows", None), "policy: flows: Field required", id="no-flows"),
        pytest.param(_edited("flows.0.workflows", []), "policy: intake -> analyst: no workflows", id="no-workflows"),
        pytest.param(_edited("flows.0.workflows", ["*"]), "there is no wildcard", id="wildcard"),
        pytest.param(_edited("flows.0.workflows", "analyze"), "policy: flows.0.workflows: Input should be", id="text"),
        pytest.param(_edited("flows.0.data", []), "policy: intake -> analyst: no data classes", id="no-data"),
        pytest.param(_edited("flows.0.data", ["*"]), "no data class is called '\\*'", id="any-data"),
        pytest.param(_edited("flows.0.from", "*"), "is not spiffe://", id="any-caller"),
        pytest.param(_edited("flows.0.until", "tomorrow"), "policy: flows.0.until: Input should be a valid date", id="until"),
        pytest.param(_edited("data.0.regions", ["us"]), "personal data may be in us only", id="region"),
    ],
)
def test_from_json_refuses(text: str, problem: str) -> None:
    """A document that was tampered with or cut short is refused in one line."""
    with pytest.raises(ValidationError, match=problem) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)


def test_to_json() -> None:
    """The document says what the flows say, in a stable order."""
    document = json.loads(POLICY.to_json())
    assert document["data"][0] == {"name": "personal", "regions": ["eu"]}
    assert document["flows"][0] == {
        "from": "spiffe://eu.mesh.test/peer/intake",
        "to": "spiffe://eu.mesh.test/peer/analyst",
        "workflows": ["analyze"],
        "data": ["personal", "internal"],
        "why": "analysis",
        "until": None,
    }
    assert document["flows"][2]["until"] == "2027-01-01"


# --- laws ---------------------------------------------------------------------------------------------------------------

PEERS = (INTAKE, ANALYST, GPU, ARCHIVE)
WORKFLOWS = ("analyze", "embed", "translate")
NAMES = tuple(each.name for each in CLASSES)
DAY = date(2027, 1, 1)


@st.composite
def flows(draw: st.DrawFn, with_classes: bool) -> Flow:
    """Any flow that the classes' regions allow."""
    caller, callee = draw(st.permutations(PEERS))[:2]
    both = [each.name for each in CLASSES if {region_of(caller), region_of(callee)} <= set(each.regions)]
    data = draw(st.frozensets(st.sampled_from(both), min_size=1)) if with_classes else frozenset()
    until = draw(st.none() | st.dates(DAY - timedelta(days=2), DAY + timedelta(days=2)))
    return Flow(
        caller, callee, draw(st.frozensets(st.sampled_from(WORKFLOWS), min_size=1)), data, draw(st.text(max_size=5)), until
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy of up to six flows, with data classes or without."""
    with_classes = draw(st.booleans())
    return Policy(CLASSES if with_classes else (), tuple(draw(st.lists(flows(with_classes), max_size=6))))


def every_call(policy: Policy) -> list[dict[str, Any]]:
    """Every call there is among the peers, by what the caller chooses."""
    stamps = NAMES if policy.classes else (None,)
    pairs = product(PEERS, PEERS, WORKFLOWS, stamps)
    return [{"caller": a, "callee": b, "workflow": workflow, "data_class": name} for a, b, workflow, name in pairs]


def allowed(policy: Policy, laxest: str | None = None) -> set[tuple[Any, ...]]:
    """The calls that *policy* allows to workflows that declare *laxest*."""
    return {tuple(call.values()) for call in every_call(policy) if policy.decide(**call, laxest=laxest).allowed}


@given(policies())
def test_default_deny(policy: Policy) -> None:
    """What is allowed is what some flow names, whole, and nothing beside it."""
    named = {
        (flow.caller, flow.callee, workflow, name)
        for flow in policy.flows
        for workflow in flow.workflows
        for name in (flow.classes or {None})
    }
    assert allowed(policy, NAMES[-1] if policy.classes else None) == named


@given(policies(), st.data())
def test_a_flow_more_never_narrows(policy: Policy, data: st.DataObject) -> None:
    """A flow added takes nothing away; a flow taken away adds nothing."""
    more = Policy(policy.classes, (*policy.flows, data.draw(flows(bool(policy.classes)))))
    laxest = data.draw(st.sampled_from((None, *NAMES))) if policy.classes else None
    assert allowed(policy, laxest) <= allowed(more, laxest)


@given(policies(), st.randoms())
def test_order_of_flows_does_not_matter(policy: Policy, random: Any) -> None:
    """The same flows in another order allow the same."""
    shuffled = list(policy.flows)
    random.shuffle(shuffled)
    assert allowed(policy) == allowed(Policy(policy.classes, tuple(shuffled)))


@given(
    policies(),
    st.sampled_from(PEERS),
    st.sampled_from(PEERS),
    st.sampled_from((*WORKFLOWS, "other")),
    st.none() | st.sampled_from((*NAMES, "other")),
    st.sampled_from((None, *NAMES)),
    st.sampled_from((*METHODS[:2], "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")),
    st.sampled_from((None, *WORKFLOWS)),
    st.sampled_from((None, *NAMES)),
)
def test_the_places_agree(
    policy: Policy,
    caller: PeerId,
    callee: PeerId,
    workflow: str,
    data_class: str | None,
    laxest: str | None,
    method: str,
    said: str | None,
    run_class: str | None,
) -> None:
    """``decide`` is the first refusal of the three; and the server never allows what a sidecar refuses for its flows."""
    stamps = [data_class] if data_class is not None else []
    more: dict[str, Any] = {"laxest": laxest, "said_workflow": said, "run_class": run_class}
    egress = policy.at_egress(caller, callee, data_class)
    ingress = policy.at_ingress(caller, callee, stamps, method)
    server = policy.at_server(caller, callee, stamps, workflow, **more)
    found = policy.decide(caller, callee, workflow, data_class, method=method, **more)
    assert found == next((place for place in (egress, ingress) if not place.allowed), server)
    assert egress.allowed or not server.allowed
    assert policy.at_ingress(caller, callee, stamps, INVOKE).allowed or not server.allowed
    assert all(place.allowed != bool(place.fix) for place in (egress, ingress, server)), "a refusal says what to do"


@given(policies(), st.sampled_from(NAMES), st.sampled_from(NAMES), st.data())
def test_stricter_is_allowed_where_the_flow_names_it(policy: Policy, one: str, other: str, data: st.DataObject) -> None:
    """Where laxer data may go, stricter may if the same flow names it, and only if some flow does: classes do not nest."""
    assume(one != other and policy.classes and policy.flows)
    stricter, laxer = sorted((one, other), key=NAMES.index)
    flow = data.draw(st.sampled_from(policy.flows))
    workflow = data.draw(st.sampled_from(sorted(flow.workflows)))
    laxest = data.draw(st.sampled_from(NAMES))
    call = {"caller": flow.caller, "callee": flow.callee, "workflow": workflow, "laxest": laxest}
    if policy.decide(**call, data_class=laxer).allowed:
        named = any(
            (each.caller, each.callee) == (flow.caller, flow.callee) and workflow in each.workflows and stricter in each.classes
            for each in policy.flows
        )
        assert policy.decide(**call, data_class=stricter).allowed is named


@given(policies(), st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_declaring_laxer_never_narrows(policy: Policy, one: str, other: str) -> None:
    """A workflow that declares a laxer class may be called by whoever could before; one that declares none is strictest."""
    assume(policy.classes)
    stricter, laxer = sorted((one, other), key=NAMES.index)
    assert allowed(policy, None) == allowed(policy, NAMES[0]) <= allowed(policy, stricter) <= allowed(policy, laxer)


@given(policies(), st.integers(-3, 3), st.integers(0, 3))
def test_time_only_takes_away(policy: Policy, start: int, later: int) -> None:
    """No day allows more than the day before, and none more than the policy without its dates."""
    day = DAY + timedelta(days=start)
    first, then = policy.on(day), policy.on(day + timedelta(days=later))
    assert allowed(then) <= allowed(first) <= allowed(policy)
    assert first.on(day + timedelta(days=later)) == then


@given(policies())
def test_nodes_decide_as_the_whole_mesh_does(policy: Policy) -> None:
    """A node's own share of the policy decides every call to and from that node as the whole does."""
    for call in every_call(policy):
        whole = policy.decide(**call, laxest=None).allowed
        assert policy.of(call["caller"]).at_egress(call["caller"], call["callee"], call["data_class"]).allowed or not whole
        assert policy.of(call["callee"]).decide(**call, laxest=None).allowed == whole


@given(policies())
def test_round_trip(policy: Policy) -> None:
    """JSON and back gives the same policy, and the same text."""
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.to_json() == policy.to_json()


@given(st.text() | st.binary() | st.integers(0, 500).map(lambda cut: POLICY.to_json()[:cut]))
def test_any_document_is_read_or_refused(text: str | bytes) -> None:
    """Whatever stands in the file, the answer is a policy or a ``ValidationError``."""
    with pytest.raises(ValidationError, match=r"^policy: "):
        Policy.from_json(text)
