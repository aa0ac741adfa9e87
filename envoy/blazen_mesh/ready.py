"""Is this node's sidecar ready? Asks its supervisor. ``python -m blazen_mesh.ready DIR`` is a healthcheck that starts fast.

Exit codes: 0 ready, 1 not, 2 wrong use.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

from blazen_mesh.unix_http import NoAnswerError, ask

__all__ = ["SOCKET_NAME", "main", "readiness", "summary"]

SOCKET_NAME = "sidecar.sock"


def readiness(config_dir: Path) -> dict[str, Any]:
    """Return the status of the sidecar whose files are in *config_dir*, with ``ready`` in it."""
    try:
        code, body = ask(config_dir / SOCKET_NAME, "/")
        status: dict[str, Any] = json.loads(body)
    except (NoAnswerError, ValueError) as error:
        return {"ready": False, "state": "gone", "why_not": f"no supervisor answers in {config_dir}: {error}", "degraded": []}
    return {**status, "ready": status.get("ready") is True and code == HTTPStatus.OK}


def summary(status: dict[str, Any]) -> str:
    """Return one line."""
    if not status["ready"]:
        return f"not ready: {status['state']}: {status['why_not']}"
    return "; ".join(["ready", *(f"degraded: {line}" for line in status["degraded"])])


def main(argv: list[str]) -> int:
    """Print one line, and return the exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        sys.stderr.write("usage: python -m blazen_mesh.ready CONFIG_DIR\n")
        return 2
    status = readiness(Path(argv[0]))
    sys.stdout.write(f"{summary(status)}\n")
    return 0 if status["ready"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
