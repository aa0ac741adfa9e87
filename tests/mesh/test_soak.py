"""The soak, cut short: ``make soak`` runs it for a minute, at more calls a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.envoy, pytest.mark.slow]


def soaked(root: Path, *options: str) -> dict[str, Any]:
    """Run the soak, see that it found nothing wrong, and return its numbers."""
    argv = [sys.executable, "bench/soak.py", *options, "--json"]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (found["wrong"], done.returncode) == ([], 0)
    numbers: dict[str, Any] = found["numbers"]
    return numbers


def test_nothing_is_lost(root: Path, envoy: Path) -> None:
    """While leaves, root, mesh file, token, peers and sidecars are replaced under load, every call is answered and run once."""
    numbers = soaked(root, "--secs", "12", "--rate", "100")
    assert numbers["executed once"] == numbers["calls"] >= 1200
    assert numbers["by lanes"] > numbers["calls"] / 2
    assert numbers["peers restarted"] >= 1


@pytest.mark.timeout(300)
def test_killed(root: Path, envoy: Path) -> None:
    """A peer is killed every 5 s besides: calls that were in flight on it, those alone, end with ``TransportError``; none runs
    twice, none has no end."""
    numbers = soaked(root, "--secs", "20", "--rate", "100", "--kill-secs", "5")
    lost = numbers["TransportError, in flight on a killed peer"]
    assert numbers["peers killed"] >= 2
    assert 0 < lost < 200
    assert numbers["answered with their own id"] == numbers["calls"] - lost
    assert numbers["unexplained"] == numbers["executed more than once"] == numbers["without an end"] == 0
