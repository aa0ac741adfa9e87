"""The page on steps and events: its code runs as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from blazen_peer.runtime import isolated_registry

PAGE = Path(__file__).parents[3] / "docs" / "steps-and-events.md"


def test_snippets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs, in order, in one module; what it asserts is so."""
    module = types.ModuleType("my_docs")
    monkeypatch.setitem(sys.modules, "my_docs", module)
    text = PAGE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) >= 6
    with isolated_registry():
        for block in blocks:
            before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback has the page's own lines
            exec(compile(before + block[1], str(PAGE), "exec"), module.__dict__)  # noqa: S102
