"""The mesh of ``compose.yaml`` in real containers, brought up once for each module.

They are skipped where no container engine answers, and fail instead with COMPOSE_REQUIRED=1. Where images cannot be pulled,
``tests/compose/stand_ins`` makes an engine and the images.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testcontainers.compose import DockerCompose

ROOT = Path(__file__).parents[2]
COMMAND_SECS = 120.0


def docker(
    *words: str, secs: float = COMMAND_SECS, check: bool = True, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``docker`` with *words*."""
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=secs, check=False, input=given or "", cwd=ROOT
    )
    assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="session")
def engine() -> str:
    """The version of the engine that answers."""
    why = "docker is not installed"
    if shutil.which("docker"):
        version = docker("version", "--format", "{{.Server.Version}}", check=False)
        compose = docker("compose", "version", check=False)
        if version.returncode == 0 and compose.returncode == 0:
            return version.stdout.strip()
        why = (version.stderr if version.returncode else compose.stderr).strip().splitlines()[0]
    what = f"no container engine with Compose answers ({why}); tests/compose/stand_ins can make one"
    if os.environ.get("COMPOSE_REQUIRED"):
        pytest.fail(what)
    pytest.skip(what)


@dataclass
class Running:
    """A running mesh, as its operator sees it."""

    project: str
    jaeger_port: int
    compose: DockerCompose

    def jaeger(self, path: str) -> Any:
        """What Jaeger's API gives for *path*; None where it gives nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.jaeger_port, timeout=10)
        try:
            connection.request("GET", path)
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        return answer.get("data")

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose`` with *words*."""
        return docker(*self.compose.compose_command_property[1:], *words, **options)

    def docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker`` with *words*."""
        return docker(*words)

    def demo(self, document: str, *, secs: float = COMMAND_SECS, check: bool = True) -> Any:
        """Run the demo on *document*; return what ``--json`` prints, or the finished process where it may fail."""
        # What a test has killed must stay dead: the services it depends on are not started for it.
        done = self.run("run", "--rm", "-T", "--no-deps", "demo", "--json", "-", given=document, secs=secs, check=check)
        return json.loads(done.stdout) if check else done

    def python(self, service: str, program: str, *, check: bool = True) -> str:
        """Run a Python *program* inside a running service; return what it prints."""
        return self.run("exec", "-T", service, "python", "-c", program, check=check).stdout.strip()

    def container(self, service: str) -> str:
        """The id of *service*'s container."""
        return self.run("ps", "-aq", service).stdout.split()[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine says of *service*'s container."""
        return dict(json.loads(docker("inspect", self.container(service)).stdout)[0])

    def sidecar(self, node: str) -> dict[str, Any]:
        """*node*'s sidecar's own status."""
        words = ("exec", "-T", f"{node}-sidecar", "blazen-mesh", "ready", "--config-dir", "/var/lib/blazen/config", "--json")
        return dict(json.loads(self.run(*words, check=False).stdout))

    def beside(self, network: str, program: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a Python *program* in a container of its own on *network*, as somebody who broke in there would."""
        words = (
            "run",
            "--rm",
            "--network",
            f"{self.project}_{network}",
            "--entrypoint",
            "python",
            "blazen-peer",
            "-c",
            program,
        )
        return docker(*words, check=check)


def _left_of(project: str) -> dict[str, list[str]]:
    """What there is of *project*: containers, volumes, networks."""
    label = f"label=com.docker.compose.project={project}"
    return {
        "containers": docker("ps", "-aq", "--filter", label).stdout.split(),
        "volumes": docker("volume", "ls", "-q", "--filter", label).stdout.split(),
        "networks": docker("network", "ls", "-q", "--filter", label).stdout.split(),
    }


@pytest.fixture(scope="module")
def mesh(engine: str) -> Iterator[Running]:
    """The mesh, up and ready; taken down at the end, with nothing left."""
    project = f"blazen-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPOSE_PROJECT_NAME", project)
        patch.setenv("JAEGER_PORT", str(port))
        running = Running(project, port, DockerCompose(ROOT, "compose.yaml", build=True, wait=True))
        try:
            running.compose.start()
            yield running
        except subprocess.CalledProcessError as error:
            logs = running.run("logs", "--no-color", "--tail", "20", check=False).stdout
            pytest.fail(f"the mesh does not come up: {error.stderr.decode()[-3000:]}\n{logs[-6000:]}")
        finally:
            running.compose.stop()
    assert _left_of(project) == {"containers": [], "volumes": [], "networks": []}


@pytest.fixture
def left_of() -> Callable[[str], dict[str, list[str]]]:
    """What there is of a project: ``left_of(name)`` gives containers, volumes, networks."""
    return _left_of


@pytest.fixture
def network(engine: str) -> Iterator[Callable[[], str]]:
    """Make a network that leads nowhere else; return its name. It is removed when what stands on it is gone."""
    name = f"blazen-test-{os.getpid()}-lan"

    def make() -> str:
        docker("network", "create", "--internal", name)
        return name

    yield make
    docker("network", "rm", "--force", name)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Return the first true value of ``ask()`` within *secs*: ``eventually(ask, secs=30)``."""

    def wait(ask: Callable[[], Any], secs: float = 30.0) -> Any:
        until = time.monotonic() + secs
        while not (found := ask()):
            assert time.monotonic() < until, f"not so within {secs} s"
            time.sleep(0.2)
        return found

    return wait
