"""What a served step's own log lines look like."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blazen_peer import PeerClient

APP = """\
import logging
from blazen_peer import Context, StartEvent, StopEvent, step

@step("app::log")
def log(event: StartEvent, ctx: Context) -> StopEvent:
    ctx.logger.info("read %d pages", 3)
    try:
        raise ValueError("broken page")
    except ValueError:
        ctx.logger.exception("page 2")
    logging.getLogger("app").info("no context")
    return StopEvent(result=ctx.run_id)
"""


def test_run_is_named(start_peer: Callable[..., Any], tmp_path: Path) -> None:
    """A line written by a context's logger ends with its run's id, before a traceback; other lines are as ever."""
    (tmp_path / "app.py").write_text(APP)
    listen = ("--listen", "127.0.0.1:0", "--lame-duck-secs", "0")
    peer = start_peer("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", *listen, cwd=tmp_path)
    with PeerClient.connect(peer.address, "node-a") as client:
        run_id = client.run_remote_workflow_blocking("w", ["app::log"], "null", 10).result
    log = peer.wait_for("no context")
    assert re.search(rf"INFO blazen_peer\.step: read 3 pages \[run={run_id}\]\n", log)
    assert re.search(rf"ERROR blazen_peer\.step: page 2 \[run={run_id}\]\nTraceback", log)
    assert re.search(r"INFO app: no context\n", log)
