"""Envoy's admin interface over its Unix socket, and what readiness is."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["Admin", "AdminError"]

TIMEOUT_SECS = 2.0


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
        connection = _UnixConnection(self.socket_path)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"its admin socket does not answer: {error}") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise AdminError(f"{path} answers {response.status}: {body.strip()[:200]}")
        return body


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_SECS)
        self.sock.connect(str(self._path))
