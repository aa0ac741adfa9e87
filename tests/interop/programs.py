"""The Rust programs below ``rust/``: the real Blazen, built outside the project and kept there.

``python tests/interop/programs.py [--release]`` builds them (about 300 crates: minutes once, nothing after) and prints where
they are. They live below ``$XDG_CACHE_HOME`` (or ``~/.cache``) in ``blazen-interop``, under the hash of their sources; that
directory may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent / "rust"
OLDEST_RUST = (1, 91)
BUILD_SECS = 1800.0
NAMES = ("interop-server", "interop-client", "interop-docs")


class CannotBuildError(Exception):
    """The programs cannot be had here; the text says why, in one line."""


@dataclass(frozen=True)
class Programs:
    """Where the programs are: the server, the client driven by lines, and the one that ``docs/interop.md`` shows."""

    server: Path
    client: Path
    docs: Path


def build(on_begin: Callable[[], None] = lambda: None, *, release: bool = False) -> Programs:
    """Return the programs, built now unless that was done before.

    Args:
        on_begin: Called before what may take minutes.
        release: Optimised, for measuring.

    Raises:
        CannotBuildError: There is no cargo, it is too old, or the build failed.
    """
    profile = "release" if release else "dev"
    cache = cache_directory()
    built = cache / f"{_hash_of_sources()}-{profile}"
    programs = Programs(*(built / name for name in NAMES))
    if not all((built / name).exists() for name in NAMES):
        _check_rust()
        if find_spec("grpc_tools") is None:
            raise CannotBuildError("no protoc: install grpcio-tools")
        on_begin()
        _build(cache, built, profile)
    return programs


def cache_directory() -> Path:
    """Return where everything is kept that is built or fetched for these tests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blazen-interop"


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files() -> list[Path]:
    return [SOURCES / "Cargo.toml", *sorted((SOURCES / "src").rglob("*.rs"))]


def _check_rust() -> None:
    cargo = shutil.which("cargo")
    wanted = ".".join(map(str, OLDEST_RUST))
    if cargo is None:
        raise CannotBuildError(f"no cargo: install Rust {wanted} or newer")
    said = subprocess.run([cargo, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    if version is None or tuple(map(int, version.groups())) < OLDEST_RUST:
        raise CannotBuildError(f"{said.strip() or 'cargo says no version'}: Rust {wanted} or newer is needed")


def _build(cache: Path, built: Path, profile: str) -> None:
    # Cargo writes its lock file beside the manifest: so it works on a copy. One target directory serves every hash, so that
    # a changed source rebuilds three programs and not 300 crates; cargo itself locks it.
    copy = cache / f"{built.name}.src"
    for path in _files():
        target = copy / path.relative_to(SOURCES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    environ = {**os.environ, "PROTOC": str(_protoc(cache)), "CARGO_TARGET_DIR": str(cache / "target")}
    command = ["cargo", "build", "--quiet", "--profile", profile, "--manifest-path", str(copy / "Cargo.toml")]
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_SECS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"cargo build took more than {BUILD_SECS:g} s") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("error")), "it said nothing")
        raise CannotBuildError(f"cargo build failed: {reason} (by hand: python tests/interop/programs.py)\n{done.stderr}")
    built.mkdir(exist_ok=True)
    for name in NAMES:
        made = cache / "target" / ("debug" if profile == "dev" else profile) / name
        shutil.copy2(made, part := built / f"{name}.part{os.getpid()}")
        part.replace(built / name)


def _protoc(cache: Path) -> Path:
    """Return a command that behaves as protoc; grpcio-tools has it inside."""
    path = cache / f"protoc-{hashlib.sha256(sys.executable.encode()).hexdigest()[:16]}"
    part = path.with_suffix(f".part{os.getpid()}")
    part.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m grpc_tools.protoc \"$@\"\n")
    part.chmod(0o755)
    part.replace(path)
    return path


if __name__ == "__main__":
    try:
        programs = build(release="--release" in sys.argv[1:])
    except CannotBuildError as error:
        sys.exit(f"cannot build the real Blazen: {error}")
    print(programs.server, programs.client, programs.docs, sep="\n")  # noqa: T201
