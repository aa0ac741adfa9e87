"""The mesh of ``README.md``: its file is right, and its commands are those that the tests of containers run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from blazen_mesh.mesh import parse_mesh

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_mesh_file() -> None:
    """The file of the README is a mesh, in which personal data reaches the analyst in the same region and nobody else."""
    [text] = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    mesh = parse_mesh(tomllib.loads(text))
    policy = mesh.policy()
    intake, analyst, gpu = (mesh.identity(node) for node in ("intake", "analyst", "gpu"))
    assert policy.decide(intake, analyst, "analyze-pipeline", "personal", laxest="personal").allowed
    assert policy.decide(intake, gpu, "embed", "internal", laxest="internal").allowed
    assert not policy.decide(intake, gpu, "embed", "personal", laxest="internal").allowed
    assert not policy.decide(analyst, gpu, "embed", "internal", laxest="internal").allowed


def test_commands() -> None:
    """Each command of containers stands in docs/deploy.md too, whose commands tests run."""
    deploy = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (docker .*)$", README, re.MULTILINE)
    assert commands
    assert all(f"$ {command}\n" in deploy for command in commands)
