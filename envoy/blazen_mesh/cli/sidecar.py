"""``blazen-mesh sidecar``: one node's sidecar under supervision, and the entrypoint of its image."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from blazen_mesh.binary import HOW_TO_GET_IT, find_envoy
from blazen_mesh.cli.options import DEFAULT_MESH, EnvoyBinary, MeshFile, Otlp, otlp_address
from blazen_mesh.cli.outcome import DONE, PROBLEMS, WRONG_USE
from blazen_mesh.discovery import PublishError
from blazen_mesh.expiry_metric import export_expiry
from blazen_mesh.generation import Generations, Source
from blazen_mesh.init import run_as_init
from blazen_mesh.mesh import MeshError
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import replace_file
from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import StartError
from blazen_mesh.status import Status
from blazen_mesh.supervisor import Supervisor
from blazen_peer.errors import BlazenError, ValidationError

__all__ = ["sidecar"]

DEFAULTS = Settings()


def sidecar(
    *,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="Whose sidecar.")],
    identity_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the identity is: the directory that holds `current`.")
    ],
    config_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where to keep envoy.json, sds/, sidecar-proof, sockets; one node's alone."),
    ],
    mesh_file: MeshFile = DEFAULT_MESH,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The token, for egress ports that inject it.")] = None,
    envoy: EnvoyBinary = None,
    otlp: Otlp = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Is there, with the status as JSON, while the sidecar is ready.")
    ] = None,
    wait_secs: Annotated[float, typer.Option(min=0, help="How long to wait for an identity.")] = DEFAULTS.wait_secs,
    start_secs: Annotated[float, typer.Option(min=1, help="How long Envoy may take to be ready.")] = DEFAULTS.start_secs,
    drain_secs: Annotated[
        float, typer.Option(min=0, help="How long calls in flight may take, at the end and when Envoy is replaced.")
    ] = DEFAULTS.drain_secs,
    concurrency: Annotated[int, typer.Option(min=1, help="Envoy's worker threads.")] = DEFAULTS.concurrency,
) -> int:
    """Run one node's sidecar: render, check, wait for the identity, start Envoy, and look after it until SIGTERM.

    The mesh file is watched: what it newly says is put in force without a restart, and a mistake in it changes nothing. SIGTERM
    lets calls in flight end, a second one kills; SIGHUP replaces Envoy without closing a port. A second `sidecar` with the same
    --config-dir takes over from the first, and closes none either. Everything is logged as JSON on standard output.

    [bold]Example[/bold]

      blazen-mesh sidecar --node analyst --mesh mesh.toml --identity-dir certs/nodes/analyst --config-dir /run/blazen/analyst
    """
    binary = find_envoy(envoy)
    if binary is None:
        raise ValidationError(f"there is no Envoy: {HOW_TO_GET_IT}")
    home = config_dir.absolute()
    paths = NodePaths(
        identity_dir=str(identity_dir.absolute()),
        config_dir=str(home),
        admin_socket=str(home / "admin.sock"),
        proof_file=str(home / "sidecar-proof"),
        token_file=str(token_file.absolute()) if token_file else None,
    )
    source = Source(mesh_file.absolute(), node, paths, otlp_address(otlp))
    settings = Settings(
        wait_secs=wait_secs,
        start_secs=start_secs,
        drain_secs=drain_secs,
        concurrency=concurrency,
        share_output=True,
    )
    run_as_init()
    end_metrics = export_expiry(node, Path(paths.identity_dir), os.environ)
    try:
        return asyncio.run(_supervise(source, binary, settings, ready_file))
    finally:
        end_metrics()


async def _supervise(source: Source, envoy: Path, settings: Settings, ready_file: Path | None) -> int:
    def log(level: str, text: str, name: str = "sidecar") -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {"time": time, "log": name, "level": level, "node": source.node, "message": text}
        with contextlib.suppress(OSError):  # a full disk costs lines of the log, not the sidecar
            sys.stdout.write(json.dumps(entry, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def on_line(_: str, line: str) -> None:
        level, _, text = line.partition(" ")
        log(level, text, "envoy") if level in _LEVELS else log("info", line, "envoy")

    def on_status(status: Status) -> None:
        if ready_file is not None and status.ready:
            replace_file(ready_file, f"{status.to_json()}\n".encode(), 0o644)
        elif ready_file is not None:
            ready_file.unlink(missing_ok=True)

    supervisor = Supervisor(
        Generations(source, envoy), envoy=envoy, log=log, on_line=on_line, on_status=on_status, settings=settings
    )
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked)
    loop.add_signal_handler(signal.SIGHUP, supervisor.replace_envoy)
    log("info", f"blazen-mesh sidecar {source.node}, process {os.getpid()}")
    try:
        await supervisor.run(stop)
    except BlazenError as error:  # here, where it becomes a line of the log
        log("error", str(error))
        return PROBLEMS if isinstance(error, (MeshError, PublishError, StartError)) else WRONG_USE
    except OSError as error:
        if not supervisor.serving.is_set():  # a path that was given
            raise
        log("error", f"it cannot go on: {error}")
        return PROBLEMS
    log("info", "ended")
    return DONE


_LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
