"""``docs/direct-tls.md`` is true: its commands and its Python are run in order, and the options of the command with them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority
from blazen_peer.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "direct-tls.md").read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_page(
    tmp_path: Path,
    console_commands: Callable[..., Sequence[Any]],
    start_peer: Callable[..., Any],
    free_port: int,
    matches: Callable[[str, str], bool],
) -> None:
    """Each command prints what stands below it; then both Python blocks, the second serving the first."""
    (tmp_path / "my_app.py").write_text(python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))[0])
    page = PAGE.replace("50051", str(free_port))
    call, serve = python_blocks(page)
    peer: Any = None
    commands = console_commands(page)
    assert len(commands) == 11
    for command in commands:
        if command.command.endswith(" &"):
            peer = start_peer("/bin/sh", "-c", f"exec {command.command[:-2]} --lame-duck-secs 0", cwd=tmp_path)
            peer.wait_for("listens on")
            assert matches(command.shown, peer.log), peer.log
        elif command.command == "kill %1":
            assert peer.end(signal.SIGTERM) == 0
        else:
            command.run(tmp_path)
    start_peer(sys.executable, "-c", f"import logging; logging.basicConfig(level='INFO')\n{serve}", cwd=tmp_path).wait_for(
        "listens on"
    )
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "{'words': 3}\n"), done.stderr


@pytest.mark.parametrize("argv", [["describe"], ["run"], ["cancel"], ["refs", "list"], ["refs", "deref"], ["refs", "release"]])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(["cert"], "--tls-key and --tls-ca is missing", id="a-certificate-alone"),
        pytest.param(["cert", "key"], "go together: --tls-ca is missing", id="no-ca"),
        pytest.param(["key", "ca"], "go together: --tls-cert is missing", id="no-certificate"),
        pytest.param(["server-name"], "--tls-server-name needs --tls-cert, --tls-key and --tls-ca", id="a-name-alone"),
        pytest.param(["cert", "key", "ca"], "tls= needs an https:// address", id="no-https"),
    ],
)
def test_options_of_a_client(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], argv: list[str], given: list[str], words: str
) -> None:
    """Each command that calls takes the files together, with https; otherwise it says what is missing and sends nothing."""
    identity = Authority.create(tmp_path / "ca", "mesh.test").issue("node-a")
    values = {
        "cert": str(identity.certificate_path),
        "key": str(identity.key_path),
        "ca": str(identity.bundle_path),
        "server-name": "b.mesh.test",
    }
    options = [part for name in given for part in (f"--tls-{name}", values[name])]
    rest = {"run": ["w"], "cancel": ["i"], "deref": ["0" * 32], "release": ["0" * 32]}.get(argv[-1], [])
    assert main([*argv, "http://127.0.0.1:1", *rest, *options]) == 2
    assert words in capfd.readouterr().err


def test_options_of_the_server(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``serve`` takes the three files together, and refuses one that is no PEM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tls_app.py").write_text(python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))[0])
    serve = ["serve", "--app", "tls_app", "--node-id", "b", "--listen", "127.0.0.1:0"]
    assert main([*serve, "--tls-cert", "tls_app.py"]) == 2
    assert "--tls-key and --tls-ca is missing" in capfd.readouterr().err
    assert main([*serve, "--tls-cert", "tls_app.py", "--tls-key", "tls_app.py", "--tls-ca", "tls_app.py"]) == 2
    assert "tls_app.py holds no certificate in PEM" in capfd.readouterr().err
