"""``compose.yaml`` keeps its promises, in real containers: the workflow, its trace, refusals, secrets, rotation, restarts.

One way alone: the workflow is traced, and calls whose trace is sampled use no lane.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

Eventually = Callable[..., Any]
NODES = ("intake", "analyst", "gpu")
SERVICES = {"demo", *NODES, *(f"{node}-sidecar" for node in NODES)}
CANARY = "Kanarienvogel-7731"
DOCUMENT = f"{CANARY} sings. The peer calls the peer. The sidecar guards the peer, and {CANARY} listens."


def spans_of(mesh: Any, trace_id: str) -> list[dict[str, Any]]:
    """The spans of a trace, as Jaeger's API gives them, with their service and their tags as a table."""
    return [
        {
            "id": span["spanID"],
            "parent": next((ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"), None),
            "links": [ref["spanID"] for ref in span["references"] if ref["refType"] == "FOLLOWS_FROM"],
            "service": trace["processes"][span["processID"]]["serviceName"],
            "name": span["operationName"],
            "tags": {tag["key"]: tag["value"] for tag in [*span["tags"], *trace["processes"][span["processID"]]["tags"]]},
        }
        for trace in mesh.jaeger(f"/api/traces/{trace_id}") or []
        for span in trace["spans"]
    ]


def chain(spans: list[dict[str, Any]], leaf: dict[str, Any]) -> list[str]:
    """The services from the root of the trace to *leaf*, each named once for all its spans in a row."""
    known = {span["id"]: span for span in spans}
    found = [leaf]
    while found[-1]["parent"] in known:
        found.append(known[found[-1]["parent"]])
    services = [span["service"] for span in reversed(found)]
    return [name for index, name in enumerate(services) if index == 0 or services[index - 1] != name]


@pytest.fixture(scope="module")
def ran(mesh: Any) -> dict[str, Any]:
    """One run of the demo, with the canary in its document."""
    return dict(mesh.demo(DOCUMENT))


def test_result(ran: dict[str, Any]) -> None:
    """What both nodes found is in the parent's result: the analyst's numbers, the gpu's vector."""
    assert ran["result"]["sentences"] == 3
    assert ran["result"]["key_terms"]["peer"] == 3
    assert sum(value * value for value in ran["result"]["embedding"]) == pytest.approx(1, abs=0.01)


def test_one_trace_over_all_nodes(mesh: Any, ran: dict[str, Any], eventually: Eventually) -> None:
    """Jaeger has one trace of the run: every service is in it, and each step hangs below the hops that led to it."""

    def whole() -> list[dict[str, Any]] | None:
        spans = spans_of(mesh, ran["trace_id"])
        known = {span["id"] for span in spans}
        roots = [span for span in spans if span["parent"] not in known]
        return spans if {span["service"] for span in spans} >= SERVICES and len(roots) == 1 else None

    spans = eventually(whole)
    assert {span["service"] for span in spans} == SERVICES
    [embed] = [span for span in spans if span["name"] == "blazen.step gpu::embed"]
    assert chain(spans, embed) == ["demo", "intake", "intake-sidecar", "gpu-sidecar", "gpu"]
    [summarize] = [span for span in spans if span["name"] == "blazen.step my_app::summarize"]
    assert chain(spans, summarize) == ["demo", "intake", "intake-sidecar", "analyst-sidecar", "analyst"]
    runs = {span["tags"]["blazen.workflow.name"]: span for span in spans if span["name"].startswith("blazen.run ")}
    assert set(runs) == {"intake-document", "analyze-pipeline", "embed"}
    assert len({span["tags"]["blazen.run.id"] for span in runs.values()}) == 3
    told = ("blazen.node.id", "blazen.region", "blazen.data.class")
    assert {workflow: tuple(span["tags"][name] for name in told) for workflow, span in runs.items()} == {
        "intake-document": ("intake", "eu", "internal"),
        "analyze-pipeline": ("analyst", "eu", "personal"),
        "embed": ("gpu", "us", "internal"),
    }
    assert runs["embed"]["tags"]["blazen.caller"] == "spiffe://eu.mesh.example/peer/intake"
    assert runs["embed"]["links"] == runs["analyze-pipeline"]["links"] == [runs["intake-document"]["id"]]
    assert embed["tags"]["blazen.step.id"] == "gpu::embed"


def test_health_checks_make_no_traces(mesh: Any, ran: dict[str, Any]) -> None:
    """Sidecars ask each other for their health all the time, and no trace tells of it."""
    for service in ("intake-sidecar", "gpu-sidecar"):
        traces = mesh.jaeger(f"/api/traces?service={service}&limit=200")
        services = [{process["serviceName"] for process in trace["processes"].values()} for trace in traces]
        assert all("demo" in names or "intake" in names for names in services), services


def test_demo_draws_the_trace(mesh: Any) -> None:
    """For people the demo prints the result, the trace as a tree, and where Jaeger shows it."""
    shown = mesh.run("run", "--rm", "-T", "demo").stdout
    assert "result of intake-document" in shown
    tree = shown[shown.index("trace ") :].splitlines()
    assert any("blazen.step gpu::embed" in line and " gpu " in line for line in tree)
    assert any("ingress" in line and "analyst-sidecar" in line for line in tree)
    assert f"in Jaeger: http://localhost:{mesh.jaeger_port}/trace/" in shown


DIAL = "import socket; socket.create_connection(('{host}', {port}), 3).close(); print('connected')"


def test_peers_are_out_of_reach(mesh: Any) -> None:
    """A container of the region reaches a sidecar's port, and no peer's: peers listen on loopback."""
    assert mesh.beside("eu", DIAL.format(host="analyst", port=15000)).stdout == "connected\n"
    for host, network in (("intake", "eu"), ("analyst", "eu"), ("gpu", "us"), ("gpu", "between")):
        refused = mesh.beside(network, DIAL.format(host=host, port=50051), check=False)
        assert refused.returncode == 1
        assert "ConnectionRefusedError" in refused.stderr, refused.stderr


def test_egress_ports_are_out_of_reach(mesh: Any) -> None:
    """The port that makes a caller intake is intake's own: nobody else reaches it."""
    refused = mesh.beside("eu", DIAL.format(host="intake", port=16001), check=False)
    assert "ConnectionRefusedError" in refused.stderr


def test_no_way_out_of_a_region(mesh: Any) -> None:
    """A container of eu has no route to the other region, by name or by address, nor to anywhere else."""
    networks = mesh.inspect("gpu-node")["NetworkSettings"]["Networks"]
    unknown = mesh.beside("eu", DIAL.format(host="gpu", port=15000), check=False)
    assert "gaierror" in unknown.stderr
    for network in networks.values():
        lost = mesh.beside("eu", DIAL.format(host=network["IPAddress"], port=15000), check=False)
        assert lost.returncode == 1
        assert "unreachable" in lost.stderr or "TimeoutError" in lost.stderr, lost.stderr


def test_no_certificate(mesh: Any, eventually: Eventually) -> None:
    """Whoever has no certificate of the mesh is refused in the handshake, and the sidecar says why."""
    program = (
        "import socket, ssl; c = ssl._create_unverified_context(); c.set_alpn_protocols(['h2'])\n"
        "s = c.wrap_socket(socket.create_connection(('analyst', 15000), 5)); s.settimeout(5)\n"
        "try: print('let in' if s.recv(1) else 'refused')\n"
        "except OSError as error: print('refused', error)"
    )
    assert mesh.beside("eu", program).stdout.startswith("refused")
    eventually(lambda: "PEER_DID_NOT_RETURN_A_CERTIFICATE" in mesh.run("logs", "--no-color", "analyst-sidecar").stdout)


CALL = """
import json, os
from blazen_peer import PeerClient, BlazenError
if not {token}:
    del os.environ["BLAZEN_PEER_TOKEN_FILE"]
try:
    with PeerClient.connect({address!r}, client_node_id="intake") as client:
        print(client.run_remote_workflow_blocking({workflow!r}, {steps!r}, json.dumps({{"terms": {{"a": 1}}}}), 10).result)
except BlazenError as error:
    print(error.kind, str(error)[:200])
"""


def call(mesh: Any, address: str, workflow: str, steps: list[str], *, token: bool = True) -> str:
    """Call from intake's own network, as a program of that node, with the mesh's token or without."""
    program = CALL.format(address=address, workflow=workflow, steps=steps, token=token)
    return str(mesh.run("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "demo", "-c", program).stdout)


def test_what_a_flow_allows(mesh: Any) -> None:
    """Through the egress port, with the token: the one workflow of the flow runs."""
    assert "embedding" in call(mesh, "http://127.0.0.1:16002", "embed", [])


@pytest.mark.parametrize(
    ("address", "workflow", "steps", "token", "kind"),
    [
        pytest.param("http://127.0.0.1:16002", "embed", [], False, "Unauthenticated", id="no-token"),
        pytest.param("http://127.0.0.1:16002", "analyze-pipeline", [], True, "PermissionDenied", id="no-flow-for-the-workflow"),
        pytest.param("http://127.0.0.1:16001", "embed", [], True, "PermissionDenied", id="another-node's-workflow"),
        pytest.param("http://127.0.0.1:16002", "any", ["gpu::embed"], True, "PermissionDenied", id="step-under-another-name"),
    ],
)
def test_refused(mesh: Any, address: str, workflow: str, steps: list[str], token: bool, kind: str) -> None:
    """Each one field away from what a flow allows, and refused."""
    assert call(mesh, address, workflow, steps, token=token).startswith(kind)


def test_no_way_for_personal_data_to_the_other_region(mesh: Any) -> None:
    """There is no port from intake to gpu for personal data, so that a client cannot even ask."""
    listed = mesh.python("intake", "print(open('/var/lib/blazen/config/peers.json').read())")
    assert [way["data_class"] for way in json.loads(listed)["peers"]["gpu"]] == ["internal"]
    assert json.loads(listed)["region"] == "eu"


def test_wrong_direction(mesh: Any) -> None:
    """gpu has a certificate, and the network leads to intake, but no flow does: refused by intake's sidecar."""
    files = "/var/lib/blazen/identity/current"
    words = ["--tls-cert", f"{files}/tls.crt", "--tls-key", f"{files}/tls.key", "--tls-ca", f"{files}/bundle.crt"]
    words += ["--tls-server-name", "intake.eu.mesh.example", "--node-id", "gpu"]
    done = mesh.run("exec", "-T", "gpu-sidecar", "blazen-peer", "describe", "https://intake:15000", *words, check=False)
    assert done.returncode == 3, done.stderr


def test_canary_nowhere(mesh: Any, ran: dict[str, Any]) -> None:
    """What a document says is in no log, no trace, no inspection; nor is the token, nor any key."""
    token = mesh.python("intake", "print(open('/var/lib/blazen/token/token').read())")
    assert len(token) >= 32
    logs = mesh.run("logs", "--no-color").stdout
    listings = json.dumps([mesh.inspect(service) for service in mesh.run("ps", "-a", "--services").stdout.split()])
    traces = ""
    for service in sorted(SERVICES):
        traces += json.dumps(mesh.jaeger(f"/api/traces?service={service}&limit=200"))
    assert ran["trace_id"] in traces
    for place, text in (("logs", logs), ("inspect", listings), ("traces", traces)):
        assert len(text) > 1000, place
        for secret in (CANARY, CANARY.lower(), token, "PRIVATE KEY"):
            assert secret not in text, (place, secret)


def test_files_are_their_users_alone(mesh: Any) -> None:
    """Keys are the sidecar's own, the token the peer's; a node sees nothing of another's, and a peer no key at all."""
    stat = "import os, sys; s = os.stat('{}'); print(s.st_uid, oct(s.st_mode & 0o777))"
    assert mesh.python("intake-sidecar", stat.format("/var/lib/blazen/identity/current/tls.key")) == "10002 0o600"
    assert mesh.python("intake", stat.format("/var/lib/blazen/token/token")) == "10001 0o600"
    assert mesh.python("intake", stat.format("/var/lib/blazen/config/sidecar-proof")) == "10002 0o640"
    walk = "import os; print(sorted({f for _, _, files in os.walk('/var/lib/blazen') for f in files}))"
    assert "tls.key" not in mesh.python("intake", walk)
    assert "ca.key" not in mesh.python("intake-sidecar", walk)
    assert "token" not in mesh.python("intake-sidecar", walk)
    assert "ca.key" in mesh.python("renewal", walk)
    whose = "from cryptography import x509; print(x509.load_pem_x509_certificate(open('{}','rb').read()).extensions)"
    assert "peer/gpu" in mesh.python("gpu-sidecar", whose.format("/var/lib/blazen/identity/current/tls.crt"))


def test_containers_can_do_little(mesh: Any) -> None:
    """No root, no capability, no new privileges, no writable file system, and no shell."""
    for service in mesh.run("ps", "-a", "--services").stdout.split():
        found = mesh.inspect(service)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["CapAdd"] is None, service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert found["Config"]["User"].split(":")[0] not in {"", "0", "root"}, service
        assert not host["Privileged"], service
    for service in ("intake", "intake-sidecar", "intake-node"):
        assert mesh.run("exec", "-T", service, "sh", "-c", "true", check=False).returncode != 0, service


def test_regions_are_internal(mesh: Any) -> None:
    """The analyst's node stands in its region alone; those that cross regions stand on the network between, too."""
    stands = {node: set(mesh.inspect(f"{node}-node")["NetworkSettings"]["Networks"]) for node in NODES}
    assert stands == {
        "intake": {f"{mesh.project}_eu", f"{mesh.project}_between"},
        "analyst": {f"{mesh.project}_eu"},
        "gpu": {f"{mesh.project}_us", f"{mesh.project}_between"},
    }


def test_can_be_looked_into(mesh: Any) -> None:
    """Without a shell of their own: an image that has tools enters a container's namespaces, as docs/deploy.md says."""
    container = mesh.container("analyst")
    words = ("run", "--rm", "--pid", f"container:{container}", "--network", f"container:{container}", "debian:trixie-slim")
    assert "blazen-peer" in mesh.docker(*words, "cat", "/proc/1/cmdline").stdout
