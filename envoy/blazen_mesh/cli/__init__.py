"""``blazen-mesh``: the sidecars of a mesh, from one file."""

from blazen_mesh.cli.main import entry, main
from blazen_mesh.cli.up import run_up

__all__ = ["entry", "main", "run_up"]
