"""Where one node's sidecar finds its files, as absolute paths on the machine (or in the container) it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from blazen_mesh.address import check_socket_path
from blazen_peer.errors import ValidationError

__all__ = ["NodePaths"]


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The files of one sidecar.

    Attributes:
        identity_dir: Holds ``current`` (a link that is swapped whole), with ``tls.crt``, ``tls.key``, ``bundle.crt`` and
            ``crl.pem``.
        config_dir: Holds ``envoy.json``, ``lds.json``, ``cds.json``, ``rds.json`` and ``sds/``.
        admin_socket: Where Envoy's admin interface listens.
        proof_file: The node's own secret, which the ingress adds to every call and the peer compares.
        token_file: What ``inject_token`` injects; None where no egress port asks for it.

    Raises:
        ValidationError: A path is relative (Envoy would look for it from wherever it was started), or the socket's too long.
    """

    identity_dir: str
    config_dir: str
    admin_socket: str
    proof_file: str
    token_file: str | None = None

    def __post_init__(self) -> None:
        for path in (self.identity_dir, self.config_dir, self.admin_socket, self.proof_file, self.token_file):
            if path is not None and not PurePosixPath(path).is_absolute():
                raise ValidationError(f"{path!r} must be an absolute path")
        try:
            check_socket_path(self.admin_socket)
        except ValueError as error:
            raise ValidationError(f"--admin-socket: {error}") from None

    def config(self, name: str) -> str:
        """Return the path of the file *name* (``lds.json``) of the configuration."""
        return f"{self.config_dir}/{name}"

    def sds(self, name: str) -> str:
        """Return the path of the secret-discovery file called *name*."""
        return self.config(f"sds/{name}.json")
