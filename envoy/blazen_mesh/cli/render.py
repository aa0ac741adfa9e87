"""``blazen-mesh render``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blazen_mesh.binary import find_envoy
from blazen_mesh.cli.options import DEFAULT_MESH, EnvoyBinary, MeshFile, Otlp, otlp_address
from blazen_mesh.cli.outcome import DONE
from blazen_mesh.cli.show import console
from blazen_mesh.discovery import publish
from blazen_mesh.mesh import load_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import ensure_secret, render_node
from blazen_mesh.xds import BOOTSTRAP

__all__ = ["render"]


def render(
    *,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="Whose sidecar.")],
    identity_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the sidecar finds its identity: the directory that holds `current`.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the files and sidecar-proof.")],
    mesh_file: MeshFile = DEFAULT_MESH,
    config_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What --out is called where the sidecar runs (in its container).")
    ] = None,
    admin_socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Envoy's admin socket; admin.sock beside envoy.json by default.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The token, for egress ports that inject it.")] = None,
    otlp: Otlp = None,
    envoy: EnvoyBinary = None,
) -> int:
    """Write one node's sidecar configuration, once Envoy has looked at it. The node's sidecar-proof is made once and then kept.

    A sidecar that runs from the directory takes it up by itself, without a restart.

    [bold]Example[/bold]

      blazen-mesh render --node analyst --identity-dir .mesh/certs/nodes/analyst --out /etc/blazen/sidecar
    """
    mesh = load_mesh(mesh_file)
    home = (config_dir or out_dir).absolute()
    paths = NodePaths(
        identity_dir=str(identity_dir.absolute()),
        config_dir=str(home),
        admin_socket=str(admin_socket.absolute() if admin_socket else home / "admin.sock"),
        proof_file=str(home / "sidecar-proof"),
        token_file=str(token_file.absolute()) if token_file else None,
    )
    files = render_node(mesh, node, paths, otlp=otlp_address(otlp))
    fresh = not (out_dir / BOOTSTRAP).exists()
    done = publish(files, out_dir, envoy=find_envoy(envoy))
    made = ensure_secret(out_dir / "sidecar-proof")
    out = console()
    for name in sorted(files):
        out.print(f"wrote {out_dir / name}", highlight=False, soft_wrap=True)
    out.print(f"{'made' if made else 'kept'} {out_dir / 'sidecar-proof'}", highlight=False, soft_wrap=True)
    if done.restart and not fresh:
        out.print(f"a sidecar that runs from it must be restarted: {BOOTSTRAP} has changed")
    return DONE
