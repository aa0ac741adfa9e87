"""The rendered configuration: as reviewed, and with its promises asserted one by one.

After a wanted change: ``UPDATE_RENDERED=1 pytest tests/mesh/test_rendered.py``, and read the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.address import TcpAddress
from blazen_mesh.binary import validate
from blazen_mesh.mesh import Mesh, load_mesh, parse_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import ensure_secret, render_node, write_files
from blazen_mesh.tls import downstream
from blazen_peer.errors import ValidationError

ENVOY_DIR = Path(__file__).parents[2] / "envoy"
PATHS = NodePaths(
    identity_dir="/etc/blazen/identity",
    config_dir="/etc/blazen/sidecar",
    admin_socket="/run/blazen/admin.sock",
    proof_file="/etc/blazen/sidecar/sidecar-proof",
    token_file="/run/secrets/token",
)
EXAMPLE = load_mesh(ENVOY_DIR / "mesh.toml")


def mesh_of(*flows: tuple[str, str], inject: bool = False, **extra: Any) -> Mesh:
    """Return a mesh of a, b and c with *flows*."""
    peers: dict[str, Any] = {}
    for index, node in enumerate("abc"):
        ways = {
            callee: {"port": 100 + 10 * index + ord(callee), "inject_token": inject}
            for caller, callee in flows
            if caller == node
        }
        peers[node] = {"sidecar": f"127.0.0.1:{10 + index}", "listen": f"127.0.0.1:{20 + index}", "egress": ways}
    allowed = [{"from": caller, "to": callee, "workflows": ["work"], "why": "test"} for caller, callee in flows]
    return parse_mesh({"trust_domain": "mesh.test", "peers": peers, "flows": allowed, **extra})


def rendered(mesh: Mesh, node: str, **options: Any) -> dict[str, Any]:
    """Return *node*'s bootstrap."""
    return json.loads(render_node(mesh, node, PATHS, **options)["envoy.json"])


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object inside *value*."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def found(document: Any, type_name: str) -> list[dict[str, Any]]:
    """Return the typed objects inside *document* whose type ends with *type_name*."""
    return [item for item in walk(document) if item.get("@type", "").endswith(f".{type_name}")]


def names(context: dict[str, Any]) -> list[str]:
    """Return the names that a TLS context takes; fail where it would take more than exact URIs."""
    validation = context["common_tls_context"]["combined_validation_context"]
    matchers = validation["default_validation_context"]["match_typed_subject_alt_names"]
    assert all(matcher["san_type"] == "URI" and set(matcher["matcher"]) == {"exact"} for matcher in matchers)
    return [matcher["matcher"]["exact"] for matcher in matchers]


MESHES = [
    pytest.param(EXAMPLE, "intake", id="example-intake"),
    pytest.param(EXAMPLE, "analyst", id="example-analyst"),
    pytest.param(mesh_of(), "a", id="no-flows"),
    pytest.param(mesh_of(("a", "b"), ("b", "c"), ("c", "b")), "b", id="three"),
    pytest.param(mesh_of(("a", "b"), inject=True, telemetry={"otlp": "collector:4317"}), "a", id="token-and-telemetry"),
]


@pytest.mark.parametrize("node", ["intake", "analyst"])
def test_example_is_rendered_as_reviewed(node: str) -> None:
    """What ``envoy/mesh.toml`` gives is what stands in ``envoy/rendered``, byte for byte."""
    paths = NodePaths(PATHS.identity_dir, PATHS.config_dir, PATHS.admin_socket, PATHS.proof_file)
    files = render_node(EXAMPLE, node, paths)
    golden = ENVOY_DIR / "rendered" / node
    if os.environ.get("UPDATE_RENDERED"):
        write_files(files, golden)
    on_disk = {str(path.relative_to(golden)): path.read_text() for path in golden.rglob("*") if path.is_file()}
    assert on_disk == files


@pytest.mark.envoy
@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_envoy_takes_it(mesh: Mesh, node: str, envoy: Path, short_dir: Path) -> None:
    """Envoy would start from it, and finds nothing deprecated in it."""
    home = str(short_dir)
    paths = NodePaths(f"{home}/id", home, f"{home}/admin.sock", f"{home}/proof", f"{home}/token")
    write_files(render_node(mesh, node, paths), short_dir)
    ensure_secret(short_dir / "proof")
    ensure_secret(short_dir / "token")
    (short_dir / "id").mkdir()
    assert validate(envoy, short_dir / "envoy.json") == []


@pytest.mark.envoy
def test_envoy_is_really_asked(envoy: Path, short_dir: Path) -> None:
    """A configuration that Envoy does not understand is reported with its reason."""
    (short_dir / "envoy.json").write_text('{"no_such_field": 1}')
    assert "no_such_field" in "".join(validate(envoy, short_dir / "envoy.json"))


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_always_mutual(mesh: Mesh, node: str) -> None:
    """Whatever the callers, a client certificate is demanded, and its name is pinned to exact ones of the mesh."""
    (context,) = found(rendered(mesh, node), "DownstreamTlsContext")
    assert context["require_client_certificate"] is True
    assert names(context) == [f"spiffe://{mesh.trust_domain}/peer/{name}" for name in sorted(mesh.peers)]


def test_no_name_to_pin() -> None:
    """To pin nothing is refused: to Envoy it would mean any name."""
    with pytest.raises(ValueError, match="no name to pin"):
        downstream([], PATHS)


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_callee_is_pinned(mesh: Mesh, node: str) -> None:
    """Each way out takes one server name, that of its callee, and shows our own certificate."""
    clusters = rendered(mesh, node)["static_resources"]["clusters"]
    pinned = {
        cluster["name"]: names(cluster["transport_socket"]["typed_config"])
        for cluster in clusters
        if "transport_socket" in cluster
    }
    assert pinned == {f"egress {callee}": [f"spiffe://{mesh.trust_domain}/peer/{callee}"] for callee in mesh.callees(node)}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_tls_1_3_only(mesh: Mesh, node: str) -> None:
    """Minimum and maximum are both 1.3, both ways; sessions are never resumed; the bundle comes from the identity."""
    document = rendered(mesh, node)
    contexts = found(document, "DownstreamTlsContext") + found(document, "UpstreamTlsContext")
    assert len(contexts) == 1 + len(mesh.callees(node))
    for context in contexts:
        common = context["common_tls_context"]
        assert set(common["tls_params"].values()) == {"TLSv1_3"}
        assert len(common["tls_params"]) == 2
        assert common["combined_validation_context"]["validation_context_sds_secret_config"]["name"] == "bundle"
        downstream_off = context.get("disable_stateless_session_resumption") and context.get(
            "disable_stateful_session_resumption"
        )
        assert downstream_off or context.get("max_session_keys") == 0


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_callers_are_the_flows(mesh: Mesh, node: str) -> None:
    """RBAC names exactly the callers of the flows, and comes before everything else."""
    (manager,) = (item for item in found(rendered(mesh, node), "HttpConnectionManager") if item["stat_prefix"] == "ingress")
    first = manager["http_filters"][0]["typed_config"]
    assert first["@type"].endswith(".RBAC")
    assert first["rules"]["action"] == "ALLOW"
    principals = [
        principal["authenticated"]["principal_name"]["exact"]
        for policy in first["rules"]["policies"].values()
        for principal in policy["principals"]
    ]
    assert principals == [f"spiffe://{mesh.trust_domain}/peer/{caller}" for caller in mesh.callers(node)]


def test_no_callers() -> None:
    """An empty list must not mean everyone: the rules are there, and allow nobody."""
    (rbac,) = found(rendered(mesh_of(), "a"), "RBAC")
    assert rbac["rules"] == {"action": "ALLOW", "policies": {}}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_only_allowed_ways_exist(mesh: Mesh, node: str) -> None:
    """There is a loopback listener and a cluster for each allowed callee, and for nothing else; no port is shared."""
    resources = rendered(mesh, node)["static_resources"]
    expected = {"ingress", *(f"egress {callee}" for callee in mesh.callees(node))}
    assert {listener["name"] for listener in resources["listeners"]} == expected
    assert {cluster["name"] for cluster in resources["clusters"]} - {"peer", "otlp"} == expected - {"ingress"}
    for listener in resources["listeners"]:
        assert listener["enable_reuse_port"] is False
        if listener["name"] != "ingress":
            assert listener["address"]["socket_address"]["address"] == "127.0.0.1"


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_no_time_limit_of_its_own(mesh: Mesh, node: str) -> None:
    """The caller's deadline is the only one, and what may be sent again is only what was never taken up."""
    document = rendered(mesh, node)
    routes = [item for item in walk(document) if "retry_policy" in item]
    assert len(routes) == 1 + len(mesh.callees(node))
    for route in routes:
        assert (route["timeout"], route["idle_timeout"]) == ("0s", "0s")
        assert route["max_stream_duration"]["grpc_timeout_header_max"] == "0s"
        assert route["retry_policy"]["retry_on"] == "connect-failure,refused-stream,reset-before-request"
    assert {manager["stream_idle_timeout"] for manager in found(document, "HttpConnectionManager")} == {"0s"}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_identity_and_proof_are_the_sidecars(mesh: Mesh, node: str) -> None:
    """The ingress writes identity and proof anew; every hop takes forged ones and Envoy's own steering headers off."""
    managers = {manager["stat_prefix"]: manager for manager in found(rendered(mesh, node), "HttpConnectionManager")}
    for prefix, manager in managers.items():
        mutations = manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
        assert {"remove": "x-blazen-sidecar-proof"} in mutations
        assert {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}} in mutations
        assert manager["forward_client_cert_details"] == ("SANITIZE_SET" if prefix == "ingress" else "SANITIZE")
    proof = managers["ingress"]["http_filters"][1]["typed_config"]
    assert proof["overwrite"] is True
    assert "allow_request_without_credential" not in proof
    assert proof["credential"]["typed_config"]["header"] == "x-blazen-sidecar-proof"


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_pings_between_sidecars_only(mesh: Mesh, node: str) -> None:
    """HTTP/2 keepalive is on the TLS hop; a Python gRPC server would answer it with "Too many pings"."""
    resources = rendered(mesh, node)["static_resources"]
    pinged = {
        item["name"]
        for item in resources["clusters"] + resources["listeners"]
        if any("connection_keepalive" in inner for inner in walk(item))
    }
    assert pinged == {"ingress", *(f"egress {callee}" for callee in mesh.callees(node))}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_everything_is_bounded(mesh: Mesh, node: str) -> None:
    """Streams, requests, buffers, connections and their age have limits, and the streams' is above Envoy's own 1,024."""
    resources = rendered(mesh, node)["static_resources"]
    for cluster in resources["clusters"]:
        (threshold,) = cluster["circuit_breakers"]["thresholds"]
        assert threshold["max_requests"] == threshold["max_pending_requests"] == 4096
        assert cluster["connect_timeout"] in ("1s", "2s")
    for item in walk(resources):
        if "initial_stream_window_size" in item:
            assert item["max_concurrent_streams"] == 4096
    ages = [item["max_connection_duration"] for item in walk(resources) if "max_connection_duration" in item]
    assert ages == ["3600s"] * (1 + len(mesh.callees(node)))


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_logs_hold_no_secret(mesh: Mesh, node: str) -> None:
    """Every hop and the ingress's connections are logged, to standard output, without any header that a secret is in."""
    document = rendered(mesh, node)
    logs = found(document, "StdoutAccessLog")
    assert len(logs) == 2 + len(mesh.callees(node))
    formats = json.dumps([log["log_format"] for log in logs]).lower()
    assert "downstream_transport_failure_reason" in formats
    for word in ("authorization", "proof", "forwarded-client-cert", "dynamic_metadata"):
        assert word not in formats


def test_tracing_is_off_unless_asked_for() -> None:
    """Without a collector nothing of tracing is in the file; with one, only what an application began is traced."""
    assert "tracing" not in render_node(EXAMPLE, "intake", PATHS)["envoy.json"]
    document = rendered(EXAMPLE, "intake", otlp=TcpAddress("127.0.0.1", 4317))
    tracers = found(document, "OpenTelemetryConfig")
    assert [tracer["service_name"] for tracer in tracers] == ["intake-sidecar"] * 2
    assert all(manager["tracing"]["spawn_upstream_span"] for manager in found(document, "HttpConnectionManager"))
    assert {sampler["sampling_percentage"]["numerator"] for sampler in found(document, "TraceIdRatioBasedSamplerConfig")} == {0}
    assert len(found(document, "ParentBasedSamplerConfig")) == 2


def test_names_are_looked_up_again() -> None:
    """A sidecar dialled by name uses STRICT_DNS, and binds to every interface unless told where."""
    table = {
        "trust_domain": "mesh.test",
        "peers": {
            "a": {"sidecar": "a.internal:1", "listen": "unix:/run/a.sock", "egress": {"b": 2}},
            "b": {"sidecar": "b.internal:1", "listen": "127.0.0.1:3", "bind": "10.0.0.7:4"},
        },
        "flows": [{"from": "a", "to": "b", "workflows": ["work"], "why": "test"}],
    }
    first, second = (rendered(parse_mesh(table), node)["static_resources"] for node in "ab")
    assert {cluster["name"]: cluster["type"] for cluster in first["clusters"]} == {"peer": "STATIC", "egress b": "STRICT_DNS"}
    assert first["listeners"][0]["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 1}  # noqa: S104
    assert second["listeners"][0]["address"]["socket_address"] == {"address": "10.0.0.7", "port_value": 4}


def test_injection_needs_a_token_file() -> None:
    """A port that injects the token, and no token to inject, is an error that says what to give."""
    paths = NodePaths(PATHS.identity_dir, PATHS.config_dir, PATHS.admin_socket, PATHS.proof_file)
    with pytest.raises(ValidationError, match="--token-file"):
        render_node(mesh_of(("a", "b"), inject=True), "a", paths)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"identity_dir": "certs/nodes/a"}, id="relative-identity"),
        pytest.param({"token_file": "token"}, id="relative-token"),
        pytest.param({"admin_socket": "/" + "x" * 107}, id="socket-of-108-bytes"),
    ],
)
def test_unusable_path(change: dict[str, str]) -> None:
    """A path that Envoy would read from somewhere else, or the kernel refuses, is refused."""
    usable = {"identity_dir": "/i", "config_dir": "/c", "admin_socket": "/a", "proof_file": "/p", "token_file": "/t"}
    with pytest.raises(ValidationError):
        NodePaths(**{**usable, **change})


def test_secret_is_made_once(tmp_path: Path) -> None:
    """A secret is fresh, for its owner alone, and stays."""
    first, second = tmp_path / "deep" / "one", tmp_path / "two"
    assert ensure_secret(first)
    assert ensure_secret(second)
    kept = first.read_text()
    assert not ensure_secret(first)
    assert first.read_text() == kept != second.read_text()
    assert first.stat().st_mode & 0o777 == 0o600
    assert len(kept) >= 43
