"""``blazen-mesh up``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from blazen_mesh.address import TcpAddress
from blazen_mesh.binary import HOW_TO_GET_IT, find_envoy
from blazen_mesh.cli.options import DEFAULT_MESH, EnvoyBinary, MeshFile, Otlp, otlp_address
from blazen_mesh.cli.outcome import DONE
from blazen_mesh.cli.show import console, mesh_table, node_objects
from blazen_mesh.kept_log import KeptLog
from blazen_mesh.local import LocalMesh, PeerCommand, blazen_peer_command, prepare
from blazen_mesh.mesh import load_mesh
from blazen_mesh.render import replace_file
from blazen_peer.errors import ValidationError

__all__ = ["run_up", "up"]

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def up(
    *,
    mesh_file: MeshFile = DEFAULT_MESH,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the mesh keeps its files.")] = Path(".mesh"),
    certs: Annotated[
        Path | None, typer.Option("--certs", metavar="DIR", help="The certificate store; DIR/certs by default.")
    ] = None,
    envoy: EnvoyBinary = None,
    otlp: Otlp = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Written, as JSON, once all is ready; removed at the end.")
    ] = None,
    start_secs: Annotated[float, typer.Option(min=1, help="How long starting may take.")] = 30.0,
    stop_secs: Annotated[float, typer.Option(min=0, help="How long calls in flight may take to end.")] = 20.0,
) -> int:
    """Run a whole mesh on this machine: every node's sidecar, and its peers where the file has a `run` for them.

    Each sidecar is looked after as by `blazen-mesh sidecar`: a change of the mesh file is put in force while it runs.

    The token is that of BLAZEN_PEER_TOKEN or BLAZEN_PEER_TOKEN_FILE; without one, DIR/token is made. Ctrl-C or SIGTERM lets
    calls in flight end, and stops everything; a second one kills at once.

    [bold]Example[/bold]

      blazen-mesh up --mesh envoy/mesh.toml
    """
    return run_up(
        mesh_file,
        directory=directory,
        certs=certs or directory / "certs",
        envoy=find_envoy(envoy),
        otlp=otlp_address(otlp),
        ready_file=ready_file,
        start_secs=start_secs,
        stop_secs=stop_secs,
        environment=os.environ,
    )


def run_up(
    mesh_file: Path,
    *,
    directory: Path,
    certs: Path,
    envoy: Path | None,
    environment: Mapping[str, str],
    otlp: TcpAddress | None = None,
    ready_file: Path | None = None,
    start_secs: float = 30.0,
    stop_secs: float = 20.0,
    peer_command: PeerCommand = blazen_peer_command,
) -> int:
    """Do what ``blazen-mesh up`` does, with *peer_command* to start the peers; return the exit code.

    Raises:
        MeshError, ValidationError: The mesh file is wrong, there is no Envoy, or certificates are missing.
        PublishError: Envoy refuses what the mesh file gives.
        StartError: A process did not become ready, or ended by itself.
    """
    if envoy is None:
        raise ValidationError(f"there is no Envoy: {HOW_TO_GET_IT}")
    mesh = load_mesh(mesh_file).on(datetime.now(UTC).date())
    token_file = _token_file(directory, environment)
    out = console()
    with out.status("rendering"):
        nodes = prepare(
            mesh,
            mesh_file,
            directory,
            certs=certs,
            token_file=token_file,
            environment=environment,
            otlp=otlp,
            peer_command=peer_command,
        )
    names = [name for node in nodes for name in (*(peer.name for peer in node.peers), f"{node.name} sidecar")]
    width = max(len(name) for name in names)

    kept = {f"{node.name} sidecar": KeptLog(node.directory) for node in nodes}

    def on_line(name: str, line: str) -> None:
        if name in kept:
            kept[name].write(line)
        prefix = Text(f"{name:<{width}} | ", style=_COLOURS[names.index(name) % len(_COLOURS)])
        out.print(prefix + Text(line), soft_wrap=True)

    local = LocalMesh(nodes, envoy=envoy, on_line=on_line)

    def on_ready() -> None:
        out.print(mesh_table(mesh))
        out.print("ready; Ctrl-C stops it")
        if ready_file:
            replace_file(ready_file, json.dumps(node_objects(mesh), indent=2).encode(), 0o644)

    async def supervise() -> None:
        stop = asyncio.Event()

        def asked() -> None:
            if stop.is_set():
                out.print("killing")
                local.kill()
                return
            out.print("stopping; once more kills")
            stop.set()

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, asked)
        out.print(f"starting {len(nodes)} nodes")
        await local.run(stop, on_ready=on_ready, start_secs=start_secs, stop_secs=stop_secs)

    try:
        asyncio.run(supervise())
    finally:
        for log in kept.values():
            log.close()
        if ready_file:
            ready_file.unlink(missing_ok=True)
    out.print("stopped")
    return DONE


def _token_file(directory: Path, environment: Mapping[str, str]) -> Path:
    if named := environment.get("BLAZEN_PEER_TOKEN_FILE"):
        if not Path(named).is_file():
            raise ValidationError(f"BLAZEN_PEER_TOKEN_FILE names {named}, which is no file")
        return Path(named)
    token = environment.get("BLAZEN_PEER_TOKEN")
    if token is None:
        return directory / "token"
    if not token:
        raise ValidationError("BLAZEN_PEER_TOKEN is set but empty: unset it, or make one with: blazen-peer token")
    # A file of its own: the generated one stays as it is for later.
    path = directory / "run" / "token"
    replace_file(path, token.encode(), 0o600)
    return path
