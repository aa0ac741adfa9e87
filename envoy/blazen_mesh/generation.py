"""What a sidecar runs from, made anew when the mesh file or the day changes: rendered, shown to Envoy, then put in place."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path

from blazen_mesh.address import TcpAddress
from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.discovery import NotTakenError, deliver, publish
from blazen_mesh.mesh import Mesh, MeshError, load_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import render_node
from blazen_mesh.xds import BOOTSTRAP

__all__ = ["Generation", "Generations", "Source", "reason"]

RETRY_SECS = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where a sidecar's configuration comes from, and where it goes."""

    mesh_file: Path
    node: str
    paths: NodePaths
    otlp: TcpAddress | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One configuration that is in place.

    Attributes:
        mesh: What it was rendered from.
        digest: 12 hex digits, of all of its files.
        bootstrap: The part that Envoy reads once, when it starts.
    """

    mesh: Mesh
    digest: str
    bootstrap: str


class Generations:
    """The sequence of a sidecar's configurations. ``current`` is the one in place; None before the first.

    Args:
        retry_secs: After how long one that is right, and was not taken, is due again.
    """

    def __init__(self, source: Source, envoy: Path, *, retry_secs: float = RETRY_SECS) -> None:
        self.source, self._envoy, self._retry_secs = source, envoy, retry_secs
        self.current: Generation | None = None
        self._seen: tuple[bytes | None, date] | None = None
        self._again_at = math.inf

    def due(self, today: date) -> bool:
        """Whether the mesh file, or the day (a flow may have ended), is another than :meth:`put_in_place` saw last, or
        what it gives was not taken some time ago."""
        return (self._content(), today) != self._seen or time.monotonic() >= self._again_at

    async def put_in_place(self, today: date, admin: Admin | None) -> bool:
        """Read the mesh file, and put what it gives in place; return False when that is there already.

        Whatever is wrong, what was in place stays, and the same file on the same day is not :meth:`due` again, unless it may
        do better another time: a policy that was narrowed must not wait for the next change.

        Args:
            today: Flows that have ended by then are left out.
            admin: The Envoy that runs from it; None before there is one.

        Raises:
            MeshError: The file is wrong, or has no such node.
            ValidationError: A secret that the node needs has no path.
            PublishError: Envoy refuses it.
            NotTakenError: Envoy was too slow for it, or it could not be written; it is due again a while later.
            AdminError: Envoy does not answer; it is due again.
        """
        source, home = self.source, Path(self.source.paths.config_dir)
        self._seen, self._again_at = (self._content(), today), math.inf
        mesh = load_mesh(source.mesh_file)
        files = render_node(mesh, source.node, source.paths, otlp=source.otlp, day=today)
        digest = sha256("".join(f"{name}\0{files[name]}\0" for name in sorted(files)).encode()).hexdigest()[:12]
        changed = self.current is None or digest != self.current.digest
        if admin is None:
            publish(files, home, envoy=self._envoy)
        elif changed:
            try:
                await deliver(files, home, admin, envoy=self._envoy)
            except AdminError:
                self._seen = None
                raise
            except (NotTakenError, OSError) as error:
                self._again_at = time.monotonic() + self._retry_secs
                if isinstance(error, NotTakenError):
                    raise
                raise NotTakenError(f"cannot write {error.filename2 or error.filename or home}: {error.strerror}") from error
        self.current = Generation(mesh, digest, files[BOOTSTRAP])
        return changed

    def _content(self) -> bytes | None:
        try:
            return sha256(self.source.mesh_file.read_bytes()).digest()
        except OSError:
            return None


def reason(error: Exception) -> str:
    """Return *error* as one line."""
    return "; ".join(error.problems if isinstance(error, MeshError) else str(error).splitlines())
