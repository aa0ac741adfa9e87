"""What Envoy reads while it runs: listeners, clusters and routes as files of their own, each with its version.

An Envoy that runs takes up a file that was moved into place: a new flow or peer needs no restart. Its bootstrap,
``envoy.json``, holds only what no flow changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from blazen_mesh.tls import ANY

__all__ = [
    "BOOTSTRAP",
    "CDS",
    "LDS",
    "RDS",
    "dump",
    "file_source",
    "resources_of",
    "version_of",
    "whole",
    "with_clusters_of",
    "xds_files",
]

BOOTSTRAP, CDS, LDS, RDS = "envoy.json", "cds.json", "lds.json", "rds.json"
_TYPES = {
    CDS: f"{ANY}envoy.config.cluster.v3.Cluster",
    LDS: f"{ANY}envoy.config.listener.v3.Listener",
    RDS: f"{ANY}envoy.config.route.v3.RouteConfiguration",
}
VERSION_CHARS = 16


def dump(document: Mapping[str, Any]) -> str:
    """Return *document* as JSON. Never YAML, whose reader in Envoy takes a node called ``n`` for false. Keys are sorted."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def file_source(path: str) -> dict[str, Any]:
    """Return ``ConfigSource`` of the file *path*."""
    return {"resource_api_version": "V3", "path_config_source": {"path": path}}


def xds_files(
    listeners: Sequence[dict[str, Any]], clusters: Sequence[dict[str, Any]], routes: dict[str, Any]
) -> dict[str, str]:
    """Return the files that hold *listeners*, *clusters* and the *routes* of the ingress, by their names.

    Those of the other listeners stand in the listeners: each file that Envoy watches takes one of the 128 inotify instances
    that Linux gives a user by default, and without one left Envoy ends.
    """
    found = {CDS: clusters, LDS: listeners, RDS: [routes]}
    return {name: _response(_TYPES[name], resources) for name, resources in found.items()}


def resources_of(text: str) -> list[dict[str, Any]]:
    """Return the resources in a file, each without its type."""
    return [{key: value for key, value in item.items() if key != "@type"} for item in json.loads(text)["resources"]]


def version_of(text: str) -> str:
    """Return the version that a file names: equal content, equal version."""
    return str(json.loads(text)["version_info"])


def with_clusters_of(cds: str, former: str) -> str:
    """Return *cds* with the clusters that only *former* has: none that a listener still leads to goes before it."""
    wanted = json.loads(cds)["resources"]
    names = {item["name"] for item in wanted}
    kept = [item for item in json.loads(former)["resources"] if item["name"] not in names]
    return cds if not kept else _response(_TYPES[CDS], [*wanted, *kept])


def whole(files: Mapping[str, str]) -> dict[str, Any]:
    """Return the bootstrap of *files* with everything that it would read from other files in it, for Envoy to look at."""
    found: dict[str, Any] = json.loads(files[BOOTSTRAP])
    found.pop("dynamic_resources")
    listeners = resources_of(files[LDS])
    for listener in listeners:
        for chain in listener["filter_chains"]:
            for network_filter in chain["filters"]:
                manager = network_filter["typed_config"]
                if manager.pop("rds", None):
                    (manager["route_config"],) = resources_of(files[RDS])
    found["static_resources"] = {"listeners": listeners, "clusters": resources_of(files[CDS])}
    return found


def _response(type_url: str, resources: Sequence[dict[str, Any]]) -> str:
    typed = [{"@type": type_url, **item} for item in resources]
    version = hashlib.sha256(dump({"resources": typed}).encode()).hexdigest()[:VERSION_CHARS]
    return dump({"version_info": version, "type_url": type_url, "resources": typed})
