"""``docs/errors.md`` says what the code does: every class, its kind, its status, its exit code, its fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blazen_peer import errors
from blazen_peer.cli.outcome import exit_of
from blazen_peer.transport.status import refusal_of

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+Error)` \| `(\w+)` \| (?:`(\w+)`)? ?\| (\d) \| (.*?) ?\| .+ \|$", PAGE, re.MULTILINE)
ABSTRACT = {"BlazenError", "PeerError"}


def made(name: str) -> errors.BlazenError:
    """An error of the class *name*, whatever its arguments."""
    error = errors.EnvelopeVersionError(2, 1) if name == "EnvelopeVersionError" else getattr(errors, name)("x")
    assert isinstance(error, errors.BlazenError)
    return error


def test_every_class_has_its_row() -> None:
    """No class is missing, none is listed twice."""
    assert sorted(name for name, *_ in ROWS) == sorted(set(errors.__all__) - ABSTRACT)


@pytest.mark.parametrize(("name", "kind", "status", "code", "fields"), ROWS, ids=[row[0] for row in ROWS])
def test_row(name: str, kind: str, status: str, code: str, fields: str) -> None:
    """A row's kind, status, exit code and fields are the code's."""
    error = made(name)
    assert error.kind == kind
    assert int(exit_of(error)[0]) == int(code)
    if status and status != "OK":
        assert refusal_of(error).code.name == status
    own = set(re.findall(r"`(\w+)`", fields))
    assert own == {
        key for key in vars(error) if key not in {"message", "kind", "status"} or (key == "message" and kind == "Workflow")
    }


def test_snippets() -> None:
    """The page's Python holds."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/errors.md", "exec"), {})  # noqa: S102 (our own page)
