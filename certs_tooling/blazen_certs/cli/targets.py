"""What an argument names: a node of the store, a file, or a directory."""

from __future__ import annotations

import os
from pathlib import Path

from blazen_certs import store
from blazen_certs.errors import StoreError
from blazen_certs.verify import node_named_by
from blazen_peer.errors import ValidationError
from blazen_peer.identity import check_node_id

__all__ = ["file_of", "identity_of"]


def _is_path(name: str) -> bool:
    return os.sep in name or name in (".", "..")


def _is_node(name: str, directory: Path) -> bool:
    try:
        return store.node_directory(directory, check_node_id(name)).is_dir()
    except ValidationError:
        return False


def file_of(name: str, directory: Path) -> Path:
    """Return the PEM file that *name* stands for: itself, or a node's certificate.

    Raises:
        StoreError: There is neither.
        ValidationError: It is a directory.
    """
    if not _is_path(name) and _is_node(name, directory):
        return store.node_directory(directory, name) / store.CURRENT / store.CERTIFICATE
    path = Path(name)
    if not path.exists():
        raise StoreError(f"{name} is neither a file nor a node of {directory}")
    if path.is_dir():
        raise ValidationError(f"{name} is a directory: name a file in it")
    return path


def identity_of(target: str, directory: Path) -> tuple[Path, str | None]:
    """Return the directory to verify, and whose it must be where that is known."""
    if not _is_path(target) and _is_node(target, directory):
        return store.node_directory(directory, target), target
    path = Path(target)
    if not path.is_dir():
        raise StoreError(f"{target} is neither a node of {directory} nor a directory: blazen-certs issue NODE makes a node's")
    return path, node_named_by(path)
