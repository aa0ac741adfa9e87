"""A container engine of our own: Debian's, unpacked beside this machine's packages, with its socket and data in the cache."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from debian import SUITE, install, unpack
from store import StandInError, cache_dir, keep, key_of, run, say

__all__ = ["environment", "start", "stop"]

PACKAGES = ("docker.io", "docker-cli", "containerd", "docker-compose", "docker-buildx")
# Of this machine's own release: the suite's runc needs a newer C library than this machine may have.
PROGRAMS = {"runc": "runc", "iptables": "iptables", "debootstrap": "debootstrap"}
START_SECS, STOP_SECS = 60.0, 30.0
MAX_BUILD_CACHE = "3GB"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@functools.cache
def _home() -> Path:
    def make(directory: Path) -> None:
        unpack(PACKAGES, directory)
        plugins = directory / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        for plugin in sorted((directory / "usr/libexec/docker/cli-plugins").iterdir()):
            shutil.copy2(plugin, plugins)

    return keep("engine", key_of(SUITE, *PACKAGES), make)


def _state() -> Path:
    path = cache_dir() / "run"
    path.mkdir(exist_ok=True)
    return path


def environment() -> dict[str, str]:
    """Return the variables with which ``docker`` and ``docker compose`` find this engine, and builds this machine's CAs."""
    home = _home()
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    return {
        **({"CA_BUNDLE": bundle} if bundle else {}),
        "PATH": f"{home}/usr/bin:{home}/usr/sbin:{os.environ['PATH']}:/usr/sbin:/sbin",
        "DOCKER_CONFIG": f"{home}/config",
        "DOCKER_HOST": f"unix://{_state()}/docker.sock",
    }


def start() -> dict[str, str]:
    """Start the engine unless it runs, and return its :func:`environment`.

    Raises:
        StandInError: It does not answer; the text holds the end of its log.
    """
    install(PROGRAMS)
    env = environment()
    if _pid() is not None and _answers(env):
        say("engine: runs already")
        return env
    stop()
    forwarding = FORWARDING.read_text().strip()
    (_state() / "before.json").write_text(json.dumps({"ip_forward": forwarding}))
    # Were it off, the engine would turn it on and drop what anybody else forwards, other tests' networks included.
    FORWARDING.write_text("1")
    argv = ["dockerd", "--data-root", str(cache_dir() / "data"), "--exec-root", str(_state() / "exec")]
    argv += ["--pidfile", str(_state() / "dockerd.pid"), "-H", env["DOCKER_HOST"]]
    with (_state() / "dockerd.log").open("wb") as log:
        subprocess.Popen(
            argv,
            env={**os.environ, **env},
            executable=shutil.which("dockerd", path=env["PATH"]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + START_SECS
    while not _answers(env):
        if time.monotonic() > until:
            tail = (_state() / "dockerd.log").read_text(errors="replace").splitlines()[-15:]
            stop()
            raise StandInError("the engine does not answer:\n" + "\n".join(tail))
        time.sleep(0.2)
    _clear(env)
    say(f"engine: {run(['docker', 'version', '--format', '{{.Server.Version}}'], env=env).strip()} runs")
    return env


def stop() -> None:
    """End the engine and what runs in it, and take its network rules away; its images and build cache are kept."""
    pid = _pid()
    if pid is not None:
        env = environment()
        if _answers(env):
            _clear(env)
            with contextlib.suppress(StandInError):
                run(["docker", "builder", "prune", "--force", "--keep-storage", MAX_BUILD_CACHE], env=env)
                run(["docker", "image", "prune", "--force"], env=env)
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_SECS
        while _pid() is not None and time.monotonic() < until:
            time.sleep(0.1)
        if (left := _pid()) is not None:
            os.kill(left, signal.SIGKILL)
        say("engine: stopped")
    before = _state() / "before.json"
    if before.is_file():
        if not _another_runs():  # the chains have the same names, and it needs them
            _remove_rules()
            FORWARDING.write_text(json.loads(before.read_text())["ip_forward"])
        before.unlink()


def _clear(env: dict[str, str]) -> None:
    """Remove containers, networks and volumes: nobody but the tests has any here."""
    if containers := run(["docker", "ps", "-aq"], env=env).split():
        run(["docker", "rm", "--force", "--volumes", *containers], env=env)
    run(["docker", "volume", "prune", "--all", "--force"], env=env)
    run(["docker", "network", "prune", "--force"], env=env)


def _remove_rules() -> None:
    """Take away the engine's chains, the rules that lead to them, and its bridge."""
    for family in ("iptables", "ip6tables"):
        for table in ("filter", "nat"):
            with contextlib.suppress(StandInError):
                rules = run([family, "-t", table, "-S"]).splitlines()
                mine = [rule.split() for rule in rules if "DOCKER" in rule or "docker0" in rule]
                for rule in mine:
                    if rule[0] == "-A" and not rule[1].startswith("DOCKER"):
                        run([family, "-t", table, "-D", *rule[1:]])
                chains = [rule[1] for rule in mine if rule[0] == "-N"]
                for action in ("-F", "-X"):
                    for chain in chains:
                        run([family, "-t", table, action, chain])
    with contextlib.suppress(StandInError):
        run(["ip", "link", "delete", "docker0"])


def _answers(env: dict[str, str]) -> bool:
    try:
        run(["docker", "version", "--format", "{{.Server.Version}}"], env=env, timeout_secs=10)
    except StandInError:
        return False
    return True


def _another_runs() -> bool:
    """Say whether there is an engine on this machine that is not ours."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if name.read_text().strip() == "dockerd":
                return True
    return False


def _pid() -> int | None:
    """Return the running engine's process id: the one it wrote itself, if that process is still an engine."""
    try:
        pid = int((_state() / "dockerd.pid").read_text())
        return pid if b"dockerd" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None
