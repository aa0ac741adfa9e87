"""A configuration put in place: shown to Envoy first, moved in the order that loses no call, and seen to be taken.

    files = render_node(mesh, node, paths)
    publish(files, directory, envoy=envoy)                    # nobody runs from it yet, or it may take its time
    await deliver(files, directory, admin, envoy=envoy)       # the Envoy behind *admin* has it when this returns

New clusters come before the listeners and routes that lead to them, old ones go after.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blazen_mesh.admin import Admin
from blazen_mesh.binary import validate
from blazen_mesh.render import replace_file
from blazen_mesh.xds import BOOTSTRAP, CDS, LDS, RDS, dump, version_of, whole, with_clusters_of
from blazen_peer.errors import BlazenError

__all__ = ["NotTakenError", "Publication", "PublishError", "deliver", "objections", "publish", "versions"]

TAKEN_SECS = 10.0
POLL_SECS = 0.02
_COUNTED_AS = {LDS: "listener_manager.lds", CDS: "cluster_manager.cds", RDS: "http.ingress.rds.ingress"}


class PublishError(BlazenError):
    """Envoy refuses a configuration, or does not take it up; the text has a line for each objection."""

    kind = "Publish"


class NotTakenError(PublishError):
    """Nothing is wrong with a configuration, and yet it is not in force: Envoy was too slow, or a file could not be written."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was done.

    Attributes:
        changed: The files that are others than before, or gone.
        restart: Whether one of them is read only when Envoy starts.
    """

    changed: tuple[str, ...]
    restart: bool


def publish(files: Mapping[str, str], directory: Path, *, envoy: Path | None) -> Publication:
    """Put *files*, which are ``render_node``'s, in place below *directory*; files of discovery that are not among them go.

    Each file is moved into place whole. Nothing changes where *envoy* has something against them.

    Args:
        envoy: Who looks at them first; None where there is no Envoy to ask.

    Raises:
        PublishError: It refuses them.
    """
    before = _in_place(directory)
    _check(files, envoy if _differs(files, before) else None)
    for step in _steps(files, before):
        _write(step, directory)
    _remove(files, before, directory)
    return _publication(files, before)


async def deliver(
    files: Mapping[str, str], directory: Path, admin: Admin, *, envoy: Path | None, within_secs: float = TAKEN_SECS
) -> Publication:
    """Do :meth:`publish` under an Envoy that runs, waiting after each step until it has taken it.

    Where it does not, what was in place before is put there again.

    Args:
        within_secs: How long each step may take.

    Raises:
        PublishError: It refuses them, or (``NotTakenError``) does not take them up in time.
        OSError: A file cannot be written.
        AdminError: Its admin interface does not answer.
    """
    before = _in_place(directory)
    await asyncio.to_thread(_check, files, envoy if _differs(files, before) else None)
    try:
        for step in _steps(files, before):
            refused = await _refused(admin)
            _write(step, directory)
            await _taken(admin, step, refused, within_secs)
    except PublishError:
        for step in _steps(before, {**before, **files}):
            _write(step, directory)
        raise
    _remove(files, before, directory)
    return _publication(files, before)


def objections(files: Mapping[str, str], envoy: Path) -> list[str]:
    """Return what *envoy* has against *files*, one line each; empty when it would run from them.

    Everything is put into one bootstrap, since Envoy, when it validates, reads no other file. Secrets are not looked at.
    """
    with tempfile.TemporaryDirectory(prefix="bm") as home:
        document = whole(files)
        document["admin"]["address"]["pipe"]["path"] = f"{home}/admin.sock"
        for source in _path_sources(document):
            # What is watched must exist, and may be another machine's.
            source["path"] = f"{home}/{Path(source['path']).name}"
            if "watched_directory" in source:
                source["watched_directory"]["path"] = home
        for name, text in files.items():
            if name.startswith("sds/"):
                (Path(home) / Path(name).name).write_text(text, encoding="utf-8")
        (Path(home) / BOOTSTRAP).write_text(dump(document), encoding="utf-8")
        return validate(envoy, Path(home) / BOOTSTRAP)


async def versions(admin: Admin) -> dict[str, str]:
    """Return the version of each file that the Envoy behind *admin* runs from, by the name that Envoy counts it under."""
    body = json.loads(await admin.get("/stats?format=json&type=TextReadouts&filter=version_text"))
    return {
        str(entry["name"]).removesuffix(".version_text"): str(entry["value"]) for entry in body["stats"] if "value" in entry
    }


def _check(files: Mapping[str, str], envoy: Path | None) -> None:
    if envoy and (found := objections(files, envoy)):
        raise PublishError("\n".join(f"Envoy refuses it: {line}" for line in found))


def _in_place(directory: Path) -> dict[str, str]:
    names = [BOOTSTRAP, CDS, LDS, RDS, "peers.json", "policy.json"]
    names += [f"sds/{path.name}" for path in sorted((directory / "sds").glob("*.json"))]
    return {name: (directory / name).read_text(encoding="utf-8") for name in names if (directory / name).is_file()}


def _differs(files: Mapping[str, str], before: Mapping[str, str]) -> bool:
    return dict(files) != dict(before)


def _publication(files: Mapping[str, str], before: Mapping[str, str]) -> Publication:
    changed = tuple(sorted(name for name in {**files, **before} if files.get(name) != before.get(name)))
    return Publication(changed, BOOTSTRAP in changed)


def _steps(files: Mapping[str, str], before: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield what to move, one step after another; nothing of a step may be in force before the one before it is."""
    changed = {name: text for name, text in files.items() if before.get(name) != text}
    plain = {name: text for name, text in changed.items() if name not in (CDS, LDS, RDS)}
    if plain:
        yield plain  # secrets among them, which clusters and listeners name
    cds = with_clusters_of(files[CDS], before[CDS]) if CDS in before else files[CDS]
    if cds != before.get(CDS):
        yield {CDS: cds}
    for name in (RDS, LDS):  # an ingress that is new finds its routes in place
        if name in changed:
            yield {name: changed[name]}
    if cds != files[CDS]:
        yield {CDS: files[CDS]}


def _write(step: Mapping[str, str], directory: Path) -> None:
    for name in sorted(step, reverse=True):  # sds/ before envoy.json
        replace_file(directory / name, step[name].encode(), 0o644)


def _remove(files: Mapping[str, str], before: Mapping[str, str], directory: Path) -> None:
    for name in before:
        if name not in files:
            (directory / name).unlink(missing_ok=True)


def _path_sources(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "path_config_source" in value:
            yield value["path_config_source"]
        for inner in value.values():
            yield from _path_sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _path_sources(inner)


async def _refused(admin: Admin) -> dict[str, int]:
    return await admin.stats(r"(lds|cds|rds\.ingress)\.update_rejected$")


async def _taken(admin: Admin, step: Mapping[str, str], refused: Mapping[str, int], within_secs: float) -> None:
    wanted = {_COUNTED_AS[name]: version_of(text) for name, text in step.items() if name in _COUNTED_AS}
    missing = dict(wanted)
    try:
        async with asyncio.timeout(within_secs):
            while True:
                known = await versions(admin)
                # Routes of an ingress that is not there yet are read with it.
                missing = {n: v for n, v in wanted.items() if n in known and known[n] != v}
                again = [name for name, times in (await _refused(admin)).items() if times > refused.get(name, 0)]
                if again:
                    raise PublishError(f"Envoy refuses it: {', '.join(sorted(again))}; its own log says why")
                if not missing and not await _warming(admin):
                    return
                await asyncio.sleep(POLL_SECS)
    except TimeoutError:
        raise NotTakenError(f"Envoy has not taken {', '.join(sorted(missing)) or 'it'} after {within_secs:g} s") from None


async def _warming(admin: Admin) -> bool:
    found = await admin.stats(r"^(cluster_manager\.warming_clusters|listener_manager\.total_listeners_warming)$")
    return any(found.values())
