"""The rendered configuration: as reviewed, and with its promises asserted one by one.

After a wanted change: ``UPDATE_RENDERED=1 pytest tests/mesh/test_rendered.py``, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh import limits
from blazen_mesh.address import TcpAddress
from blazen_mesh.discovery import objections
from blazen_mesh.mesh import Mesh, load_mesh, parse_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import ensure_secret, render_node, write_files
from blazen_mesh.tls import downstream
from blazen_mesh.xds import whole
from blazen_peer.errors import ValidationError
from blazen_peer.policy import METHODS

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
    """Return *node*'s whole configuration: its bootstrap, with all that Envoy reads from other files in it."""
    return whole(render_node(mesh, node, PATHS, **options))


def classed(**extra: Any) -> Mesh:
    """Return a mesh of two regions in which a may send b personal and internal data, and c internal data alone."""
    table = {
        "trust_domain": "mesh.test",
        "regions": ["eu", "us"],
        "data": [
            {"name": "personal", "regions": ["eu"], "why": "test"},
            {"name": "internal", "regions": ["eu", "us"], "why": "test"},
        ],
        "peers": {
            "a": {
                "region": "eu",
                "sidecar": "127.0.0.1:10",
                "listen": "127.0.0.1:20",
                "egress": {"b": {"personal": 31, "internal": 32}, "c": {"internal": 33}},
            },
            "b": {"region": "eu", "sidecar": "b.test:11", "listen": ["127.0.0.1:21", "unix:/run/b.sock"]},
            "c": {"region": "us", "sidecar": "127.0.0.1:12", "listen": "127.0.0.1:22", "egress": {"b": {"internal": 34}}},
        },
        "flows": [
            {"from": "a", "to": "b", "workflows": ["work"], "data": ["personal", "internal"], "why": "test"},
            {"from": "a", "to": "c", "workflows": ["work"], "data": ["internal"], "why": "test"},
            {"from": "c", "to": "b", "workflows": ["work"], "data": ["internal"], "why": "test"},
        ],
        **extra,
    }
    return parse_mesh(table)


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
    pytest.param(classed(), "a", id="classes-out"),
    pytest.param(classed(), "b", id="classes-in"),
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
def test_envoy_takes_it(mesh: Mesh, node: str, envoy: Path) -> None:
    """Envoy would run from it, and finds nothing deprecated in it."""
    assert objections(render_node(mesh, node, PATHS), envoy) == []


@pytest.mark.envoy
@pytest.mark.parametrize("name", ["envoy.json", "lds.json", "cds.json", "rds.json"])
def test_envoy_is_really_asked(name: str, envoy: Path) -> None:
    """What Envoy does not understand is reported with its reason, in whichever file it stands."""
    files = render_node(EXAMPLE, "intake", PATHS)
    document = json.loads(files[name])
    (document if name == "envoy.json" else document["resources"][0])["no_such_field"] = 1
    assert "no_such_field" in "".join(objections({**files, name: json.dumps(document)}, envoy))


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_always_mutual(mesh: Mesh, node: str) -> None:
    """Whatever the callers, a client certificate is demanded, and its name is pinned to exact ones of the mesh."""
    (context,) = found(rendered(mesh, node), "DownstreamTlsContext")
    assert context["require_client_certificate"] is True
    assert names(context) == [str(mesh.identity(name)) for name in sorted(mesh.peers)]


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
    assert pinned == {way.name: [str(mesh.identity(way.callee))] for way in mesh.ways(node)}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_tls_1_3_only(mesh: Mesh, node: str) -> None:
    """Minimum and maximum are both 1.3, both ways; sessions are never resumed; the bundle comes from the identity."""
    document = rendered(mesh, node)
    contexts = found(document, "DownstreamTlsContext") + found(document, "UpstreamTlsContext")
    assert len(contexts) == 1 + len(mesh.ways(node))
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
    """RBAC comes first and denies all by itself; for each data class the routes let in exactly the callers of the flows."""
    (manager,) = (item for item in found(rendered(mesh, node), "HttpConnectionManager") if item["stat_prefix"] == "ingress")
    first = manager["http_filters"][0]["typed_config"]
    assert first["@type"].endswith(".RBAC")
    assert first["rules"] == {"action": "ALLOW", "policies": {}}
    (host,) = manager["route_config"]["virtual_hosts"]
    *allowing, last = host["routes"]
    assert "typed_per_filter_config" not in last
    assert "headers" not in last["match"]
    let_in: dict[str | None, set[str]] = {}
    for route in allowing:
        (rules,) = found(route, "RBACPerRoute")
        assert rules["rbac"]["rules"]["action"] == "ALLOW"
        (policy,) = rules["rbac"]["rules"]["policies"].values()
        assert {rule["url_path"]["path"]["exact"] for rule in policy["permissions"]} == set(METHODS)
        stamps = [header["string_match"]["exact"] for header in route["match"].get("headers", [])]
        assert len(stamps) == bool(mesh.data)
        principals = {principal["authenticated"]["principal_name"]["exact"] for principal in policy["principals"]}
        assert let_in.setdefault(stamps[0] if stamps else None, principals) == principals
    expected: dict[str | None, set[str]] = {}
    for flow in mesh.flows:
        for name in flow.data or (None,):
            if flow.callee == node:
                expected.setdefault(name, set()).add(str(mesh.identity(flow.caller)))
    assert let_in == expected


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_each_way_stamps_its_class(mesh: Mesh, node: str) -> None:
    """An egress port strips the stamp of its callers, and writes its own on calls, answers and health checks, if it has one."""
    document = rendered(mesh, node)
    managers = {item["stat_prefix"]: item for item in found(document, "HttpConnectionManager")}
    for way in mesh.ways(node):
        manager = managers[way.name]
        assert {"remove": "x-blazen-data-class"} in manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
        (host,) = manager["route_config"]["virtual_hosts"]
        if way.data_class is None:
            assert host["response_headers_to_remove"] == ["x-blazen-data-class"]
            continue
        stamp = {"header": {"key": "x-blazen-data-class", "value": way.data_class}}
        for direction in ("request", "response"):
            assert host[f"{direction}_headers_to_add"] == [{**stamp, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
        (cluster,) = (each for each in document["static_resources"]["clusters"] if each["name"] == way.name)
        for check in cluster.get("health_checks", []):
            assert check["grpc_health_check"]["initial_metadata"] == [stamp]
    strip = managers["ingress"]["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    assert ({"remove": "x-blazen-data-class"} in strip) is not bool(mesh.data)


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_only_allowed_ways_exist(mesh: Mesh, node: str) -> None:
    """There is a loopback listener and a cluster for each allowed callee, and for nothing else; no port is shared."""
    resources = rendered(mesh, node)["static_resources"]
    expected = {"ingress", *(way.name for way in mesh.ways(node))}
    assert {listener["name"] for listener in resources["listeners"]} == expected
    assert {cluster["name"] for cluster in resources["clusters"]} - {"peer", "otlp"} == expected - {"ingress"}
    for listener in resources["listeners"]:
        assert listener["enable_reuse_port"] is False
        if listener["name"] != "ingress":
            assert listener["address"]["socket_address"]["address"] == "127.0.0.1"


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_time_and_repeats(mesh: Mesh, node: str) -> None:
    """The caller's deadline alone bounds a unary call; a stream ends within the connection's age; repeats are safe ones."""
    safe = "connect-failure,refused-stream,reset-before-request"
    managers = {item["stat_prefix"]: item for item in found(rendered(mesh, node), "HttpConnectionManager")}
    assert {manager["stream_idle_timeout"] for manager in managers.values()} == {"0s"}
    for prefix, manager in managers.items():
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        for method in METHODS:
            for route in routes:
                action, match = route["route"], route["match"]
                taken = re.fullmatch(match["safe_regex"]["regex"], method) if "safe_regex" in match else match["prefix"] == "/"
                if not taken or "retry_policy" not in action:
                    continue
                streams = method.rpartition("/")[2] in ("StreamSubWorkflowEvents", "Attach", "DerefChunks", "Watch", "Lane")
                bound = "1440s" if streams else "0s"
                assert (action["timeout"], action["idle_timeout"]) == ("0s", "0s")
                assert action["max_stream_duration"] == {"max_stream_duration": bound, "grpc_timeout_header_max": bound}
                reads = method.rpartition("/")[2] in ("DerefSessionRef", "Describe", "ListRefs", "Check")
                again = f"{safe},reset,unavailable" if reads and prefix != "ingress" else safe
                assert action["retry_policy"]["retry_on"] == again
                break


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
    assert pinged == {"ingress", *(way.name for way in mesh.ways(node))}


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_everything_is_bounded(mesh: Mesh, node: str) -> None:
    """Streams, requests, headers, buffers, connections, their age and memory have limits; streams above Envoy's 1,024."""
    document = rendered(mesh, node)
    resources = document["static_resources"]
    for cluster in resources["clusters"]:
        (threshold,) = cluster["circuit_breakers"]["thresholds"]
        assert threshold["max_requests"] == threshold["max_pending_requests"] == 4096
        assert cluster["connect_timeout"] in ("1s", "2s")
    for item in walk(resources):
        if "initial_stream_window_size" in item:
            assert item["max_concurrent_streams"] == 4096
    ages = [item["max_connection_duration"] for item in walk(resources) if "max_connection_duration" in item]
    assert ages == ["1800s"] * (1 + len(mesh.ways(node)))
    for manager in found(document, "HttpConnectionManager"):
        assert (manager["max_request_headers_kb"], manager["common_http_protocol_options"]["max_headers_count"]) == (60, 100)
    for options in found(document, "HttpProtocolOptions"):
        assert options["common_http_protocol_options"]["max_response_headers_kb"] == 60
    for item in resources["listeners"] + resources["clusters"]:
        assert item["per_connection_buffer_limit_bytes"] == 1024 * 1024
    (heap,) = found(document, "FixedHeapConfig")
    assert heap["max_heap_size_bytes"] == 512 * 1024 * 1024
    (connections,) = found(document, "DownstreamConnectionsConfig")
    assert connections["max_active_downstream_connections"] == 10240


@pytest.mark.parametrize("age_secs", [1, 10, 3600, 6 * 3600])
def test_age_is_shared_out(age_secs: int) -> None:
    """A connection, its goodbye, and a stream that began in its last moment are over within the mesh's connection age."""
    spent = limits.connection_secs(age_secs) + limits.drain_secs(age_secs) + limits.stream_secs(age_secs)
    assert spent <= age_secs


def test_several_hosts() -> None:
    """Of several hosts, or of a name, the healthy ones get the calls, by invocation id; a single address is taken as it is."""
    clusters = {each["name"]: each for node in "ab" for each in rendered(classed(), node)["static_resources"]["clusters"]}
    assert {name for name, each in clusters.items() if "outlier_detection" in each or "health_checks" in each} == {
        *("peer", "egress b personal", "egress b internal")
    }
    for name in ("peer", "egress b personal"):
        cluster = clusters[name]
        assert cluster["lb_policy"] == "RING_HASH"
        assert cluster["outlier_detection"]["max_ejection_percent"] == 100
        assert cluster["common_lb_config"]["healthy_panic_threshold"] == {"value": 1}
        (check,) = cluster["health_checks"]
        assert check["no_traffic_interval"] == check["interval"] == "3s"
        assert "locality" not in json.dumps(cluster["load_assignment"])
    hosts = [entry["endpoint"]["address"] for entry in clusters["peer"]["load_assignment"]["endpoints"][0]["lb_endpoints"]]
    assert hosts == [{"socket_address": {"address": "127.0.0.1", "port_value": 21}}, {"pipe": {"path": "/run/b.sock"}}]


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_logs_hold_no_secret(mesh: Mesh, node: str) -> None:
    """Every hop and the ingress's connections are logged, to standard output, without any header that a secret is in."""
    document = rendered(mesh, node)
    logs = found(document, "StdoutAccessLog")
    assert len(logs) == 2 + len(mesh.ways(node))
    formats = json.dumps([log["log_format"] for log in logs]).lower()
    assert "downstream_transport_failure_reason" in formats
    for word in ("authorization", "proof", "forwarded-client-cert", "dynamic_metadata"):
        assert word not in formats


def test_tracing_is_off_unless_asked_for() -> None:
    """Without a collector nothing of tracing is in the file; with one, only what an application began is traced."""
    assert "tracing" not in rendered(EXAMPLE, "intake")
    assert not found(rendered(EXAMPLE, "intake"), "OpenTelemetryConfig")
    document = rendered(EXAMPLE, "intake", otlp=TcpAddress("127.0.0.1", 4317))
    tracers = found(document, "OpenTelemetryConfig")
    assert [tracer["service_name"] for tracer in tracers] == ["intake-sidecar"] * 2
    assert all(manager["tracing"]["spawn_upstream_span"] for manager in found(document, "HttpConnectionManager"))
    assert {sampler["sampling_percentage"]["numerator"] for sampler in found(document, "TraceIdRatioBasedSamplerConfig")} == {0}
    assert len(found(document, "ParentBasedSamplerConfig")) == 2


def test_the_collector_is_not_asked_for_its_health() -> None:
    """A collector is no peer: dialled by name though it be, no health check and no ejection is for it."""
    clusters = rendered(EXAMPLE, "intake", otlp=TcpAddress("collector", 4317))["static_resources"]["clusters"]
    (collector,) = (each for each in clusters if each["name"] == "otlp")
    assert not {"health_checks", "outlier_detection"} & set(collector)


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


@pytest.mark.parametrize(("mesh", "node"), MESHES)
def test_lanes(mesh: Mesh, node: str) -> None:
    """The ingress tells streams, lanes among them, how long they may last and how many replicas there are; every hop finds the
    host of a call by what its id has in common with its lane's."""
    document = rendered(mesh, node)
    several = len(mesh.peer(node).listens) > 1
    assert len(found(document, "StatefulSession")) == several
    for cluster in document["static_resources"]["clusters"]:  # whoever names a replica is led there, whatever its health
        by_name = cluster.get("common_lb_config", {}).get("override_host_status", {}).get("statuses", ())
        assert ("UNHEALTHY" in by_name) == (cluster.get("lb_policy") == "RING_HASH")
    for manager in found(document, "HttpConnectionManager"):
        told = []
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            headers = {each["header"]["key"]: each["header"]["value"] for each in route.get("response_headers_to_add", ())}
            if route.get("route", {}).get("hash_policy"):
                (policy,) = route["route"]["hash_policy"]
                assert policy["header"]["header_name"] == "blazen-invocation-id"
                rewrite = policy["header"]["regex_rewrite"]
                assert re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], "0a1b~77ff") == "0a1b"
            if "Lane" in str(route["match"].get("safe_regex")):
                told.append(headers)
        if manager["stat_prefix"] == "ingress":
            replicas = len(mesh.peer(node).listens)
            expected = {"x-blazen-max-stream-secs": "1440", **({"x-blazen-replicas": str(replicas)} if replicas > 1 else {})}
            assert all(headers == expected for headers in told)
            assert told or not [flow for flow in mesh.policy().flows if flow.callee == mesh.identity(node)]
        else:
            assert told == [{}]
