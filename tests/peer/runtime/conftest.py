"""Time that passes at once: an event loop whose clock jumps to the next timer when nothing is ready."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

RunVirtual = Callable[[Coroutine[Any, Any, Any]], tuple[Any, float]]


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        assert timeout is not None, "nothing is ready and no timer is set: it would hang"
        self.now += max(timeout, 0)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


@pytest.fixture
def run_virtual() -> RunVirtual:
    """Run a coroutine in virtual time; return its result and the seconds that passed. Not for code that uses threads."""

    def run(main: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
        async def timed() -> tuple[Any, float]:
            loop = asyncio.get_running_loop()
            return await main, loop.time()

        with asyncio.Runner(loop_factory=_Loop) as runner:
            result: tuple[Any, float] = runner.run(timed())
            return result

    return run
