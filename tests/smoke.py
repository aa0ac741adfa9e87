"""The wheel's smoke test, for an environment that holds nothing but the wheel and what it requires: no pytest, no Envoy.

Run it: python tests/smoke.py. It ends with "N passed, 0 failed", or with the traceback of the first check that failed.
"""

# ruff: noqa: T201 (a program, which prints)
from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

COMMAND_SECS = 60
MESH = """\
trust_domain = "mesh.example"

[peers.intake]
sidecar = "127.0.0.1:15001"
listen = "127.0.0.1:50051"
egress.analyst = 16001

[peers.analyst]
sidecar = "127.0.0.1:15002"
listen = "127.0.0.1:50052"

[[flows]]
from = "intake"
to = "analyst"
workflows = ["analyze-pipeline"]
why = "intake hands documents over for analysis"
"""


def run(script: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run one of the wheel's console scripts and return what it prints."""
    command = Path(sysconfig.get_path("scripts")) / script
    done = subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=COMMAND_SECS, check=False)
    assert done.returncode == 0, f"{script} {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def imports() -> None:
    """The three packages come from the wheel, with their type marker, and everything public is there."""
    import blazen_certs
    import blazen_mesh
    import blazen_peer

    here = Path(sysconfig.get_path("purelib")).resolve()
    for package in (blazen_peer, blazen_mesh, blazen_certs):
        assert package.__file__ is not None
        assert Path(package.__file__).resolve().is_relative_to(here), f"{package.__file__} is not of this environment's {here}"
        assert (files(package) / "py.typed").is_file(), f"{package.__name__} has no py.typed"
    for name in blazen_peer.__all__:
        getattr(blazen_peer, name)
    assert "LICENSE" in {Path(str(file)).name for file in distribution("blazen-python-peer").files or ()}


def a_step_runs_here() -> None:
    """A workflow of one step runs in this process."""
    from blazen_peer import StartEvent, StopEvent, Workflow, step

    @step("smoke::double")
    async def double(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data * 2)

    assert asyncio.run(Workflow("smoke", [double]).run(21)).result == 42


def a_step_is_served_and_called() -> None:
    """A peer serves the step over loopback to a caller with the token, and refuses one without."""
    from blazen_peer import PeerClient, PeerServer, UnauthenticatedError

    token = run("blazen-peer", "token").strip()

    async def main() -> None:
        async with asyncio.timeout(COMMAND_SECS), PeerServer("node-b", token=token).serving() as server:
            async with await PeerClient.connect_async(server.address, "node-a", token=token) as client:
                assert (await client.run_remote_workflow("smoke", ["smoke::double"], "21", 10)).result == 42
            async with await PeerClient.connect_async(server.address, "node-a") as stranger:
                try:
                    await stranger.run_remote_workflow("smoke", ["smoke::double"], "21", 10)
                except UnauthenticatedError:
                    return
                raise AssertionError("a caller without the token was let in")

    asyncio.run(main())


def scripts_help() -> None:
    """The three console scripts say what they do."""
    for script in ("blazen-peer", "blazen-mesh", "blazen-certs"):
        assert "Usage:" in run(script, "--help")


def certificates() -> None:
    """A CA and an identity are made, and hold."""
    with tempfile.TemporaryDirectory() as directory:
        run("blazen-certs", "init", "--trust-domain", "mesh.example", cwd=Path(directory))
        run("blazen-certs", "issue", "analyst", cwd=Path(directory))
        assert json.loads(run("blazen-certs", "verify", "analyst", "--json", cwd=Path(directory)))["valid"] is True


def sidecars() -> None:
    """A small mesh is rendered into a sidecar's configuration."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "mesh.toml").write_text(MESH)
        run(
            *("blazen-mesh", "render", "--mesh", "mesh.toml", "--node", "analyst"),
            *("--identity-dir", "identity", "--out", "out"),
            cwd=directory,
        )
        assert json.loads((directory / "out" / "envoy.json").read_text())["node"]["id"]
        assert len((directory / "out" / "sidecar-proof").read_text().strip()) >= 32


CHECKS: tuple[Callable[[], None], ...] = (
    imports,
    a_step_runs_here,
    a_step_is_served_and_called,
    scripts_help,
    certificates,
    sidecars,
)


def main() -> int:
    """Run all checks; a failed one ends the test with its traceback."""
    for name in [name for name in os.environ if name.startswith(("BLAZEN_", "OTEL_"))]:
        del os.environ[name]
    for passed, check in enumerate(CHECKS):
        try:
            check()
        except BaseException:
            print(f"failed: {check.__name__}\n{passed} passed, 1 failed", flush=True)
            raise
        print(f"ok: {check.__name__}")
    print(f"{len(CHECKS)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
