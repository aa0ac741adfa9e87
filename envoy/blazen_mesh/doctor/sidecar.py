"""What a running sidecar, and its supervisor where it has one, say of themselves, beside what is on disk."""

from __future__ import annotations

import asyncio

from blazen_mesh.admin import Admin, AdminError
from blazen_mesh.doctor.findings import Finding, Names
from blazen_mesh.doctor.identity import Identity
from blazen_mesh.doctor.places import NodeFiles
from blazen_mesh.ready import SOCKET_NAME, readiness, summary

__all__ = ["examine_sidecar"]

TAKE_UP_SECS = 1.0
"""Sidecars take up a new certificate within a tenth of it."""

_REFUSALS = r"^sds\..*\.(update_rejected|key_rotation_failed)$"


async def examine_sidecar(names: Names, files: NodeFiles, identity: Identity | None) -> list[Finding]:
    """Return what the sidecar of *files* serves, has refused, and lacks."""
    admin = Admin(files.admin_socket)
    try:
        await admin.get("/server_info")
    except AdminError as error:
        return [names.wrong("sidecar", "sidecar-down", str(error)), *await _supervisor(names, files)]
    try:
        reason = await admin.unready()
        served = await _served(admin, identity)
        refused = {name: times for name, times in (await admin.stats(_REFUSALS)).items() if times}
    except AdminError as error:
        return [names.wrong("sidecar", "sidecar-not-ready", str(error))]
    found = []
    if reason:
        found.append(names.wrong("sidecar", "sidecar-not-ready", reason))
    if identity and served and served != {identity.leaf.serial_number}:
        told = ", ".join(f"{serial:x}" for serial in sorted(served))
        found.append(names.wrong("sidecar", "old-certificate", f"it serves {told}, on disk is {identity.serial}"))
    if refused:
        told = ", ".join(f"{name.split('.')[1]} {times} times" for name, times in sorted(refused.items()))
        found.append(names.wrong("sidecar", "rejected-secret", told))
    if not found:
        serial = identity.serial if identity else "?"
        found.append(names.fine("sidecar", f"ready, serves the newest certificate ({serial})"))
    return found + await _supervisor(names, files)


async def _served(admin: Admin, identity: Identity | None) -> set[int]:
    """Return the serial numbers of what it serves. One that differs from the disk's is given a moment: it may be on its way."""
    served = await admin.serials()
    if identity and served != {identity.leaf.serial_number}:
        await asyncio.sleep(TAKE_UP_SECS)
        served = await admin.serials()
    return served


async def _supervisor(names: Names, files: NodeFiles) -> list[Finding]:
    """Return what `blazen-mesh sidecar` says; nothing where the sidecar has no such supervisor."""
    if not (files.config_dir / SOCKET_NAME).exists():
        return []
    status = await asyncio.to_thread(readiness, files.config_dir)
    if not status["ready"] or status["degraded"]:
        return [names.wrong("supervisor", "supervisor", summary(status))]
    return [names.fine("supervisor", f"content, generation {status['generation']}")]
