"""Envoy's admin interface over its Unix socket, and what readiness is."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from blazen_mesh.unix_http import NoAnswerError, ask

__all__ = ["Admin", "AdminError"]


class AdminError(Exception):
    """The admin interface does not answer, or not with what was asked for."""


class Admin:
    """One sidecar's admin interface.

    Every request is bounded by two seconds.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def get(self, path: str) -> str:
        """Return the body of ``GET`` *path*.

        Raises:
            AdminError: Nobody answers, or the answer is not 200.
        """
        return await asyncio.to_thread(self._request, "GET", path)

    async def post(self, path: str) -> str:
        """Return the body of ``POST`` *path*; raises as :meth:`get`."""
        return await asyncio.to_thread(self._request, "POST", path)

    async def stats(self, pattern: str) -> dict[str, int]:
        """Return the counters and gauges whose names match the regular expression *pattern*."""
        body = json.loads(await self.get(f"/stats?format=json&filter={pattern}"))
        return {entry["name"]: entry["value"] for entry in body["stats"] if "value" in entry}

    async def certificates(self) -> list[dict[str, Any]]:
        """Return the leaves that the sidecar serves: ``serial_number``, ``expiration_time`` and more of each."""
        body = json.loads(await self.get("/certs"))
        return [leaf for entry in body.get("certificates", []) for leaf in entry.get("cert_chain", [])]

    async def serials(self) -> set[int]:
        """Return the serial numbers of the leaves that the sidecar serves."""
        return {int(leaf["serial_number"], 16) for leaf in await self.certificates()}

    async def epoch(self) -> int:
        """Return which Envoy of a row answers (``--restart-epoch``)."""
        return int(json.loads(await self.get("/server_info"))["command_line_options"]["restart_epoch"])

    async def refused_secrets(self) -> int:
        """Return how often Envoy could not use a secret since it started.

        It counts an update whose certificates it then could not load as a success, and as a failed rotation besides.
        """
        return sum((await self.stats(r"^sds\..*\.(key_rotation_failed|update_rejected)$")).values())

    async def refused(self) -> str | None:
        """Return which part of its configuration Envoy refused from the start, such as a listener whose port is taken."""
        found = await self.stats(r"^(listener_manager\.lds|cluster_manager\.cds)\.update_(success|rejected)$")
        for kind, counted in (("listeners", "listener_manager.lds"), ("clusters", "cluster_manager.cds")):
            if found.get(f"{counted}.update_rejected") and not found.get(f"{counted}.update_success"):
                return kind
        return None

    async def unready(self) -> str | None:
        """Return why the sidecar cannot serve, or None when it can.

        ``/ready`` alone says LIVE without a usable certificate. A secret counts once Envoy has taken it: a later one that it
        refused leaves it serving the former.
        """
        try:
            await self.get("/ready")
            leaves = await self.certificates()
            taken = await self.stats(r"^sds\..*\.update_success$")
            refused = await self.refused()
        except AdminError as error:
            return str(error)
        if refused:
            return f"it refuses its {refused}; its log says why"
        if not leaves:
            return "it has no certificate"
        if missing := sorted(name.split(".")[1] for name, times in taken.items() if not times):
            return f"it could not read {', '.join(missing)}"
        now = datetime.now(UTC)
        expired = [leaf for leaf in leaves if datetime.fromisoformat(leaf["expiration_time"]) <= now]
        return f"its certificate expired at {expired[0]['expiration_time']}" if expired else None

    async def active_calls(self) -> int:
        """Return how many calls are in progress at its listeners, the admin interface's own not counted."""
        found = await self.stats(r"^http\..*\.downstream_rq_active$")
        return sum(count for name, count in found.items() if not name.startswith("http.admin."))

    def _request(self, method: str, path: str) -> str:
        try:
            status, body = ask(self.socket_path, path, method=method)
        except NoAnswerError as error:
            raise AdminError(f"its admin socket does not answer: {error}") from None
        if status != HTTPStatus.OK:
            raise AdminError(f"{path} answers {status}: {body.strip()[:200]}")
        return body
