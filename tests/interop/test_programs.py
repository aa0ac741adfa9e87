"""Where the real Blazen cannot be built, one line says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.programs import CannotBuildError, build


@pytest.mark.parametrize(
    ("cargo", "why"),
    [
        pytest.param(None, r"^no cargo: install Rust 1\.91 or newer$", id="none"),
        pytest.param("echo 'cargo 1.90.1 (ab 2025-09-01)'", r"^cargo 1\.90\.1 .*: Rust 1\.91 or newer is needed$", id="old"),
        pytest.param("exit 1", r"^cargo says no version: Rust 1\.91 or newer is needed$", id="broken"),
        pytest.param(
            '[ "$1" = --version ] && echo "cargo 1.91.0" || { echo "error: no network" >&2; exit 101; }',
            r"^cargo build failed: error: no network \(by hand: ",
            id="build-fails",
        ),
    ],
)
def test_cannot_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cargo: str | None, why: str) -> None:
    """Without a cargo that can build them there is a reason, and nothing built is left to be taken for the programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bin_dir := tmp_path / "bin").mkdir()
    if cargo is not None:
        (bin_dir / "cargo").write_text(f"#!/bin/sh\n{cargo}\n")
        (bin_dir / "cargo").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_dir))
    for _ in range(2):
        with pytest.raises(CannotBuildError, match=why):
            build()
