"""``bench/call_parts.py`` still measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_parts() -> None:
    """Each line is measured, and the whole takes longer than any part of it."""
    command = (sys.executable, "bench/call_parts.py", "--json", "--repeats", "1", "--in-flight", "64")
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    parts = {(part["end"], part["what"].partition(":")[0]): part["us"] for part in json.loads(done.stdout)}
    assert parts["server", "lane and call together"] > parts["server", "the run alone, two steps"] > 0
    assert parts["server", "lane and call together"] > parts["server", "the lane alone"] > 0
    assert parts["client", "lane and call together"] > parts["client", "the lane alone"] > 0
