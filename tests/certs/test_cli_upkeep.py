"""The commands that keep identities good: their exit codes, what they say, and what a script reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import store

Run = Callable[..., Any]
CERTS = Path(".mesh/certs")


@pytest.fixture
def mesh(run: Run) -> Run:
    """The command, in a directory with a CA and two nodes."""
    assert run("init", "--trust-domain", "mesh.test").code == 0
    for node in ("analyst", "gpu"):
        assert run("issue", node).code == 0
    return run


def test_renew_ends_with_three_when_nothing_is_due(mesh: Run) -> None:
    """0 renewed, 3 nothing was due: so a script can tell whether it has to tell anybody."""
    assert mesh("renew").code == 3
    assert mesh("renew", "analyst", "--force").code == 0
    assert mesh("renew", "nobody").code == 1
    outcome = mesh("renew", "nobody", "analyst", "--force")
    assert (outcome.code, "nobody has no identity" in outcome.out, "renewed" in outcome.out) == (1, True, True)


def test_renew_as_json(mesh: Run) -> None:
    """A script reads what was done, for each node."""
    found = json.loads(mesh("renew", "analyst", "--force", "--json").out)["nodes"]
    assert [(item["node"], item["action"], item["version"]) for item in found] == [("analyst", "renewed", 2)]
    assert {"serial", "not_after", "next", "detail"} <= set(found[0])


def test_needs_renewal_changes_nothing(mesh: Run, tmp_path: Path) -> None:
    """0 when a node needs it, 3 when none does; asked a hundred times, nothing is written."""
    assert mesh("needs-renewal", "analyst").code == 3
    mesh("issue", "short", "--lifetime-hours", "0.0001")
    before = sorted(tmp_path.rglob("*"))
    outcome = mesh("needs-renewal", "--json")
    assert outcome.code == 0
    assert {item["node"]: item["needs_renewal"] for item in json.loads(outcome.out)["nodes"]} == {
        "analyst": False,
        "gpu": False,
        "short": True,
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_revoke_says_what_when_and_where(mesh: Run) -> None:
    """The serial number, the nodes that have the list, and when it bites; again, that there is nothing more to revoke."""
    serial = json.loads(mesh("inspect", "analyst", "--json").out)["objects"][0]["serial"]
    outcome = mesh("revoke", "analyst")
    assert outcome.code == 0
    for text in (f"revoked  {serial}", "analyst (v2), gpu (v2)", "within 1 s", "limit on their age"):
        assert text in outcome.out
    assert "nothing to revoke: revoked already" in mesh("revoke", "analyst").out
    assert "FAIL  revocation" in mesh("verify", "analyst").out
    assert mesh("renew", "analyst", "--force").code == 3
    assert json.loads(mesh("status", "--json").out)["nodes"][0]["condition"] == "revoked"
    assert mesh("issue", "analyst").code == 0
    assert mesh("verify", "analyst").code == 0


def test_revoke_by_serial_as_json(mesh: Run) -> None:
    """The serial number as ``inspect`` shows it, or as openssl does, with colons."""
    serial = json.loads(mesh("inspect", "analyst", "--json").out)["objects"][0]["serial"]
    even = serial.zfill(len(serial) + len(serial) % 2)
    colons = ":".join(even[place : place + 2] for place in range(0, len(even), 2))
    found = json.loads(mesh("revoke", "--serial", colons.upper(), "--json").out)
    assert (found["revoked"], found["published"], found["failed"]) == ([serial], ["analyst", "gpu"], {})


def test_crl_signs_what_is_due(mesh: Run) -> None:
    """Not due: kept. Forced: signed, with a higher number, and at every node."""
    kept = json.loads(mesh("crl", "--json").out)["lists"]
    outcome = mesh("crl", "--force", "--json")
    signed = json.loads(outcome.out)["lists"]
    assert [item["signed_now"] for item in kept + signed] == [False, True]
    assert (signed[0]["number"], outcome.code) == (kept[0]["number"] + 1, 0)
    number = json.loads(mesh("inspect", str(CERTS / "nodes/gpu/current/crl.pem"), "--json").out)["objects"][0]["number"]
    assert number == signed[0]["number"]


def test_rotate_root_by_three_commands(mesh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command is one phase; ``status`` says where it stands and what comes next."""
    monkeypatch.setattr("blazen_certs.cli.rotate_root._UNASKED_SECS", 0)
    phases = []
    for _ in range(3):
        assert mesh("rotate-root").code == 0
        phases.append(json.loads(mesh("rotate-root", "status", "--json").out)["phase"])
    assert phases == ["trust-both", "issue-new", "none"]
    assert "one root, generation 2" in mesh("rotate-root", "status").out
    assert mesh("verify", "analyst").code == mesh("verify", "gpu").code == 0


def test_rotate_root_names_who_blocks(mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose directory cannot be brought along keeps the next phase from beginning: exit code 1, and its name."""
    monkeypatch.setattr("blazen_certs.cli.rotate_root._UNASKED_SECS", 0)
    assert mesh("rotate-root").code == 0
    home = tmp_path / CERTS / "nodes" / "gpu"
    store.make_current(home, 1)
    monkeypatch.setattr("blazen_certs.rotation.keep_nodes", lambda *_, **__: [])
    outcome = mesh("rotate-root")
    assert outcome.code == 1
    assert "not advanced" in outcome.out
    assert "gpu: its bundle does not hold the new root" in outcome.out


def test_root_key_elsewhere_and_encrypted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's key goes where it is told to, encrypted; identities are issued without it, issuing CAs are not."""
    (tmp_path / "secret").write_text("open sesame\n")
    more = ("--root-dir", "safe", "--passphrase-file", "secret")
    made = json.loads(run("init", "--trust-domain", "mesh.test", *more, "--json").out)
    assert made["key"].startswith("safe/root-")
    assert made["encrypted"] is True
    assert "ENCRYPTED" in (tmp_path / made["key"]).read_text()
    assert not list((tmp_path / CERTS).rglob("root.key"))
    assert run("issue", "analyst").code == 0
    refused = run("renew", "--issuing", "--force")
    assert refused.code == 1
    assert "name that directory with --root-dir DIR" in refused.out
    assert "its passphrase with --passphrase-file" in run("renew", "--issuing", "--force", "--root-dir", "safe").out
    (tmp_path / "wrong").write_text("open barley\n")
    wrong = run("renew", "--issuing", "--force", "--root-dir", "safe", "--passphrase-file", "wrong")
    assert (wrong.code, "passphrase is not this key's" in wrong.err) == (2, True)
    assert run("renew", "--issuing", "--force", *more).code == 0
    monkeypatch.setenv("BLAZEN_CERTS_PASSPHRASE", "open sesame")
    monkeypatch.setenv("BLAZEN_CERTS_ROOT_DIR", "safe")
    assert run("rotate-root").code == 0
    assert "open sesame" not in "".join(path.read_text() for path in (tmp_path / CERTS).rglob("*") if path.is_file())


@pytest.mark.parametrize("text", ["", "\n"])
def test_empty_passphrase_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    """A passphrase of no characters is a mistake, not a wish for none."""
    (tmp_path / "empty").write_text(text)
    outcome = run("init", "--trust-domain", "mesh.test", "--passphrase-file", "empty")
    assert (outcome.code, "empty is empty" in outcome.err) == (2, True)


def test_regions_on_the_command_line(run: Run) -> None:
    """``init --region`` makes a CA each; ``issue --region`` is needed once for a node; ``verify`` says what its CA may name."""
    made = json.loads(run("init", "--trust-domain", "mesh.test", "--region", "eu", "--region", "us", "--json").out)
    assert [ca["trust_domain"] for ca in made["issuing"]] == ["eu.mesh.test", "us.mesh.test"]
    assert run("issue", "analyst").code == 2
    assert "spiffe://eu.mesh.test/peer/analyst" in run("issue", "analyst", "--region", "eu").out
    assert run("issue", "analyst").code == 0
    assert "its CA may name eu.mesh.test only" in run("verify", "analyst").out
