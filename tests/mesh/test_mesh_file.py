"""``mesh.toml``: what it may say, and every way in which it may not."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.address import TcpAddress, UnixAddress, parse_address, parse_tcp
from blazen_mesh.address_book import address_book
from blazen_mesh.mesh import MeshError, Way, load_mesh, parse_mesh
from blazen_peer.flows import DataClass
from blazen_peer.flows import Flow as PolicyFlow
from blazen_peer.identity import PeerId
from blazen_peer.policy import Policy

GOOD = """
trust_domain = "mesh.test"
[peers.a]
sidecar = "127.0.0.1:1001"
listen = "127.0.0.1:1002"
egress.b = 1003
[peers.b]
sidecar = "127.0.0.1:1004"
listen = "127.0.0.1:1005"
[[flows]]
from = "a"
to = "b"
workflows = ["work"]
why = "test"
"""

CLASSED = """
trust_domain = "mesh.test"
regions = ["eu", "us"]
[[data]]
name = "personal"
regions = ["eu"]
why = "people's own words"
[[data]]
name = "internal"
regions = ["eu", "us"]
why = "ours"
[peers.a]
region = "eu"
sidecar = "127.0.0.1:1001"
listen = ["127.0.0.1:1002", "unix:/run/a.sock"]
egress.b = { personal = 1003, internal = { port = 1004, inject_token = true } }
egress.c = { internal = 1005 }
[peers.b]
region = "eu"
sidecar = "127.0.0.1:1006"
listen = "127.0.0.1:1007"
[peers.c]
region = "us"
sidecar = "127.0.0.1:1008"
listen = "127.0.0.1:1009"
[[flows]]
from = "a"
to = "b"
workflows = ["work", "rest"]
data = ["internal", "personal"]
why = "test"
[[flows]]
from = "a"
to = "c"
workflows = ["work"]
data = ["internal"]
why = "an exception"
until = 2027-01-31
"""

REFUSED = [
    pytest.param("trust_domain", "Mesh!", "trust_domain: trust domain 'Mesh!' is not valid", id="trust-domain"),
    pytest.param("trust_domain", None, "trust_domain: missing", id="no-trust-domain"),
    pytest.param("peers", {}, "peers: at least one is needed", id="no-peers"),
    pytest.param("flow", [], "flow: unknown key", id="unknown-key"),
    pytest.param("peers.a.liste", "x", "peers.a.liste: unknown key", id="unknown-peer-key"),
    pytest.param("peers.-a", {"sidecar": "127.0.0.1:1", "listen": "127.0.0.1:2"}, "peers.-a: node id '-a'", id="node-id"),
    pytest.param("peers.a.sidecar", None, "peers.a.sidecar: missing", id="no-sidecar"),
    pytest.param("peers.a.sidecar", "127.0.0.1", "peers.a.sidecar: '127.0.0.1' is not HOST:PORT", id="no-port"),
    pytest.param("peers.a.sidecar", "127.0.0.1:0", "peers.a.sidecar: '127.0.0.1:0' is not HOST:PORT", id="port-0"),
    pytest.param("peers.a.sidecar", 15001, "peers.a.sidecar: write it as text", id="address-is-a-number"),
    pytest.param("peers.a.listen", "10.0.0.1:50051", "peers.a.listen: 10.0.0.1:50051 is not on loopback", id="open-peer"),
    pytest.param("peers.a.listen", "0.0.0.0:50051", "peers.a.listen: 0.0.0.0:50051 is not on loopback", id="open-to-all"),
    pytest.param("peers.a.listen", "localhost:50051", "is not on loopback", id="a-name-is-not-loopback"),
    pytest.param("peers.a.listen", "unix:peer.sock", "needs an absolute path", id="relative-socket"),
    pytest.param("peers.a.listen", "unix:/" + "x" * 107, "has 108 bytes, and the system allows 107", id="long-socket"),
    pytest.param("peers.a.bind", "a.internal:1", "peers.a.bind: a.internal:1 is a name", id="bind-to-a-name"),
    pytest.param("peers.a.egress.b", 0, "peers.a.egress.b.port: Input should be greater than or equal to 1", id="egress-0"),
    pytest.param("peers.a.egress.b", "16001", "peers.a.egress.b: a port, or a table with a port, is needed", id="egress-text"),
    pytest.param("peers.a.egress.b", True, "peers.a.egress.b: a port, or a table with a port, is needed", id="egress-true"),
    pytest.param("peers.a.run", {"app": "a;b"}, "peers.a.run.app: not the name of a Python module", id="app"),
    pytest.param("peers.a.run", {"app": "a", "env": {"A": 1}}, "peers.a.run.env.A: Input should be a valid string", id="env"),
    pytest.param("connection_age_secs", 86400, "connection_age_secs: Input should be less than or equal to 21600", id="age"),
    pytest.param("telemetry", {"otlp": "x"}, "telemetry.otlp: 'x' is not HOST:PORT", id="otlp"),
    pytest.param("flows.0.why", " ", "flows[0].why: must not be empty", id="no-reason"),
    pytest.param("flows.0.workflows", None, "flows[0].workflows: missing", id="no-workflows-key"),
    pytest.param("flows.0.workflows", [], "flows[0].workflows: at least one is needed", id="no-workflows"),
    pytest.param("flows.0.workflows", "work", "flows[0].workflows: a list is needed", id="workflows-as-text"),
    pytest.param("flows.0.workflows", ["*"], "flows[0].workflows[0]: '*': there is no wildcard: name every", id="any-workflow"),
    pytest.param("flows.0.workflows", ["work*"], "'work*': there is no wildcard: name every workflow", id="workflow-pattern"),
    pytest.param("flows.0.workflows", ["work", "work"], "flows[0].workflows: work is there twice", id="workflow-twice"),
    pytest.param("flows.0.to", "*", "flows[0].to: '*': there is no wildcard: name every peer", id="any-callee"),
    pytest.param("flows.0.from", "*", "flows[0].from: '*': there is no wildcard: name every peer", id="any-caller"),
    pytest.param("flows.0.data", ["x"], "flows[0].data: this mesh has no data classes", id="data-without-classes"),
    pytest.param("flows.0.until", "2027-01-31", "flows[0].until: write it as a date without quotes", id="until-as-text"),
    pytest.param("peers.a.region", "eu", "peers.a.region: this mesh has no regions", id="region-without-regions"),
    pytest.param("peers.a.listen", [], "peers.a.listen: at least one is needed", id="no-listen"),
    pytest.param(
        "peers.a.listen", ["127.0.0.1:9", "1.2.3.4:5"], "peers.a.listen: 1.2.3.4:5 is not on loopback", id="open-replica"
    ),
    pytest.param("peers.a.listen", ["127.0.0.1:9"] * 2, "peers.a.listen[1]: 127.0.0.1:9 is taken by", id="replica-twice"),
    pytest.param("peers.a.egress.b", {"x": 9}, "peers.a.egress.b.x: this mesh has no data classes", id="class-without-classes"),
    pytest.param("calls_per_sec", 0, "calls_per_sec: Input should be greater than or equal to 1", id="rate"),
    pytest.param("crl", "no", "crl: Input should be a valid boolean", id="crl"),
    pytest.param("flows.0.why", None, "flows[0].why: missing", id="reason-missing"),
    pytest.param("flows.0.to", "c", "flows[0].to: no peer is called 'c'; there are: a, b", id="unknown-callee"),
    pytest.param("flows.0.from", "c", "flows[0].from: no peer is called 'c'; there are: a, b", id="unknown-caller"),
    pytest.param("flows.0.to", "a", "flows[0]: a calls itself", id="to-itself"),
    pytest.param("flows", [], "peers.a.egress.b: no flow lets a call b", id="egress-without-flow"),
    pytest.param("peers.a.egress", {}, "peers.a.egress: no port for b, which flows[0] lets it call", id="flow-without-egress"),
    pytest.param("peers.b.sidecar", "127.0.0.1:1001", "127.0.0.1:1001 is given to more than one", id="one-sidecar-for-two"),
    pytest.param("peers.a.egress.b", 1002, "peers.a.egress.b: 127.0.0.1:1002 is taken by peers.a.listen", id="port-twice"),
    pytest.param("peers.b.listen", "127.0.0.1:1003", "127.0.0.1:1003 is taken by peers", id="port-of-a-neighbour"),
]

REFUSED_CLASSED = [
    pytest.param("regions", ["*"], "regions[0]: '*': there is no wildcard: name every region", id="any-region"),
    pytest.param("regions", ["EU"], "regions[0]: region 'EU' is not valid", id="region-name"),
    pytest.param("regions", ["eu.x"], "regions[0]: region 'eu.x' is not valid", id="region-with-a-dot"),
    pytest.param("regions", ["eu", "us", "eu"], "regions: eu is there twice", id="region-twice"),
    pytest.param("regions", [], "peers.a.region: this mesh has no regions", id="no-regions"),
    pytest.param("peers.a.region", None, "peers.a.region: missing; say one of eu, us", id="peer-without-region"),
    pytest.param(
        "peers.a.region", "asia", "peers.a.region: no region is called 'asia'; there are: eu, us", id="unknown-region"
    ),
    pytest.param("data.0.regions", [], "data[0].regions: say where personal data may be: eu, us", id="data-without-regions"),
    pytest.param("data.0.regions", ["*"], "data[0].regions[0]: '*': there is no wildcard", id="data-in-any-region"),
    pytest.param("data.0.regions", ["asia"], "data[0].regions: no region is called 'asia'", id="data-in-an-unknown-region"),
    pytest.param("data.0.regions", ["eu", "eu"], "data[0].regions: eu is there twice", id="data-region-twice"),
    pytest.param("data.0.why", None, "data[0].why: missing", id="data-without-reason"),
    pytest.param("data.0.name", "internal", "data: internal is there twice", id="data-twice"),
    pytest.param("data.0.name", "*", "data[0].name: '*': there is no wildcard: name every data class", id="any-data"),
    pytest.param("data.0.name", "port", "data[0].name: 'port' is a word of egress tables", id="data-called-port"),
    pytest.param("data.0.name", "a b", "data[0].name: data class 'a b' is not valid", id="data-name"),
    pytest.param("data", [], "flows[0].data: this mesh has no data classes", id="no-data"),
    pytest.param("flows.0.data", None, "flows[0].data: say which data may flow: personal, internal", id="flow-without-data"),
    pytest.param("flows.0.data", ["*"], "flows[0].data[0]: '*': there is no wildcard", id="flow-of-any-data"),
    pytest.param("flows.0.data", ["secret"], "flows[0].data: no data class is called 'secret'", id="flow-of-unknown-data"),
    pytest.param("flows.0.data", ["personal"] * 2, "flows[0].data: personal is there twice", id="flow-data-twice"),
    pytest.param(
        "flows.1.data", ["personal"], "flows[1].data: personal data may be in eu only, and c is in us", id="out-of-region"
    ),
    pytest.param("peers.a.egress.b", 1003, "peers.a.egress.b: give each data class a port of its own, like", id="one-port"),
    pytest.param("peers.a.egress.b.internal", None, "peers.a.egress.b: no port for internal data", id="no-port-for-a-class"),
    pytest.param(
        "peers.a.egress.c.personal", 9, "peers.a.egress.c.personal: no flow lets a send c personal", id="port-for-a-class"
    ),
    pytest.param(
        "peers.a.egress.c.secret", 9, "peers.a.egress.c.secret: no data class is called 'secret'", id="port-unknown-class"
    ),
    pytest.param("peers.a.egress.c", {}, "peers.a.egress.c: at least one is needed", id="no-ports"),
    pytest.param(
        "peers.a.egress.b.personal", 1004, "127.0.0.1:1004 is taken by peers.a.egress.b.personal", id="port-of-two-classes"
    ),
    pytest.param("peers.a.egress.b.personal", "x", "peers.a.egress.b.personal: a port, or a table with", id="class-port-text"),
    pytest.param("trust_domain", "x" * 254, "peers.a: trust domain", id="trust-domain-too-long-with-a-region"),
]


def changed(place: str, value: Any, text: str = GOOD) -> dict[str, Any]:
    """Return the good mesh with *value* at *place*, or without it when None."""
    table: Any = copy.deepcopy(tomllib.loads(text))
    *way, last = place.split(".")
    inner = table
    for part in way:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return table


def test_good_one() -> None:
    """The mesh that the refusals start from is taken."""
    mesh = parse_mesh(tomllib.loads(GOOD))
    assert (mesh.callers("b"), mesh.callees("a"), mesh.callers("a")) == (("a",), ("b",), ())
    assert str(mesh.identity("a")) == "spiffe://mesh.test/peer/a"
    assert mesh.ways("a") == (Way("b", None, 1003),)
    assert mesh.ways("b") == ()
    assert (mesh.crl, mesh.calls_per_sec, mesh.peers["a"].region) == (True, 10_000, None)


def test_good_one_with_classes() -> None:
    """Regions are in the identities; each data class has its own way, strictest first; replicas are all there."""
    mesh = parse_mesh(tomllib.loads(CLASSED))
    assert [str(mesh.identity(node)) for node in "ac"] == ["spiffe://eu.mesh.test/peer/a", "spiffe://us.mesh.test/peer/c"]
    assert mesh.ways("a") == (Way("b", "personal", 1003), Way("b", "internal", 1004, True), Way("c", "internal", 1005))
    assert [way.name for way in mesh.ways("a")] == ["egress b personal", "egress b internal", "egress c internal"]
    assert mesh.way("a", "b", "internal").address == "127.0.0.1:1004"
    assert mesh.peers["a"].listens == (TcpAddress("127.0.0.1", 1002), UnixAddress("/run/a.sock"))
    with pytest.raises(MeshError, match="no flow lets b call a with internal data"):
        mesh.way("b", "a", "internal")


@pytest.mark.parametrize(
    ("day", "ends"),
    [pytest.param(date(2027, 1, 31), False, id="last-day"), pytest.param(date(2027, 2, 1), True, id="day-after")],
)
def test_an_exception_ends(day: date, ends: bool) -> None:
    """After its last day a flow is gone, and its way, its callers and its permission with it; the file stays sound."""
    mesh = parse_mesh(tomllib.loads(CLASSED)).on(day)
    gone = mesh.policy().at_egress(mesh.identity("a"), mesh.identity("c"), "internal")
    assert (len(mesh.ways("a")), mesh.callers("c"), gone.allowed) == ((2, (), False) if ends else (3, ("a",), True))


def test_reason_of_several_lines() -> None:
    """A reason may be written on several lines; it is one line wherever it is shown."""
    mesh = parse_mesh(changed("flows.0.why", "\n  one\n  two \n"))
    assert [flow.why for flow in mesh.policy().flows] == ["one two"]


def test_policy() -> None:
    """The evaluator gets every flow, with identities, and every class in its order."""
    policy = parse_mesh(tomllib.loads(CLASSED)).policy()
    a, b, c = (PeerId(f"{region}.mesh.test", node) for region, node in (("eu", "a"), ("eu", "b"), ("us", "c")))
    assert policy == Policy(
        (DataClass("personal", ("eu",)), DataClass("internal", ("eu", "us"))),
        (
            PolicyFlow(a, b, frozenset({"work", "rest"}), frozenset({"personal", "internal"}), "test"),
            PolicyFlow(a, c, frozenset({"work"}), frozenset({"internal"}), "an exception", date(2027, 1, 31)),
        ),
    )


@pytest.mark.parametrize(
    ("replicas", "rate"), [pytest.param(1, 100, id="one"), pytest.param(3, 34, id="three"), pytest.param(200, 1, id="many")]
)
def test_policy_of(replicas: int, rate: int) -> None:
    """A node's peer gets the flows to and from it and the mesh's rate; replicas share that."""
    table = tomllib.loads(CLASSED)
    table["calls_per_sec"] = 100
    table["peers"]["b"]["listen"] = [f"127.0.0.1:{20_000 + n}" for n in range(replicas)]
    mesh = parse_mesh(table)
    found = mesh.policy_of("b")
    assert found == replace(mesh.policy(), flows=mesh.policy().flows[:1], calls_per_sec=rate)


def test_address_book() -> None:
    """A node's clients find each peer that it may call, by data class; others are not in it."""
    mesh = parse_mesh(tomllib.loads(CLASSED))
    assert address_book(mesh, "a") == {
        "node": "a",
        "region": "eu",
        "data": ["personal", "internal"],
        "peers": {
            "b": [
                {"data_class": "personal", "address": "127.0.0.1:1003"},
                {"data_class": "internal", "address": "127.0.0.1:1004"},
            ],
            "c": [{"data_class": "internal", "address": "127.0.0.1:1005"}],
        },
    }
    assert address_book(mesh, "c") == {"node": "c", "region": "us", "data": ["personal", "internal"], "peers": {}}
    plain = parse_mesh(tomllib.loads(GOOD))
    entry = {"data_class": None, "address": "127.0.0.1:1003"}
    assert address_book(plain, "a") == {"node": "a", "region": None, "data": [], "peers": {"b": [entry]}}


@pytest.mark.parametrize(("place", "value", "problem"), REFUSED_CLASSED)
def test_refused_with_classes(place: str, value: Any, problem: str) -> None:
    """What contradicts the regions or the data classes is refused, with its place in the file."""
    with pytest.raises(MeshError) as caught:
        parse_mesh(changed(place, value, CLASSED))
    assert any(problem in line for line in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(("place", "value", "problem"), REFUSED)
def test_refused(place: str, value: Any, problem: str) -> None:
    """What is wrong is refused, with its place in the file."""
    with pytest.raises(MeshError) as caught:
        parse_mesh(changed(place, value))
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_every_problem_at_once() -> None:
    """One reading tells all that is wrong."""
    table = changed("peers.a.listen", "1.2.3.4:5")
    table["peers"]["b"]["sidecar"] = "?"
    table["flows"][0]["why"] = ""
    table["more"] = 1
    with pytest.raises(MeshError) as caught:
        parse_mesh(table)
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "peers.a.listen",
        "peers.b.sidecar",
        "flows[0].why",
        "more",
    ]


def test_one_line_for_one_mistake() -> None:
    """A list whose only item is wrong is not told to be empty besides."""
    with pytest.raises(MeshError) as caught:
        parse_mesh(changed("flows.0.workflows", ["*"]))
    assert len(caught.value.problems) == 1, caught.value.problems


def test_same_workflow_twice() -> None:
    """A workflow is allowed once between two peers; other workflows may have a flow, and a reason, of their own."""
    table = tomllib.loads(GOOD)
    table["flows"].append({**table["flows"][0], "workflows": ["rest", "work"]})
    with pytest.raises(MeshError, match=r"flows\[1\]: a -> b work is allowed by flows\[0\] already"):
        parse_mesh(table)
    table["flows"][1]["workflows"] = ["rest"]
    assert parse_mesh(table).callers("b") == ("a",)


def test_same_workflow_with_other_data() -> None:
    """With data classes, a workflow may have one flow for each."""
    table = tomllib.loads(CLASSED)
    table["flows"].append({**table["flows"][0], "data": ["internal"], "workflows": ["rest"]})
    with pytest.raises(MeshError, match=r"flows\[2\]: a -> b rest with internal data is allowed by flows\[0\] already"):
        parse_mesh(table)
    table["flows"][0]["data"] = ["personal"]
    assert [way.data_class for way in parse_mesh(table).ways("a")] == ["personal", "internal", "internal"]


def test_machines_have_ports_of_their_own() -> None:
    """Two machines may use the same port numbers."""
    table = tomllib.loads(GOOD)
    table["peers"]["a"].update(sidecar="a.internal:15001", listen="127.0.0.1:50051")
    table["peers"]["b"].update(sidecar="b.internal:15001", listen="127.0.0.1:50051")
    assert len(parse_mesh(table).peers) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param(b"a = ", "not TOML: Invalid value (at end of document)", id="syntax"),
        pytest.param(b"\xff", "not TOML", id="not-utf-8"),
    ],
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """A file that is not there, or not TOML, is one clear line."""
    path = tmp_path / "mesh.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MeshError, match=r"mesh\.toml: ") as caught:
        load_mesh(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("127.0.0.1:1", TcpAddress("127.0.0.1", 1), id="ipv4"),
        pytest.param("[::1]:65535", TcpAddress("::1", 65535), id="ipv6"),
        pytest.param("analyst-1.internal:15001", TcpAddress("analyst-1.internal", 15001), id="name"),
        pytest.param("unix:/run/p.sock", UnixAddress("/run/p.sock"), id="unix"),
    ],
)
def test_address(text: str, address: Any) -> None:
    """An address is read as one writes it, and written back the same."""
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", ":1", "a:", "a:b", "a:65536", "a:00001x", "::1:5", "[a]:1", "a b:1", "a:-1", "a:١", "http://a:1", "a..b:1", "a\n:1"],
)
def test_not_an_address(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_tcp(text)
