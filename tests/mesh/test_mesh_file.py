"""``mesh.toml``: what it may say, and every way in which it may not."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.address import TcpAddress, UnixAddress, parse_address, parse_tcp
from blazen_mesh.mesh import MeshError, load_mesh, parse_mesh

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
why = "test"
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


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the good mesh with *value* at *place*, or without it when None."""
    table: Any = copy.deepcopy(tomllib.loads(GOOD))
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
    assert mesh.peers["a"].egress["b"].inject_token is False


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


def test_same_flow_twice() -> None:
    """A flow stands once."""
    table = tomllib.loads(GOOD)
    table["flows"] *= 2
    with pytest.raises(MeshError, match=r"flows\[1\]: a -> b is there already"):
        parse_mesh(table)


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
