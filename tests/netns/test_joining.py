"""Joining between hosts by the commands themselves: the code's way, and every way that is not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.hosts import HostMesh

HERE = Path(__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def hosts(make_network: Callable[..., Any], start_on: Callable[..., Any], tmp_path: Path) -> HostMesh:
    """Alpha with the CA and its service, and beta with nothing."""
    hosts = HostMesh(make_network("alpha", "beta"), start_on, tmp_path)
    hosts.start_authority()
    return hosts


def refused(hosts: HostMesh, code: str, *, service: str | None = None) -> str:
    """Try to join from beta; return what was said. Nothing of an identity may be there then."""
    said = hosts.certs("beta", "join", service or hosts.service, "--dir", "certs", code=1, stdin=code).stderr
    assert not list((hosts.root / "beta").rglob("tls.*"))
    assert said.count("\n") == 1
    return str(said)


def test_join_and_verify(hosts: HostMesh) -> None:
    """A node on another host joins; its files verify; it is said what to run next; the CA's host has its audit line."""
    done = hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=hosts.code("analyst"))
    assert "joined as spiffe://mesh.test/peer/analyst" in done.stdout
    assert f"blazen-certs watch analyst --from {hosts.service} --dir certs" in done.stdout
    assert hosts.certs("beta", "verify", "analyst", "--dir", "certs").stdout.endswith("checks hold\n")
    line = json.loads((hosts.root / "alpha/ca/audit.jsonl").read_text().splitlines()[-1])
    assert (line["how"], line["from"]) == ("join", hosts.network["beta"].address)


def test_codes_that_are_not_good(hosts: HostMesh) -> None:
    """A wrong, a used and an ended code are refused, each with what its holder may know."""
    good = hosts.code("analyst")
    parts = good.split(":")
    assert "the code is not accepted" in refused(hosts, ":".join([*parts[:4], "A" * 27, parts[5]]))
    assert "the code is not accepted" in refused(hosts, ":".join([*parts[:3], "0" * 16, *parts[4:]]))
    assert "is for spiffe://mesh.test/peer/analyst" in refused(hosts, good.replace(":analyst:", ":gpu:"))
    assert "the code ended at" in refused(hosts, hosts.code("gpu", "--minutes", "0.0001"))
    hosts.certs("beta", "join", hosts.service, "--dir", "elsewhere", stdin=good)
    for path in (hosts.root / "beta/elsewhere").rglob("tls.*"):
        path.unlink()
    assert "the code was used already" in refused(hosts, good)


def test_codes_survive_the_service(hosts: HostMesh) -> None:
    """A code that was used stays used, and one that was not stays good, when the service is started anew."""
    used, unused = hosts.code("analyst"), hosts.code("gpu")
    hosts.certs("beta", "join", hosts.service, "--dir", "elsewhere", stdin=used)
    for path in (hosts.root / "beta/elsewhere").rglob("tls.*"):
        path.unlink()
    hosts.serving.end(9)
    hosts.serve()
    assert "the code was used already" in refused(hosts, used)
    hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=unused)


def test_a_service_of_another_mesh_in_the_middle(hosts: HostMesh, start_on: Callable[..., Any]) -> None:
    """Where another CA answers at the address, the node tells it nothing, and the code is still good."""
    code = hosts.code("analyst")
    hosts.certs("alpha", "init", "--trust-domain", "mesh.test", "--dir", "evil")
    address = f"{hosts.network['alpha'].address}:9555"
    evil = start_on(
        hosts.network["alpha"], "blazen-certs", "serve", "--listen", address, "--dir", "evil", cwd=hosts.root / "alpha"
    )
    evil.wait_for("listens on")
    assert "its root is another. The code was not told to it" in refused(hosts, code, service=address)
    assert "join" not in evil.log.replace("joining", "")
    hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=code)


@pytest.mark.parametrize(("loud", "message"), [(True, "is not reached"), (False, "does not answer")], ids=["loud", "silent"])
def test_a_partition_ends_in_time(hosts: HostMesh, loud: bool, message: str) -> None:
    """Parted from the service a node is told so within seconds, and its code is still good when the partition is over."""
    code = hosts.code("analyst")
    hosts.network.partition("alpha", "beta", loud=loud)
    assert message in refused(hosts, code)
    hosts.network.heal()
    hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=code)


def test_over_a_bad_link(hosts: HostMesh, start_on: Callable[..., Any]) -> None:
    """Over a link of 0.2 s each way that loses a tenth of all packets a node joins, and hears of a revocation."""
    beta = hosts.network["beta"]
    link = start_on(beta, sys.executable, str(HERE / "slow_link.py"), "127.0.0.1:9443", hosts.service, "0.2")
    link.wait_for("listens on")
    hosts.network.lose("beta", 0.1)
    hosts.join("intake")
    hosts.certs("beta", "join", "127.0.0.1:9443", "--dir", "certs", stdin=hosts.code("analyst"))
    watch = start_on(
        beta, "blazen-certs", "watch", "--from", "127.0.0.1:9443", "--dir", "certs", "--json", cwd=hosts.root / "beta"
    )
    watch.wait_for('"reached"', 60)
    hosts.certs("alpha", "revoke", "intake", "--dir", "ca")
    watch.wait_for('"trust"', 60)
    assert hosts.certs("beta", "verify", "analyst", "--dir", "certs").returncode == 0


def test_the_root_is_replaced_under_a_node_elsewhere(hosts: HostMesh, start_on: Callable[..., Any]) -> None:
    """``rotate-root`` on the CA's host waits for the other host in each phase, which follows by itself; the old root goes."""
    hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=hosts.code("analyst"))
    bundle = hosts.root / "beta/certs/nodes/analyst/current/bundle.crt"
    old = bundle.read_bytes()

    def rotate(*argv: str) -> dict[str, Any]:
        done = hosts.network["alpha"].run(
            "blazen-certs", "rotate-root", *argv, "--dir", "ca", "--json", cwd=hosts.root / "alpha"
        )
        return {"code": done.returncode, **json.loads(done.stdout)}

    def until_rotated(phase: str) -> None:
        until = time.monotonic() + 60
        while (found := rotate())["code"] != 0:
            assert "analyst" in found["blocking"], found
            assert time.monotonic() < until, found
        assert found["phase"] == phase, found

    until_rotated("trust-both")
    assert list(rotate()["blocking"]) == ["analyst"]  # nobody watches there
    argv = ("watch", "--from", hosts.service, "--dir", "certs", "--json")
    watch = start_on(hosts.network["beta"], "blazen-certs", *argv, cwd=hosts.root / "beta")
    watch.wait_for('"trust"', 60)
    until_rotated("issue-new")
    watch.wait_for('"renewed"', 60)
    until_rotated("none")
    until = time.monotonic() + 60
    while old in bundle.read_bytes():
        assert time.monotonic() < until, watch.log
    hosts.certs("beta", "verify", "analyst", "--dir", "certs")
    hosts.certs("beta", "join", hosts.service, "--dir", "certs", stdin=hosts.code("gpu"))


WRONG = [
    pytest.param(["join", "10.77.0.1", "--dir", "x"], "use HOST:PORT", id="no-port"),
    pytest.param(["join", "10.77.0.1:1", "--dir", "x"], "that is no join code", id="no-code"),
    pytest.param(["join", "10.77.0.1:1", "--code-file", "none", "--dir", "x"], "none: No such file", id="no-code-file"),
    pytest.param(["watch", "--from", "10.77.0.1:9443", "--dir", "x"], "there is no identity in x", id="watch-nothing"),
    pytest.param(["watch", "a", "--from", "10.77.0.1:9443", "--dir", "x"], "a has no identity in x", id="watch-a-stranger"),
    pytest.param(["serve", "--listen", "127.0.0.1:0", "--dir", "x"], "there is no CA in x", id="serve-without-a-ca"),
    pytest.param(["code", "a", "--dir", "x"], "there is no CA in x", id="code-without-a-ca"),
]


def test_no_code_for_the_service_itself(tmp_path: Path) -> None:
    """The service's own name is refused where codes are made, too."""
    argv = [sys.executable, "-m", "blazen_certs.cli"]
    subprocess.run([*argv, "init", "--trust-domain", "mesh.test"], cwd=tmp_path, capture_output=True, timeout=30, check=True)
    done = subprocess.run(
        [*argv, "code", "blazen-certs.mesh.test"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is the certificate service's own name" in done.stderr


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_wrong_use_is_one_line_and_exit_2(tmp_path: Path, argv: list[str], message: str) -> None:
    """What the user got wrong is said in one line."""
    done = subprocess.run(
        [sys.executable, "-m", "blazen_certs.cli", *argv],
        cwd=tmp_path,
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("blazen-certs: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
