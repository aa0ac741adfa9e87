"""Where a node's files are on this machine: its rendered configuration says it all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blazen_mesh.kept_log import LOG_NAME
from blazen_peer.errors import ValidationError

__all__ = ["NodeFiles", "find_nodes", "read_node"]


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """One node's files.

    Attributes:
        node: Its id, as its sidecar was told.
        config_dir: Holds ``envoy.json`` and ``sds/``.
        identity_dir: Holds ``current``.
        admin_socket: Where its sidecar's admin interface listens.
        wants_crl: Whether its sidecar was told to read a revocation list.
        token_file: The token, where the sidecar was told of it.
        log: What `blazen-mesh up` keeps of its sidecar's log; None where nobody keeps it.
    """

    node: str
    config_dir: Path
    identity_dir: Path
    admin_socket: Path
    wants_crl: bool
    token_file: Path | None
    log: Path | None


def find_nodes(directory: Path, config_dirs: Iterable[Path]) -> dict[str, NodeFiles]:
    """Return the nodes whose files are on this machine, by name.

    Args:
        directory: Where ``blazen-mesh up`` keeps its mesh (each node below ``run/``); it need not be there.
        config_dirs: What ``blazen-mesh render --out`` has written, one node each.

    Raises:
        ValidationError: One of *config_dirs* holds no rendered node.
        OSError: A file cannot be read.
    """
    homes = [path.parent for path in sorted((directory / "run").glob("*/envoy.json"))]
    return {files.node: files for files in map(read_node, [*homes, *config_dirs])}


def read_node(config_dir: Path) -> NodeFiles:
    """Return the node that was rendered into *config_dir*.

    Raises:
        ValidationError: Nothing that `blazen-mesh render` has written is there.
        OSError: A file cannot be read.
    """
    try:
        envoy = json.loads((config_dir / "envoy.json").read_text(encoding="utf-8"))
        leaf = _resource(config_dir / "sds" / "leaf.json")["tls_certificate"]
        bundle = _resource(config_dir / "sds" / "bundle.json")["validation_context"]
        return NodeFiles(
            node=envoy["node"]["id"],
            config_dir=config_dir.absolute(),
            identity_dir=Path(leaf["certificate_chain"]["filename"]).parent.parent,
            admin_socket=Path(envoy["admin"]["address"]["pipe"]["path"]),
            wants_crl="crl" in bundle,
            token_file=_token_file(config_dir / "sds" / "token.json"),
            log=config_dir / LOG_NAME if (config_dir / LOG_NAME).exists() else None,
        )
    except FileNotFoundError as error:
        raise ValidationError(f"{error.filename} is not there: name what blazen-mesh render --out has written") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValidationError(f"{config_dir} does not hold what blazen-mesh render writes: render the node anew") from None


def _token_file(secret: Path) -> Path | None:
    return Path(_resource(secret)["generic_secret"]["secret"]["filename"]) if secret.exists() else None


def _resource(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["resources"][0]
