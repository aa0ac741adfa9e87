"""Killed at any moment: before each system call that changes the disk, a process is killed; what it leaves is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# In a process of its own, which forks once for each moment of death: the test's own process has threads and fixtures.
SCRIPT = '''
import json, os, shutil, sys
from datetime import datetime, timedelta
from pathlib import Path
from blazen_certs import Authority, read_trust, verify_identity
from blazen_certs.issuing_renewal import keep_issuing
from blazen_certs.rotation import advance_rotation
from blazen_certs.upkeep import keep_lists, keep_node, keep_nodes, local_nodes, revoke_node

NOW = datetime.fromisoformat("2026-01-15T12:00:00Z")
NODES = ("analyst", "gpu")
root, name = Path(sys.argv[1]), sys.argv[2]


def prepared(store):
    """Return a store as it stands before the operation."""
    if name == "init":
        return
    authority = Authority.create(store, "mesh.test", now=NOW)
    for node in NODES:
        authority.issue(node, now=NOW)
    for _ in range({"issue-new": 1, "drop-old": 2}.get(name, 0)):
        assert advance_rotation(authority, now=NOW).advanced
    if name == "activate":
        keep_issuing(authority, now=NOW, force=True)


def operate(store):
    if name == "init":
        Authority.create(store, "mesh.test", regions=["eu", "us"], now=NOW)
        return
    authority, later = Authority.open(store), NOW + timedelta(minutes=2)
    if name == "issue":
        authority.issue("analyst", now=later)
    elif name == "revoke":
        revoke_node(authority, "gpu", now=later)
    elif name == "lists":
        keep_lists(authority, now=later, force=True)
        keep_nodes(authority, local_nodes(authority), now=later)
    elif name == "prepare":
        keep_issuing(authority, now=NOW, force=True)
    elif name == "activate":
        keep_issuing(authority, now=later)
    else:
        advance_rotation(authority, now=later)


def die_before(step):
    """Kill this process before its step-th call that changes the disk; return the count of those made."""
    made = [0]

    def counted(call):
        def wrapper(*arguments, **rest):
            if call is real_open and not arguments[1] & os.O_CREAT:
                return call(*arguments, **rest)
            made[0] += 1
            if made[0] == step:
                os.kill(os.getpid(), 9)
            return call(*arguments, **rest)
        return wrapper

    real_open = os.open
    for what in ("rename", "symlink", "mkdir", "rmdir", "unlink", "open"):
        setattr(os, what, counted(getattr(os, what)))


def problems(store, at, *, finished):
    """Return what is not whole in the store."""
    trust = read_trust(store)
    if trust is None:
        return [] if name == "init" and not finished else ["there is no authority"]
    found = []
    for node in NODES if name != "init" else ():
        report = verify_identity(store / "nodes" / node, at=at, node_id=node, trust=trust if finished else None)
        found += [f"{node}: {c.name}: {c.detail}" for c in report.checks if not c.ok and c.name != "revocation"]
    rests = [str(path) for path in store.rglob(".unfinished-*")] if finished and name not in ("init", "prepare") else []
    return found + [rest for rest in rests if "/nodes/" in rest]


os.fsync = lambda _: None  # a killed process loses nothing that it wrote, and real ones take their time
template = root / "template"
prepared(template)
steps, bad = 0, []
while True:
    steps += 1
    store = root / f"{name}{steps}"
    if template.exists():
        shutil.copytree(template, store, symlinks=True)
    child = os.fork()
    if child == 0:
        die_before(steps)
        operate(store)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    at = NOW + timedelta(minutes=2)
    bad += [f"killed before step {steps}: {text}" for text in problems(store, at, finished=False)]
    try:
        if name == "init" and read_trust(store) is not None:
            pass
        else:
            operate(store)
            keep_nodes(Authority.open(store), local_nodes(Authority.open(store)), now=at)
        bad += [f"repeated after step {steps}: {text}" for text in problems(store, at, finished=True)]
        if name in ("trust-both", "issue-new", "drop-old") and steps % 7 == 0:
            for _ in range(3):
                if advance_rotation(Authority.open(store), now=at).after.phase == "none":
                    break
            else:
                bad.append(f"after step {steps} the root is never replaced")
            bad += [f"finished after step {steps}: {text}" for text in problems(store, at, finished=True)]
    except Exception as error:
        bad.append(f"repeating after step {steps}: {type(error).__name__}: {error}")
    shutil.rmtree(store)
print(json.dumps({"steps": steps - 1, "bad": bad}))
'''
FEWEST = [
    pytest.param("init", 15, id="init"),
    pytest.param("issue", 8, id="issue"),
    pytest.param("revoke", 12, id="revoke"),
    pytest.param("lists", 12, id="lists"),
    pytest.param("prepare", 18, id="issuing-ca-prepared"),
    pytest.param("activate", 2, id="issuing-ca-activated"),
    pytest.param("trust-both", 20, id="trust-both-roots"),
    pytest.param("issue-new", 20, id="issue-from-the-new-root"),
    pytest.param("drop-old", 15, id="drop-the-old-root"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "fewest"), FEWEST)
def test_killed_at_any_moment(tmp_path: Path, operation: str, fewest: int) -> None:
    """Every node's identity is valid after the death, the same command then completes, and leaves no rest."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), operation], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["bad"] == []
    assert found["steps"] >= fewest
