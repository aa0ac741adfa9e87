"""What a running sidecar says of itself, beside what is on disk."""

from __future__ import annotations

from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.doctor.findings import Finding, Names
from blazen_mesh.doctor.identity import Identity
from blazen_mesh.doctor.places import NodeFiles

__all__ = ["examine_sidecar"]

_REFUSALS = r"^sds\..*\.(update_rejected|key_rotation_failed)$"


async def examine_sidecar(names: Names, files: NodeFiles, identity: Identity | None) -> list[Finding]:
    """Return what the sidecar of *files* serves, has refused, and lacks."""
    admin = Admin(files.admin_socket)
    try:
        state = await admin.get("/server_info")
    except AdminError as error:
        return [names.wrong("sidecar", "sidecar-down", str(error))]
    del state
    try:
        reason = await admin.unready()
        served = sorted({leaf["serial_number"].lstrip("0") for leaf in await admin.certificates()})
        refused = {name: times for name, times in (await admin.stats(_REFUSALS)).items() if times}
    except AdminError as error:
        return [names.wrong("sidecar", "sidecar-not-ready", str(error))]
    found = []
    if reason:
        found.append(names.wrong("sidecar", "sidecar-not-ready", reason))
    if identity and served and served != [identity.serial]:
        found.append(names.wrong("sidecar", "old-certificate", f"it serves {', '.join(served)}, on disk is {identity.serial}"))
    if refused:
        told = ", ".join(f"{name.split('.')[1]} {times} times" for name, times in sorted(refused.items()))
        found.append(names.wrong("sidecar", "rejected-secret", told))
    return found or [names.fine("sidecar", f"ready, serves the newest certificate ({identity.serial if identity else '?'})")]
