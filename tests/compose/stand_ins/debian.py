"""What Debian's package registry gives: tools of this machine, and packages of the suite that the images are of."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from store import StandInError, run, say

__all__ = ["SUITE", "install", "mirror", "unpack"]

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def install(programs: dict[str, str]) -> None:
    """Install the packages of those *programs* (name -> package) that this machine lacks."""
    missing = sorted({package for program, package in programs.items() if not shutil.which(program, path=_path())})
    if not missing:
        return
    if os.geteuid() != 0:
        raise StandInError(f"install these first, or run as root: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=env)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env)


def mirror() -> str:
    """Return where this machine's own Debian packages come from.

    Raises:
        StandInError: It is no Debian, or its sources do not say.
    """
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    for source in sorted(Path("/etc/apt").glob("sources.list*")) + sorted(Path("/etc/apt/sources.list.d").glob("*")):
        if not source.is_file():
            continue
        text = source.read_text()
        one_line = re.search(rf"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+{codename}\s", text, re.MULTILINE)
        if one_line:
            return one_line[1]
        for stanza in text.split("\n\n"):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.*)$", stanza, re.MULTILINE))
            if codename in fields.get("Suites", "").split():
                return str(fields["URIs"].split()[0])
    raise StandInError("cannot tell where this machine's Debian packages come from: stand-ins are for Debian only")


def unpack(packages: tuple[str, ...], into: Path) -> None:
    """Unpack *packages* of :data:`SUITE` below *into*. This machine's own packages and lists stay as they are."""
    work = into / ".apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
    configuration = work / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "{work}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{work}/lists";\nDir::Cache "{work}/cache";\nAPT::Sandbox::User "root";\n'
    )
    env = {"APT_CONFIG": str(configuration)}
    run(["apt-get", "update", "-qq"], env=env)
    run(["apt-get", "download", "-qq", *packages], env=env, cwd=work)
    for archive in sorted(work.glob("*.deb")):
        run(["dpkg-deb", "-x", archive, into])
    shutil.rmtree(work)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
