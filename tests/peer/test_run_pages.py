"""The pages on streaming, and on cancellation and retries: their code runs as it stands there, their numbers are the code's."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from blazen_peer import ServerSettings
from blazen_peer.remote_stream import SILENCE_SECS
from blazen_peer.repeats import FIRST_DELAY_SECS, MAX_DELAY_SECS
from blazen_peer.run_calls import ABANDON_SECS
from blazen_peer.runtime import isolated_registry, run_table
from blazen_peer.wire.stream import HEARTBEAT_SECS

DOCS = Path(__file__).parents[2] / "docs"
STREAMING, CANCELLATION, OPERATING = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("streaming.md", "cancellation-and-retries.md", "operating.md")
)


@pytest.mark.parametrize("name", ["streaming", "cancellation-and-retries"])
def test_snippets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs, in order, in one module; what it asserts is so."""
    module = types.ModuleType("my_docs")
    monkeypatch.setitem(sys.modules, "my_docs", module)
    page = DOCS / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) >= 4
    with isolated_registry():
        for block in blocks:
            before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback has the page's own lines
            exec(compile(before + block[1], str(page), "exec"), module.__dict__)  # noqa: S102


NUMBERS = [
    (CANCELLATION, f"for {run_table.ANSWER_SECS:g} s, the newest {run_table.MAX_ANSWERS:,}"),
    (CANCELLATION, f"{run_table.MAX_ANSWER_BYTES >> 20} MiB of them"),
    (CANCELLATION, f"for {run_table.TOMBSTONE_SECS / 3600:g} h, the newest {run_table.MAX_TOMBSTONES:,}"),
    (CANCELLATION, f"waits {FIRST_DELAY_SECS:g} s, 0.2 s, 0.4 s ... up to {MAX_DELAY_SECS:g} s"),
    (CANCELLATION, f"for at most {ABANDON_SECS:g} seconds"),
    (STREAMING, f"the newest {ServerSettings().stream_events:,} of them, at most {ServerSettings().stream_bytes >> 20} MiB"),
    (STREAMING, f"says so every {HEARTBEAT_SECS:g} seconds"),
    (STREAMING, f"hears nothing for {SILENCE_SECS:g} seconds"),
    (OPERATING, f"`--max-queued-runs`: runs that wait their turn | {ServerSettings().max_queued_runs:,} |"),
    (OPERATING, f"that its stream keeps | {ServerSettings().stream_events:,}, and {ServerSettings().stream_bytes >> 20} MiB"),
    (OPERATING, f"answers kept for repeats | {run_table.ANSWER_SECS:g} s, {run_table.MAX_ANSWERS:,} and"),
    (OPERATING, f"beyond their answers | {run_table.TOMBSTONE_SECS / 3600:g} h, {run_table.MAX_TOMBSTONES:,} of them"),
]


@pytest.mark.parametrize(("page", "words"), NUMBERS, ids=[words for _, words in NUMBERS])
def test_numbers(page: str, words: str) -> None:
    """Each number of the pages is the one in the code."""
    assert words in " ".join(page.split())
