"""``docs/lanes.md`` is true: its code runs as it stands there, its numbers are the code's."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from blazen_peer.runtime import isolated_registry
from blazen_peer.transport import lane_limits as limits
from blazen_peer.transport import lanes
from blazen_peer.transport.lane import MAX_UNSENT_BYTES
from blazen_peer.transport.lane_stream import EVENT_CREDIT

PAGE = Path(__file__).parents[3] / "docs" / "lanes.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_snippets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs, in order, in one module."""
    module = types.ModuleType("my_lanes")
    monkeypatch.setitem(sys.modules, "my_lanes", module)
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    assert len(blocks) == 2
    with isolated_registry():
        for block in blocks:
            before = "\n" * TEXT.count("\n", 0, block.start(1))
            exec(compile(before + block[1], str(PAGE), "exec"), module.__dict__)  # noqa: S102


NUMBERS = [
    f"request's envelope is over {limits.MAX_FRAME_BYTES >> 10} KiB",
    f"calls go alone for {lanes.RETRY_SECS:g} s; for {lanes.NONE_THERE_SECS:g} s where",
    f"| nothing that answers: a sidecar that is down, a link that is severed | after {limits.TAKE_UP_SECS:g} s |",
    f"a call ends after {limits.SILENCE_SECS + limits.TAKE_UP_SECS:g} s at most, and a silence of up to "
    f"{limits.SILENCE_SECS - limits.HEARTBEAT_SECS:g} s costs nothing",
    f"Where one broke in the last {limits.TAKE_UP_SECS:g} s, the peer waits",
    f"not used for {lanes.IDLE_SECS / 60:g} to {2 * lanes.IDLE_SECS / 60:g} minutes",
    f"after {limits.HEARTBEAT_SECS:g} s of silence, and takes the other for dead after {limits.SILENCE_SECS:g} s",
    f"a tenth of a second; {lanes.OTHER_REPLICA_SECS:g} s where the sidecar did not name the replica",
    "opens the next lane at 3/4 of that",
    f"one to each, up to {lanes.MAX_LANES};",
    f"| an envelope in a frame | {limits.MAX_FRAME_BYTES >> 10} KiB |",
    f"| {limits.MAX_MESSAGE_BYTES >> 20} MiB, {limits.MAX_FRAMES} |",
    f"| {limits.MAX_OPEN_FRAMES:,}; one more",
    f"| {limits.MAX_WAITING_BYTES >> 20} MiB, then the peer reads nothing more; after {limits.WRITE_SECS:g} s without",
    f"| {MAX_UNSENT_BYTES >> 20} MiB, then new calls take another lane",
    f"break as soon as the call is on them | after {limits.TAKE_UP_SECS:g} s",
    f"| {limits.MAX_CREDIT:,} (our client asks for {EVENT_CREDIT}) |",
    f"| {limits.MAX_LANES_OF_ONE}, {limits.MAX_LANES:,}; one more",
]


@pytest.mark.parametrize("words", NUMBERS)
def test_numbers(words: str) -> None:
    """Each number of the page is the one in the code."""
    assert lanes.RENEWED_AT == 0.75
    assert words in " ".join(TEXT.split())
