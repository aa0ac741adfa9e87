"""The pages on steps and events, on remote calls, on session refs and on testing: their code runs as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from blazen_peer.runtime import isolated_registry

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [("steps-and-events.md", 9), ("remote-calls.md", 3), ("session-refs.md", 3), ("testing.md", 4)]


@pytest.mark.parametrize(("page", "least"), PAGES)
def test_snippets(monkeypatch: pytest.MonkeyPatch, page: str, least: int) -> None:
    """Each block of Python runs, in order, in one module; what it asserts is so."""
    module = types.ModuleType("my_docs")
    monkeypatch.setitem(sys.modules, "my_docs", module)
    text = (DOCS / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) >= least
    with isolated_registry():
        for block in blocks:
            before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback has the page's own lines
            exec(compile(before + block[1], str(DOCS / page), "exec"), module.__dict__)  # noqa: S102
