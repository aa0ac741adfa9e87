"""The soak, cut short: ``make soak`` runs it for a minute, at more calls a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.envoy, pytest.mark.slow]


def test_nothing_is_lost(root: Path, envoy: Path) -> None:
    """While leaves, root, mesh file, token, peers and sidecars are replaced under load, every call is answered and run once."""
    argv = [sys.executable, "bench/soak.py", "--secs", "12", "--rate", "100", "--json"]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (found["wrong"], done.returncode) == ([], 0)
    numbers = found["numbers"]
    assert numbers["executed once"] == numbers["calls"] >= 1200
    assert numbers["peers restarted"] >= 1
