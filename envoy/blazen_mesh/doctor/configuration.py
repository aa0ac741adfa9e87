"""Whether a sidecar runs what the mesh file says: its open ports, and the policy that was rendered beside it."""

from __future__ import annotations

import hashlib
import json
from datetime import date

from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.doctor.findings import Finding, Names
from blazen_mesh.doctor.places import NodeFiles
from blazen_mesh.mesh import Mesh
from blazen_mesh.xds import dump
from blazen_peer.errors import ValidationError
from blazen_peer.policy import Policy

__all__ = ["digest_of", "examine_configuration"]


def digest_of(mesh: Mesh, node: str) -> str:
    """Return what the peer of *node* says that it enforces, when it was given the policy that *mesh* renders for it."""
    text = dump(json.loads(mesh.policy_of(node).to_json()))
    return hashlib.sha256(text.encode()).hexdigest()


async def examine_configuration(names: Names, files: NodeFiles, mesh: Mesh, today: date) -> list[Finding]:
    """Return how the sidecar of *files* differs from what *mesh*, as it is *today*, makes of it; nothing where it is silent."""
    mesh = mesh.on(today)
    wanted = {way.name: way.port for way in mesh.ways(files.node)}
    wanted["ingress"] = mesh.peer(files.node).ingress_bind.port
    try:
        body = json.loads(await Admin(files.admin_socket).get("/listeners?format=json"))
    except AdminError:
        return []
    opened = {
        entry["name"]: entry["local_address"].get("socket_address", {}).get("port_value")
        for entry in body.get("listener_statuses", [])
    }
    lacks = [f"{name} on port {port}" for name, port in sorted(wanted.items()) if opened.get(name) != port]
    extra = [f"{name} on port {port}" for name, port in sorted(opened.items()) if wanted.get(name) != port]
    told = [f"{text} {', '.join(found)}" for text, found in (("it lacks", lacks), ("it still has", extra)) if found]
    if problem := _policy_differs(files, mesh, today):
        told.append(problem)
    if told:
        return [names.wrong("configuration", "stale-configuration", "; ".join(told))]
    return [names.fine("configuration", "ports and policy are as the mesh file says")]


def _policy_differs(files: NodeFiles, mesh: Mesh, today: date) -> str | None:
    try:
        rendered = Policy.from_json((files.config_dir / "policy.json").read_bytes())
    except FileNotFoundError:
        return "there is no policy.json"
    except ValidationError as error:
        return f"policy.json cannot be used: {error}"
    wanted = mesh.policy_of(files.node)
    if rendered.on(today).to_json() == wanted.to_json():
        return None
    return "the policy that was rendered has other flows, data classes or another rate"
