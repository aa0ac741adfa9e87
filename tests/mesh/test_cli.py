"""The command ``blazen-mesh``: exit codes, what it prints, what it writes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from blazen_certs import cli as certs_cli
from blazen_mesh import cli
from blazen_mesh.local import prepare
from blazen_mesh.mesh import load_mesh
from blazen_peer.errors import ValidationError

EXAMPLE = str(Path(__file__).parents[2] / "envoy" / "mesh.toml")


def test_check_without_envoy(capsys: pytest.CaptureFixture[str]) -> None:
    """A good file is fine, and the flows are shown; that Envoy was not asked is said."""
    assert cli.main(["check", "--mesh", EXAMPLE, "--no-envoy"]) == 0
    shown = capsys.readouterr().out
    assert "intake" in shown
    assert "127.0.0.1:16001" in shown
    assert "Envoy was not asked" in shown


@pytest.mark.envoy
def test_check_asks_envoy(capsys: pytest.CaptureFixture[str], envoy: Path) -> None:
    """Envoy is asked about every node."""
    assert cli.main(["check", "--mesh", EXAMPLE, "--envoy", str(envoy)]) == 0
    assert "Envoy takes the configuration of every node (2)" in capsys.readouterr().out


def test_check_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``--json`` gives one object; problems make exit code 1."""
    bad = tmp_path / "mesh.toml"
    bad.write_text('trust_domain = "x"\nmore = 1\n[peers]\n')
    assert cli.main(["check", "--mesh", str(bad), "--json", "--no-envoy"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], len(found["problems"])) == (False, 2)
    assert cli.main(["check", "--mesh", EXAMPLE, "--json", "--no-envoy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flows"][0]["from"] == "intake"
    assert found["nodes"][1]["egress"] == {"analyst": [{"data_class": None, "address": "127.0.0.1:16001"}]}


def test_check_tells_what_is_worth_knowing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Token injection and an open ingress without callers are allowed, and said."""
    path = tmp_path / "mesh.toml"
    text = Path(EXAMPLE).read_text().replace("egress.analyst = 16001", "egress.analyst = { port = 16001, inject_token = true }")
    path.write_text(text.replace('sidecar = "127.0.0.1:15001"', 'sidecar = "intake.internal:15001"'))
    assert cli.main(["check", "--mesh", str(path), "--json", "--no-envoy"]) == 0
    injects, unused = json.loads(capsys.readouterr().out)["notes"]
    assert "every process that reaches 127.0.0.1:16001 is intake" in injects
    assert "it denies all" in unused


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node's files are written; again gives the same bytes and keeps the proof."""
    argv = ["render", "--mesh", EXAMPLE, "--node", "analyst", "--identity-dir", "/id", "--out", str(tmp_path / "o")]
    argv += ["--config-dir", "/etc/sidecar", "--admin-socket", "/run/a.sock"]
    assert cli.main(argv) == 0
    first = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path / "o")) for path in first} == {
        *(
            "envoy.json",
            "lds.json",
            "cds.json",
            "rds.json",
            "peers.json",
            "policy.json",
            "sidecar-proof",
            "sds/leaf.json",
            "sds/bundle.json",
            "sds/sidecar-proof.json",
        )
    }
    assert (tmp_path / "o" / "sidecar-proof").stat().st_mode & 0o777 == 0o600
    assert '"/etc/sidecar/lds.json"' in (tmp_path / "o" / "envoy.json").read_text()
    assert '"/etc/sidecar/sds/leaf.json"' in (tmp_path / "o" / "lds.json").read_text()
    assert cli.main([*argv, "--otlp", "collector:4317"]) == 0
    assert "collector" in (tmp_path / "o" / "cds.json").read_text()
    assert cli.main(argv) == 0
    assert {path: path.read_bytes() for path in first} == first
    assert "kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        pytest.param([], 2, "", id="nothing"),
        pytest.param(["no-such"], 2, "No such command", id="command"),
        pytest.param(["check", "--no-such"], 2, "No such option", id="option"),
        pytest.param(["render"], 2, "Missing option", id="missing-option"),
        pytest.param(["check", "--envoy", "/no/such"], 2, "/no/such is not a program", id="no-such-envoy"),
        pytest.param(["check", "--mesh", "/no/such", "--no-envoy"], 1, "", id="no-such-file"),
        pytest.param(
            ["render", "--node", "x", "--identity-dir", "/i", "--out", "{tmp}"], 1, "there is no [peers.x]", id="no-such-node"
        ),
        pytest.param(
            ["render", "--node", "intake", "--identity-dir", "/i", "--out", "{tmp}", "--otlp", "x"], 2, "--otlp: 'x'", id="otlp"
        ),
        pytest.param(
            ["render", "--node", "intake", "--identity-dir", "/i", "--out", "{tmp}", "--admin-socket", "/" + "x" * 107],
            *(2, "108 bytes"),
            id="socket-too-long",
        ),
        pytest.param(["up", "--dir", "{tmp}"], 2, "blazen-certs issue intake", id="no-certificates"),
    ],
)
def test_failure(argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Wrong use is exit code 2, a wrong mesh 1; each is one line that says what to do, and no traceback."""
    given = [part.replace("{tmp}", str(tmp_path)) for part in argv]
    if given and given[0] in ("render", "up", "check") and "--mesh" not in given:
        given += ["--mesh", EXAMPLE]
    assert cli.main(given) == code
    errors: Any = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors


def test_commands_for_certificates_are_right(tmp_path: Path) -> None:
    """The commands that it tells for want of certificates, run as they stand, make those of every node in its own region."""
    path = Path(__file__).with_name("policy.toml")
    mesh, certs = load_mesh(path), tmp_path / "certs"

    def rendered() -> object:
        return prepare(mesh, path, tmp_path, certs=certs, token_file=tmp_path / "token", environment={})

    with pytest.raises(ValidationError, match="make them with: ") as caught:
        rendered()
    for command in str(caught.value).partition("make them with: ")[2].split(" && "):
        program, *argv = shlex.split(command)
        assert (program, certs_cli.main(argv)) == ("blazen-certs", 0), command
    rendered()
    for node in mesh.peers:
        leaf = x509.load_pem_x509_certificate((certs / "nodes" / node / "current" / "tls.crt").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(mesh.identity(node))]


def test_empty_token_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A token that is set but empty is a mistake, not a wish for none."""
    monkeypatch.setenv("BLAZEN_PEER_TOKEN", "")
    assert cli.main(["up", "--mesh", EXAMPLE, "--dir", str(tmp_path), "--envoy", "/bin/true"]) == 2
    assert "BLAZEN_PEER_TOKEN is set but empty" in capsys.readouterr().err
