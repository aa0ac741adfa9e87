"""What stand-ins are made of is kept outside the work tree, under a key of what it was made from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["MINUTE_SECS", "StandInError", "cache_dir", "keep", "key_of", "run", "say"]

MINUTE_SECS = 60.0


class StandInError(Exception):
    """A stand-in cannot be made; the text says what to do."""


def cache_dir() -> Path:
    """Return where everything is kept; it may be removed at any time when no engine runs from it."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(root) / "blazen-stand-ins"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key_of(*parts: str | bytes) -> str:
    """Return a short name for all of *parts* together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8) + raw)
    return digest.hexdigest()[:16]


def keep(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the directory called *name* that *make* filled for this *key*, now or earlier; other keys' are removed."""
    wanted = cache_dir() / f"{name}-{key}"
    if wanted.is_dir():
        say(f"{name}: kept")
        return wanted
    began = time.monotonic()
    draft = cache_dir() / f"{name}-{key}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    make(draft)
    for former in cache_dir().glob(f"{name}-*"):
        if former != draft:
            shutil.rmtree(former, ignore_errors=True)
    draft.rename(wanted)
    say(f"{name}: made in {time.monotonic() - began:.0f} s")
    return wanted


def run(
    argv: Sequence[str | Path],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout_secs: float = 15 * MINUTE_SECS,
) -> str:
    """Run *argv* to its end and return what it printed.

    Raises:
        StandInError: It failed; the text ends with its last lines.
    """
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_secs,
            check=False,
        )
    except FileNotFoundError:
        raise StandInError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise StandInError(f"{' '.join(command)} did not end within {timeout_secs:g} s") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise StandInError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{tail}")
    return done.stdout


def say(line: str) -> None:
    """Tell the person who waits."""
    sys.stderr.write(f"stand-ins: {line}\n")
    sys.stderr.flush()
