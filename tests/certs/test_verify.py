"""``blazen-certs verify``: each damage to a node's files is its own clear line, with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, verify_identity
from blazen_certs.pem import certificates_pem
from blazen_certs.verify import node_named_by

Damage = Callable[[Path, Authority], object]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _other_authority(home: Path) -> Authority:
    return Authority.create(home.parents[3] / "other", "mesh.test", now=datetime.fromisoformat("2026-01-15T12:00:00Z"))


DAMAGE: list[Any] = [
    pytest.param(lambda d, a: (d / "tls.crt").write_text("garbage"), "tls.crt", "no PEM in it", id="garbage-certificate"),
    pytest.param(lambda d, a: (d / "tls.crt").write_bytes(b"\x00\xff" * 9), "tls.crt", "no PEM in it", id="binary-certificate"),
    pytest.param(lambda d, a: _cut(d / "tls.crt"), "tls.crt", "cut short", id="cut-certificate"),
    pytest.param(lambda d, a: (d / "tls.crt").write_text(""), "tls.crt", "empty", id="empty-certificate"),
    pytest.param(lambda d, a: (d / "tls.crt").unlink(), "tls.crt", "No such file", id="no-certificate"),
    pytest.param(lambda d, a: _cut(d / "tls.key"), "tls.key", "cut short", id="cut-key"),
    pytest.param(
        lambda d, a: shutil.copyfile(d / "tls.crt", d / "tls.key"), "tls.key", "found CERTIFICATE", id="certificate-as-key"
    ),
    pytest.param(lambda d, a: (d / "tls.key").unlink(), "tls.key", "No such file", id="no-key"),
    pytest.param(
        lambda d, a: (d / "tls.key").write_bytes((a.directory / "issuing/mesh/v1/ca.key").read_bytes()),
        "key",
        "another's",
        id="wrong-key",
    ),
    pytest.param(lambda d, a: (d / "tls.key").chmod(0o644), "modes", "tls.key has mode 0644", id="key-open-to-others"),
    pytest.param(lambda d, a: (d / "tls.crt").chmod(0o666), "modes", "tls.crt has mode 0666", id="certificate-writable"),
    pytest.param(lambda d, a: d.resolve().chmod(0o777), "modes", "has mode 0777", id="directory-writable"),
    pytest.param(
        lambda d, a: (d / "bundle.crt").write_bytes((d / "tls.crt").read_bytes()), "bundle", "is not a CA", id="leaf-as-bundle"
    ),
]


@pytest.mark.parametrize(("damage", "name", "detail"), DAMAGE)
def test_damage_fails_its_own_check(authority: Authority, now: datetime, damage: Damage, name: str, detail: str) -> None:
    """Each damage is found by the check of that name; where it was fixable, the fix is named."""
    identity = authority.issue("analyst", now=now)
    damage(identity.path / "current", authority)
    report = verify_identity(identity.path, at=now, node_id="analyst")
    failed = {check.name: check for check in report.checks if not check.ok}
    assert not report.ok
    assert detail in failed[name].detail
    assert failed[name].fix
    assert set(failed) - {name} <= ({"chain"} if name == "bundle" else set())


@pytest.fixture(autouse=True)
def _whole(authority: Authority, now: datetime) -> None:
    """Before any damage, the identity is valid, by the same call."""
    identity = authority.issue("analyst", now=now)
    assert verify_identity(identity.path, at=now, node_id="analyst", trust=authority.trust()).ok


def test_bundle_of_another_ca(authority: Authority, now: datetime) -> None:
    """A bundle that was swapped for another CA's fails as bundle of this store, and as chain."""
    identity = authority.issue("analyst", now=now)
    identity.bundle_path.write_bytes(certificates_pem(_other_authority(identity.bundle_path).trust().root_certificates))
    report = verify_identity(identity.path, at=now, node_id="analyst", trust=authority.trust())
    assert [check.name for check in report.checks if not check.ok] == ["bundle", "chain"]


def test_whole_identity_of_another_ca(authority: Authority, now: datetime) -> None:
    """An identity that is consistent in itself, but of another CA than the store's, fails."""
    home = authority.directory / "nodes" / "analyst" / "current"
    other = _other_authority(home / "x").issue("analyst", now=now)
    for name in ("tls.crt", "tls.key", "bundle.crt", "crl.pem"):
        shutil.copy(other.path / "current" / name, home / name)
    report = verify_identity(home.parent, at=now, node_id="analyst", trust=authority.trust())
    assert [check.name for check in report.checks if not check.ok] == ["bundle", "lists"]


def test_files_of_another_node(authority: Authority, now: datetime) -> None:
    """An identity that lies in another node's directory fails by name alone."""
    gpu = authority.issue("gpu", now=now)
    report = verify_identity(gpu.path, at=now, node_id="analyst")
    assert [check.name for check in report.checks if not check.ok] == ["name"]


@pytest.mark.parametrize(
    ("at", "failing"),
    [
        pytest.param(timedelta(minutes=-3), ["dates", "lists"], id="before"),
        pytest.param(timedelta(hours=23), [], id="within"),
        pytest.param(timedelta(hours=25), ["dates", "lists"], id="after"),
        pytest.param(timedelta(days=36500), ["dates", "lists"], id="a-century-later"),
    ],
)
def test_at_another_time(authority: Authority, now: datetime, at: timedelta, failing: list[str]) -> None:
    """Only the dates depend on the time: the certificate's, and those of the revocation lists."""
    report = verify_identity(authority.directory / "nodes" / "analyst", at=now + at, node_id="analyst")
    assert [check.name for check in report.checks if not check.ok] == failing


@pytest.mark.parametrize(
    ("path", "node"),
    [
        pytest.param("certs/nodes/analyst", "analyst", id="node"),
        pytest.param("certs/nodes/analyst/current", "analyst", id="current"),
        pytest.param("certs/nodes/analyst/v3/", "analyst", id="version"),
        pytest.param("certs/nodes/current", "current", id="node-called-current"),
        pytest.param("etc/identity", None, id="elsewhere"),
    ],
)
def test_node_that_a_path_names(tmp_path: Path, path: str, node: str | None) -> None:
    """Within the store's layout the path says whose identity it must be; elsewhere any node's will do."""
    assert node_named_by(tmp_path / path) == node


def test_command_says_what_failed(run: Callable[..., Any], tmp_path: Path) -> None:
    """A line for each check, FAIL with the fix below it, a verdict, exit code 1; the same as JSON."""
    assert run("init", "--trust-domain", "mesh.test").code == 0
    assert run("issue", "analyst").code == 0
    good = run("verify", "analyst")
    assert (good.code, good.err) == (0, "")
    assert "FAIL" not in good.out
    assert "valid: all 18 checks hold" in good.out

    bad = run("verify", "analyst", "--at", "2100-01-01")
    lines = bad.out.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("FAIL  dates"))
    assert bad.code == 1
    assert "fix: issue it anew: blazen-certs issue analyst" in lines[place + 1]
    assert lines[-1] == "not valid: 2 of 18 checks failed"

    found = json.loads(run("verify", "analyst", "--at", "2100-01-01T00:00:00+02:00", "--json").out)
    assert (found["valid"], found["at"]) == (False, "2099-12-31T22:00:00Z")
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["dates", "lists"]


def test_command_takes_a_directory(run: Callable[..., Any], tmp_path: Path) -> None:
    """The three files, copied anywhere, can be checked there without the store."""
    run("init", "--trust-domain", "mesh.test")
    run("issue", "analyst")
    shutil.copytree(tmp_path / ".mesh/certs/nodes/analyst/v1", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / ".mesh")
    assert run("verify", "elsewhere").code == 0
    (tmp_path / "nodes").mkdir()
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "nodes" / "gpu")
    outcome = run("verify", "./nodes/gpu")
    assert outcome.code == 1
    assert "FAIL  name" in outcome.out


def test_command_names_the_store_in_the_fix(run: Callable[..., Any]) -> None:
    """The command in a fix can be copied and run as it stands."""
    run("init", "--trust-domain", "mesh.test", "--dir", "my certs")
    run("issue", "analyst", "--dir", "my certs")
    outcome = run("verify", "analyst", "--dir", "my certs", "--at", "2100-01-01")
    assert "blazen-certs issue analyst --dir 'my certs'" in outcome.out


def test_broken_link(run: Callable[..., Any], tmp_path: Path) -> None:
    """A ``current`` that points nowhere is a failed check, not a crash."""
    run("init", "--trust-domain", "mesh.test")
    run("issue", "analyst")
    shutil.rmtree(tmp_path / ".mesh/certs/nodes/analyst/v1")
    outcome = run("verify", "analyst")
    assert outcome.code == 1
    assert "FAIL  tls.crt" in outcome.out
