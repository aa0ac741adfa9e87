"""The mesh of ``compose.yaml`` lives on through renewal, revocation, kills and restarts, in real containers.

The load goes as users' calls do, by lanes.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

Eventually = Callable[..., Any]
DOCUMENT = "The peer calls the peer. The sidecar guards it."
IDENTITY = "/var/lib/blazen/identity/current"

# Calls gpu and analyst through intake's sidecar, over and over, until its standard input ends.
LOAD = """
import asyncio, json, sys
from blazen_peer import BlazenError, PeerClient

async def main():
    ends = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    gpu = await PeerClient.connect_async("peer:gpu", client_node_id="intake", data_class="internal")
    analyst = await PeerClient.connect_async("peer:analyst", client_node_id="intake", data_class="personal")
    done, failed = 0, []
    while not ends.done():
        try:
            await gpu.run_remote_workflow("embed", [], '{"terms": {"a": 1}}', 20)
            await analyst.run_remote_workflow("analyze-pipeline", [], '{"document": "One. Two."}', 20)
            done += 2
        except BlazenError as error:
            failed.append(str(error)[:200])
        await asyncio.sleep(0.02)
    print(json.dumps({"done": done, "failed": failed}))

asyncio.run(main())
"""


@pytest.fixture
def load(mesh: Any) -> Any:
    """Constant calls while a test runs; call it for what came of them."""
    command = [*mesh.compose.compose_command_property, "exec", "-T", "intake", "python", "-c", LOAD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=mesh.compose.context)

    def end() -> Any:
        return json.loads(process.communicate(timeout=60)[0])

    yield end
    if process.poll() is None:
        process.communicate(timeout=60)


def as_gpu(mesh: Any) -> int:
    """Dial intake's sidecar with gpu's certificate; return the exit code: 3 is refused by the flows, 5 is kept out."""
    words = ["--tls-cert", f"{IDENTITY}/tls.crt", "--tls-key", f"{IDENTITY}/tls.key", "--tls-ca", f"{IDENTITY}/bundle.crt"]
    words += ["--tls-server-name", "intake.eu.mesh.example", "--node-id", "gpu"]
    done = mesh.run("exec", "-T", "gpu-sidecar", "blazen-peer", "describe", "https://intake:15000", *words, check=False)
    return int(done.returncode)


def test_renewal_loses_no_call(mesh: Any, load: Any, eventually: Eventually) -> None:
    """All certificates are renewed under constant calls: each sidecar takes its new one up, and no call fails."""
    before = {node: mesh.sidecar(node)["serial"] for node in ("intake", "analyst", "gpu")}
    mesh.run("exec", "-T", "renewal", "blazen-certs", "renew", "--force")

    def renewed() -> bool:
        now = {node: mesh.sidecar(node) for node in before}
        return all(now[node]["serial"] != before[node] and now[node]["ready"] for node in before)

    eventually(renewed)
    found = load()
    assert found["failed"] == []
    assert found["done"] > 20


def test_revoked(mesh: Any, eventually: Eventually) -> None:
    """A revoked node is not let in any more, within seconds and with nothing restarted; with a new certificate it is."""
    assert as_gpu(mesh) == 3
    mesh.run("exec", "-T", "renewal", "blazen-certs", "revoke", "gpu")
    eventually(lambda: as_gpu(mesh) == 5, 15)
    mesh.run("exec", "-T", "renewal", "blazen-certs", "issue", "gpu")
    eventually(lambda: as_gpu(mesh) == 3)
    eventually(lambda: mesh.demo(DOCUMENT, check=False).returncode == 0)


def fails_fast(mesh: Any) -> str:
    """The demo fails, within the deadline of nobody; return its one line."""
    began = time.monotonic()
    done = mesh.demo(DOCUMENT, check=False)
    assert done.returncode == 1, done.stdout
    assert time.monotonic() - began < 60
    return str(done.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("gpu",), id="peer"),
        pytest.param(("gpu-sidecar",), id="sidecar"),
        pytest.param(("gpu", "gpu-sidecar", "gpu-node"), id="node"),
    ],
)
def test_killed(mesh: Any, killed: tuple[str, ...], eventually: Eventually) -> None:
    """While it is away calls fail at once with what happened; brought back, everything goes on as before."""
    token = mesh.python("intake", "print(open('/var/lib/blazen/token/token').read())")
    mesh.run("kill", *killed)
    assert "demo: " in fails_fast(mesh)
    mesh.run("up", "--detach", "--wait", "--no-build")
    eventually(lambda: mesh.demo(DOCUMENT, check=False).returncode == 0)
    assert mesh.python("intake", "print(open('/var/lib/blazen/token/token').read())") == token


def test_sidecar_restarts_alone(mesh: Any, eventually: Eventually) -> None:
    """A new sidecar stands in the same network as the peer that went on: the namespace is a third container's."""
    before = mesh.inspect("gpu")["State"]["StartedAt"]
    mesh.run("restart", "gpu-sidecar")
    eventually(lambda: mesh.demo(DOCUMENT, check=False).returncode == 0)
    assert mesh.inspect("gpu")["State"]["StartedAt"] == before


def test_peer_that_ends_is_started_again(mesh: Any, eventually: Eventually) -> None:
    """Nobody has to do anything."""
    before = mesh.inspect("analyst")["RestartCount"]
    mesh.python("analyst", "import os; os.kill(1, 15)", check=False)
    eventually(lambda: mesh.inspect("analyst")["RestartCount"] == before + 1, 60)
    eventually(lambda: mesh.demo(DOCUMENT, check=False).returncode == 0)


def test_without_jaeger(mesh: Any, eventually: Eventually) -> None:
    """A collector that is away costs no call: results come as before."""
    mesh.run("stop", "jaeger")
    try:
        eventually(lambda: mesh.demo(DOCUMENT, check=False).returncode == 0)
    finally:
        mesh.run("start", "jaeger")
