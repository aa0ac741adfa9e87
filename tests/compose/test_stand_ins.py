"""The cache of the stand-ins: what was made is kept under a key of what it was made from."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(STAND_INS)
    return importlib.import_module("store")


def test_made_once_for_a_key(store: ModuleType, tmp_path: Path) -> None:
    """The same key makes nothing again; another one does, and what the former gave is gone."""
    made: list[str] = []

    def make(directory: Path) -> None:
        made.append(directory.name)
        (directory / "file").write_text("x")

    first = store.keep("thing", store.key_of("a"), make)
    assert store.keep("thing", store.key_of("a"), make) == first
    second = store.keep("thing", store.key_of("b"), make)
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "blazen-stand-ins").iterdir()] == [second.name]
    assert (second / "file").read_text() == "x"


def test_what_failed_is_not_kept(store: ModuleType) -> None:
    """A build that failed half-way is made again from the start."""

    def fail(directory: Path) -> None:
        (directory / "half").write_text("")
        raise store.StandInError("it broke")

    with pytest.raises(store.StandInError):
        store.keep("thing", "key", fail)
    assert list(store.keep("thing", "key", lambda directory: None).iterdir()) == []


def test_parts_do_not_run_together(store: ModuleType) -> None:
    """Which part a byte belongs to counts."""
    assert store.key_of("ab", "c") != store.key_of("a", "bc")


def test_a_command_that_fails_says_why(store: ModuleType) -> None:
    """With its last lines; and what is not installed is named."""
    with pytest.raises(store.StandInError, match=r"exit code 3:\nbecause"):
        store.run(["sh", "-c", "echo because; exit 3"])
    with pytest.raises(store.StandInError, match="no-such-program is not installed"):
        store.run(["no-such-program"])
