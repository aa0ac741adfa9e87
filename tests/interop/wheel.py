"""The real Blazen's own Python binding, the wheel ``blazen``, outside the project and with a C library that is new enough.

The wheel wants glibc 2.38. Where the host's is older and the host is a Debian, the C library of Debian 13 is unpacked beside it
(never installed), and the same Python runs with that. Both are kept where :mod:`tests.interop.programs` keeps its programs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.programs import CannotBuildError, cache_directory

VERSION = "0.6.74"
OLDEST_GLIBC = (2, 38)
SUITE = "trixie"
PACKAGES = ("libc6", "libgcc-s1", "libstdc++6")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMMAND_SECS = 300.0


@dataclass(frozen=True)
class WheelPython:
    """How to start a Python that can import ``blazen``."""

    argv: tuple[str, ...]
    environ: dict[str, str]


def wheel_python(on_begin: Callable[[], None] = lambda: None) -> WheelPython:
    """Return it, made now unless that was done before; *on_begin* is called before what may take a while.

    Raises:
        CannotBuildError: The wheel cannot be had here, or no C library for it.
    """
    wheel = cache_directory() / f"wheel-{VERSION}"
    if not wheel.exists():
        on_begin()
        with _arriving_at(wheel) as part:
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
            _run(*pip, "--no-deps", "--target", str(part), f"blazen=={VERSION}")
    environ = {**os.environ, "PYTHONPATH": str(wheel)}
    name, version = platform.libc_ver()
    if name != "glibc":
        raise CannotBuildError("the blazen wheel needs glibc")
    if tuple(map(int, version.split("."))) >= OLDEST_GLIBC:
        return WheelPython((sys.executable,), environ)
    return WheelPython(_with_newer_libc(version), environ)


def _with_newer_libc(version: str) -> tuple[str, ...]:
    root = cache_directory() / SUITE
    if not root.exists():
        if not all((shutil.which("apt-get"), shutil.which("dpkg-deb"), Path(KEYRING).exists())):
            raise CannotBuildError(
                f"the blazen wheel needs glibc {'.'.join(map(str, OLDEST_GLIBC))}: here is {version}, and no Debian"
            )
        with _arriving_at(root) as part:
            _unpack_libc(part)
    loader = next(root.glob("usr/lib/*/ld-linux-*.so.*"))
    python = Path(sys.executable).resolve()
    libraries = (loader.parent, sysconfig.get_config_var("LIBDIR"), Path("/usr/lib") / loader.parent.name)
    return (str(loader), "--library-path", ":".join(map(str, libraries)), str(python))


def _unpack_libc(root: Path) -> None:
    """Download the packages with an apt whose state is all in a temporary directory, from the host's own mirror."""
    said = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    mirror = next((uri for uri in said.split() if "security" not in uri), None)
    if mirror is None:
        raise CannotBuildError("apt has no mirror to download a newer glibc from")
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for name in ("lists/partial", "cache/archives/partial", "packages"):
            (home / name).mkdir(parents=True)
        (home / "sources").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
        (home / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{home}/sources";\nDir::Etc::sourceparts "-";\n'
            f'Dir::State::lists "{home}/lists";\nDir::Cache "{home}/cache";\nAPT::Sandbox::User "";\n'
        )
        environ = {**os.environ, "APT_CONFIG": str(home / "apt.conf")}
        _run("apt-get", "update", "-qq", environ=environ)
        _run("apt-get", "download", "-qq", *PACKAGES, environ=environ, cwd=home / "packages")
        for package in (home / "packages").glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(root))


@contextmanager
def _arriving_at(path: Path) -> Iterator[Path]:
    """Give a fresh directory beside *path*, which becomes *path* when the block is left without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{path.name}.part", dir=path.parent))
    try:
        yield part
        if not path.exists():
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(*argv: str, environ: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"{argv[0]} took more than {COMMAND_SECS:g} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise CannotBuildError(f"{' '.join(argv[:4])} ... failed: {said[-1]}")
    return done.stdout
