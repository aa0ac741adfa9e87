"""``make demo``, as a user runs it: its words, its trace, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPAN_LINE = re.compile(r"(server|client|intake-document|intake::delegate|analyze-pipeline|my_app::\w+)\s+(\S+)\s+\d+\.\d\d")
EXPECTED = [
    ("server", "intake"),
    ("intake-document", "intake"),
    ("intake::delegate", "intake"),
    ("client", "intake"),
    ("server", "intake-sidecar"),
    ("client", "intake-sidecar"),
    ("server", "analyst-sidecar"),
    ("client", "analyst-sidecar"),
    ("server", "analyst"),
    ("analyze-pipeline", "analyst"),
    ("my_app::analyze", "analyst"),
    ("my_app::summarize", "analyst"),
]

pytestmark = [pytest.mark.envoy, pytest.mark.slow]


def started_by(directory: Path) -> list[str]:
    """The processes whose command line or environment names *directory*, which only the demo under test uses."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if bytes(directory) in text:
            found.append(text[:200].replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def environment(directory: Path) -> dict[str, str]:
    """The demo's environment: it makes its temporary files below *directory*."""
    return {**os.environ, "TMPDIR": str(directory), "COLUMNS": "100"}


def run_demo(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_main_job(short_dir: Path) -> None:
    """Exit 0; the result, TLS 1.3, both names, one trace over every hop in order, two refusals; nothing left behind."""
    done = run_demo(short_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    out = done.stdout
    for text in (
        "key terms",
        "machine (11)",
        "TLSv1.3",
        "spiffe://mesh.example/peer/intake",
        "spiffe://mesh.example/peer/analyst",
    ):
        assert text in out
    assert len(re.findall(r"trace [0-9a-f]{32}: 12 spans of 4 services", out)) == 1
    assert SPAN_LINE.findall(out) == EXPECTED
    assert "refused without a token: Unauthenticated" in out
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in out
    assert "everything that was started has stopped" in out
    assert started_by(short_dir) == []
    assert list(short_dir.iterdir()) == []


def test_a_document_of_five_megabytes(short_dir: Path, tmp_path: Path) -> None:
    """A user's own document of 5 MB goes the same way."""
    sentence = "The auditor reads the flow of record number {} before the sidecar opens. "
    text = "".join(sentence.format(number) for number in range(66_000))
    document = tmp_path / "large.txt"
    document.write_text(text)
    assert document.stat().st_size > 4_900_000
    done = run_demo(short_dir, "--document", str(document))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(text):,} characters" in done.stdout
    assert "auditor (66,000)" in done.stdout
    assert SPAN_LINE.findall(done.stdout) == EXPECTED


@pytest.mark.parametrize(("name", "content"), [("missing.txt", None), ("binary.txt", b"\xff\xfe\x00")])
def test_a_document_that_cannot_be_read(short_dir: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    """A missing or binary document is one line, and nothing is started."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run_demo(short_dir, "--document", str(tmp_path / name))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert name in done.stderr


def test_interrupted(short_dir: Path) -> None:
    """Ctrl-C while everything starts leaves no process and no file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=environment(short_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 30
    while not any("envoy" in line for line in started_by(short_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert started_by(short_dir) == []
    assert list(short_dir.iterdir()) == []


def test_make_hands_the_document_over() -> None:
    """``make demo DOC=path`` is the command that these tests run, with ``--document path``."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "demo", "DOC=some file.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert '-m examples.demo --document "some file.txt"' in done.stdout
