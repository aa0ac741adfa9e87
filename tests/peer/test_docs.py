"""``docs/operating.md`` and ``docs/reference-in-python.md`` are true, and no link of any document leads nowhere."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blazen_peer import PeerError, ServerSettings, errors, telemetry
from blazen_peer.cli.exporters import FLUSH_SECS
from blazen_peer.cli.outcome import Exit
from blazen_peer.client import MARGIN_SECS
from blazen_peer.engine import MAX_IN_FLIGHT
from blazen_peer.process import STUCK_EXIT_CODE
from blazen_peer.runtime.threads import DEFAULT_MAX_THREADS

ROOT = Path(__file__).parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference-in-python.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def first_python_block(text: str) -> str:
    block = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1]


def test_operating_commands(
    tmp_path: Path,
    console_commands: Callable[..., Sequence[Any]],
    start_peer: Callable[..., Any],
    free_port: int,
    matches: Callable[[str, str], bool],
) -> None:
    """Each command of the page prints what stands below it and ends with the code behind it; ``&`` and ``kill`` included."""
    (tmp_path / "my_app.py").write_text(first_python_block((ROOT / "README.md").read_text(encoding="utf-8")))
    commands = console_commands(OPERATING.replace("50051", str(free_port)))
    assert len(commands) >= 20
    peers: list[Any] = []
    for command in commands:
        if command.command.endswith(" &"):
            peers.append(start_peer("/bin/sh", "-c", f"exec env {command.command[:-2]} --lame-duck-secs 0", cwd=tmp_path))
            peers[-1].wait_for("listens on")
            assert matches(command.shown, peers[-1].log), peers[-1].log
        elif command.command.startswith("kill %"):
            assert command.command == f"kill %{len(peers)}"
            before = "" if "refused" in command.shown else peers[-1].log
            assert peers[-1].end(signal.SIGTERM) == 0
            log = peers[-1].log.removeprefix(before)
            assert matches(command.shown, log[log.index("\n", log.index("listens on")) + 1 :] if not before else log), log
        else:
            command.run(tmp_path)
    assert len(peers) == 3
    assert not any(line.strip() in peer.log for peer in peers for line in (tmp_path / "token").read_text().splitlines())


def test_operating_exit_codes() -> None:
    """The table has each exit code of the command, and none else."""
    table = OPERATING.split("| exit code |")[1].split("\n\n")[0]
    codes = [int(code) for code in re.findall(r"^\| ([0-9]+) \|", table, re.MULTILINE)]
    assert codes == sorted({*map(int, Exit), STUCK_EXIT_CODE})


def test_attributes_and_metrics() -> None:
    """The tables of spans and metrics name each attribute and each metric that there is, and none else."""
    spans = OBSERVABILITY.split("| span | where | attributes |")[1].split("\n\n")[0]
    metrics = OBSERVABILITY.split("| metric | kind | unit | by |")[1].split("\n\n")[0]
    said = set(re.findall(r"`((?:blazen|rpc)\.[a-z_.]+)`", spans + metrics)) | {"error.type"}
    names = {
        value
        for name, value in vars(telemetry).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }
    other = {telemetry.TRACER, telemetry.RUN_SPAN, telemetry.STEP_SPAN, telemetry.COMMAND_SPAN, telemetry.OTHER}
    counted = {item._name for item in vars(telemetry).values() if hasattr(item, "_unit")}  # the API's instruments
    assert len(counted) == 10
    assert said - {"blazen.certificate.expiry"} == (names - other - {telemetry.PARENT_RUN_SPAN}) | counted


def test_dashboard() -> None:
    """Each panel of the dashboard asks for metrics that the page lists, by the names that Prometheus gives them."""
    panels = json.loads((ROOT / "docs" / "grafana" / "blazen-peers.json").read_text(encoding="utf-8"))["panels"]
    table = OBSERVABILITY.split("| metric | kind | unit | by |")[1].split("\n\n")[0]
    known = {name.replace(".", "_") for name in re.findall(r"^\| `([a-z.]+)`", table, re.MULTILINE)}
    asked = {
        re.sub(r"(_seconds)?(_bucket|_total)?$", "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(blazen_[a-z_]+)\{", target["expr"])
    }
    assert asked == known


@pytest.mark.parametrize(
    "words",
    [
        f"whose call gives no timeout | {ServerSettings().default_timeout_secs:g} s |",
        f"whatever its call gives | {ServerSettings().max_timeout_secs:,.0f} s |",
        f"runs in progress at once | {ServerSettings().max_runs:,} |",
        f"a message, each way | {ServerSettings().max_message_bytes >> 20} MiB |",
        f"step executions of one run at once | {MAX_IN_FLIGHT:,} |",
        f"plain functions in threads at once | {DEFAULT_MAX_THREADS} |",
        f"`--lame-duck-secs` ({ServerSettings().lame_duck_secs:g})",
        f"`--drain-secs` ({ServerSettings().drain_secs:g})",
        f"A caller waits {MARGIN_SECS:g} seconds longer",
    ],
)
def test_operating_numbers(words: str) -> None:
    """Each number of the page is the one in the code."""
    assert words in OPERATING


def test_observability_numbers() -> None:
    """Each number of the page is the one in the code."""
    assert f"the process's end at most {FLUSH_SECS:g} seconds" in OBSERVABILITY
    assert f"No more than {telemetry.MAX_NAMES} workflows" in OBSERVABILITY


def quoted() -> list[Any]:
    """Return each Python block of the reference's page with the file that is named before it."""
    found = re.findall(r"^\[(\S+)\]\(\.\./(\S+)\)\n\n```python\n(.*?)^```$", REFERENCE, re.DOTALL | re.MULTILINE)
    return [pytest.param(name, path, block, id=Path(name).stem) for name, path, block in found]


@pytest.mark.parametrize(("name", "path", "block"), quoted())
def test_reference_quotes(name: str, path: str, block: str) -> None:
    """Each Python block is a part of the file that it names, to the letter."""
    assert name == path
    assert block.strip()
    assert f"\n{block}\n" in (ROOT / path).read_text(encoding="utf-8")


def test_reference_is_whole() -> None:
    """Every example is quoted once, every Python block has its file, and each Swift sample stands before its twin."""
    files = {path.stem for path in (ROOT / "examples" / "reference").glob("*.py")} - {"__init__"}
    assert sorted(param.id for param in quoted()) == sorted(files)
    languages = re.findall(r"^```(python|swift)$", REFERENCE, re.MULTILINE)
    assert languages == ["swift", "python"] * 7 + ["python"]  # the reference has no sample of cancellation


def test_reference_kinds() -> None:
    """The table of errors has every class and its kind."""
    table = REFERENCE.split("| reference | class |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"\| `(\w+)`[^|]* \| ([^|]+) \|", table))
    said = {name: re.findall(r"`(\w+)`", kinds) for name, kinds in rows.items()}
    assert said.pop("PeerError") == ["Unsupported", PeerError.kind]
    classes = {name: [getattr(errors, name).kind] for name in errors.__all__ if name not in {"BlazenError", "PeerError"}}
    assert said == classes


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets on the usual sites."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS])
def test_links(document: Path) -> None:
    """Each link leads to a file that is there, and to a heading in it where it names one."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in _LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, wanted = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if wanted:
            assert wanted in map(anchor, _HEADING.findall(target.read_text(encoding="utf-8"))), link
