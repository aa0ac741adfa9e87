"""A node's files: what they hold (pure), and the one place that writes them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from datetime import UTC, date, datetime
from pathlib import Path

from blazen_mesh import tls
from blazen_mesh.address import TcpAddress
from blazen_mesh.address_book import address_book
from blazen_mesh.bootstrap import bootstrap, discovered
from blazen_mesh.mesh import Mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.xds import BOOTSTRAP, dump

__all__ = ["ensure_secret", "render_node", "replace_file", "write_files"]

SECRET_BYTES = 32


def render_node(
    mesh: Mesh, node: str, paths: NodePaths, *, otlp: TcpAddress | None = None, day: date | None = None
) -> dict[str, str]:
    """Return *node*'s files by their path below the configuration directory.

    ``envoy.json``, ``lds.json``, ``cds.json``, ``rds.json`` and ``sds/*.json`` are the sidecar's, ``policy.json`` is the
    peer's (every flow to and from the node), and ``peers.json`` its clients' (see :mod:`blazen_mesh.address_book`). Equal
    meshes, equal bytes.

    Args:
        day: Flows whose last day is before it are left out; None: today (UTC).

    Raises:
        MeshError, ValidationError: As :func:`blazen_mesh.bootstrap.discovered`.
    """
    mesh = mesh.on(day or datetime.now(UTC).date())
    found = {
        BOOTSTRAP: dump(bootstrap(mesh, node, paths)),
        **discovered(mesh, node, paths, otlp=otlp),
        "peers.json": dump(address_book(mesh, node)),
        "policy.json": dump(json.loads(mesh.policy_of(node).to_json())),
    }
    found.update({f"sds/{name}.json": dump(document) for name, document in tls.secrets(paths, crl=mesh.crl).items()})
    return found


def write_files(files: dict[str, str], directory: Path) -> None:
    """Write *files* below *directory*, each whole or not at all, secrets' references before what reads them."""
    for name in sorted(files, reverse=True):  # sds/ before envoy.json
        replace_file(directory / name, files[name].encode(), 0o644)


def ensure_secret(path: Path) -> bool:
    """Create *path*, for its owner alone, with a fresh secret of 256 bits; keep what is there. Return whether it was made."""
    if path.exists():
        return False
    replace_file(path, secrets.token_urlsafe(SECRET_BYTES).encode(), 0o600)
    return True


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Put *content* at *path* in one step, readable as *mode* says; directories above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its target: a rename within one directory is atomic, and the only change that Envoy's watch sees.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
