"""Draw ``docs/trace.svg``: the trace of a real run of the demo, through the containers of ``compose.yaml``, out of Jaeger.

    .venv/bin/python tests/compose/picture.py

Needs a container engine (``tests/compose/stand_ins`` can make one). What it starts is gone at the end.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "trace.svg"
PROJECT = "blazen-picture"
UP_SECS, RUN_SECS = 900, 120


def main() -> int:
    """Bring a mesh up, run the demo, draw its trace, take the mesh down; 0 when all of it worked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {**os.environ, "JAEGER_PORT": str(port)}
    compose = ("docker", "compose", "--project-name", PROJECT)
    try:
        subprocess.run([*compose, "up", "--wait", "--build"], cwd=ROOT, env=env, check=True, timeout=UP_SECS)
        document = (ROOT / "examples" / "documents" / "sample.txt").read_text(encoding="utf-8")
        demo = [*compose, "run", "--rm", "-T", "demo", "--json", "-"]
        done = subprocess.run(
            demo, cwd=ROOT, env=env, check=True, timeout=RUN_SECS, input=document, stdout=subprocess.PIPE, text=True
        )
        trace_id = json.loads(done.stdout)["trace_id"]
        jaeger = ("--jaeger", f"http://127.0.0.1:{port}")
        draw = [sys.executable, "-m", "blazen_peer.cli", "trace", trace_id, *jaeger, "--wait", "30", "--svg", str(PICTURE)]
        return subprocess.run(draw, cwd=ROOT, check=False, timeout=RUN_SECS).returncode
    finally:
        subprocess.run([*compose, "down", "--volumes", "--timeout", "5"], cwd=ROOT, env=env, check=False, timeout=RUN_SECS)


if __name__ == "__main__":
    sys.exit(main())
