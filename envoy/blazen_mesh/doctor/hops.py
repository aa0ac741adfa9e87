"""The hops of a mesh: each way on which a node may call another."""

from __future__ import annotations

from dataclasses import dataclass

from blazen_mesh.address import TcpAddress
from blazen_mesh.doctor.findings import Names
from blazen_mesh.mesh import Mesh

__all__ = ["Hop", "hops_of"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One egress port and where it leads.

    Attributes:
        data_class: What the port stamps on every call; None in a mesh without data classes.
        inject_token: Whether the sidecar itself adds the token.
    """

    caller: str
    callee: str
    data_class: str | None
    egress: TcpAddress
    sidecar: TcpAddress
    inject_token: bool

    @property
    def listener(self) -> str:
        """The name of its listener, which is ``hop`` in the log of the caller's sidecar."""
        return f"egress {self.callee}" + (f" {self.data_class}" if self.data_class else "")

    @property
    def names(self) -> Names:
        """What findings about it are said of."""
        subject = f"{self.caller} -> {self.callee}" + (f" ({self.data_class})" if self.data_class else "")
        return Names(subject, self.callee, self.caller, self.callee, str(self.sidecar))


def hops_of(mesh: Mesh, node: str | None) -> list[Hop]:
    """Return every hop of *mesh*, or those from and to *node*."""
    return [
        Hop(
            caller,
            way.callee,
            way.data_class,
            TcpAddress("127.0.0.1", way.port),
            mesh.peer(way.callee).sidecar,
            way.inject_token,
        )
        for caller in sorted(mesh.peers)
        for way in mesh.ways(caller)
        if node in (None, caller, way.callee)
    ]
