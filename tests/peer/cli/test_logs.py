"""What a served step's own log lines look like."""

from __future__ import annotations

import json
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


def test_lines_are_objects(start_peer: Callable[..., Any], tmp_path: Path) -> None:
    """With ``--log-format json`` every line is one object, with its run, its workflow, its node and its traceback."""
    (tmp_path / "app.py").write_text(APP)
    listen = ("--listen", "127.0.0.1:0", "--lame-duck-secs", "0", "--log-format", "json")
    peer = start_peer("blazen-peer", "serve", "--app", "app", "--node-id", "node-b", *listen, cwd=tmp_path)
    with PeerClient.connect(peer.address.rstrip('",'), "node-a") as client:
        run_id = client.run_remote_workflow_blocking("w", ["app::log"], "null", 10).result
    lines = {entry["message"]: entry for entry in map(json.loads, peer.wait_for("no context").splitlines())}
    read = lines["read 3 pages"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read.pop("time"))
    assert read == {
        "level": "info",
        "logger": "blazen_peer.step",
        "message": "read 3 pages",
        "node": "node-b",
        "run_id": run_id,
        "step_id": "app::log",
        "workflow_name": "w",
        "invocation_id": read["invocation_id"],
    }
    assert lines["page 2"]["traceback"].endswith("ValueError: broken page")
    assert "run_id" not in lines["no context"]


def test_unknown_format_is_refused(command: Callable[..., Any]) -> None:
    """An unknown ``--log-format`` is one clear line that lists the two."""
    outcome = command("serve", "--app", "app", "--node-id", "b", "--log-format", "xml")
    assert (outcome.code, outcome.err) == (2, "blazen-peer: log format 'xml' is not one of text, json\n")
