"""A factory of peers with a policy; what they log about refusals."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from blazen_peer.policy import Policy
from blazen_peer.runtime.registry import Registry
from tests.peer.policy.guarded import PROOF, Guarded

Guard = Callable[..., Awaitable[Guarded]]


@pytest.fixture
def proof_file(tmp_path: Path) -> Path:
    """The sidecar's secret."""
    file = tmp_path / "sidecar-proof"
    file.write_text(PROOF)
    return file


@pytest.fixture
def guarded(registry: Registry, stack: AsyncExitStack, proof_file: Path) -> Guard:
    """A factory of servers with a policy; *prepare* registers what they serve."""

    async def start(policy: Policy | Path, prepare: Callable[[Guarded], None] | None = None, **options: Any) -> Guarded:
        peer = Guarded(registry, stack)
        if prepare is not None:
            prepare(peer)
        await peer.start(policy, proof_file, **options)
        return peer

    return start


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that refusals by policy left in the log since this was asked for last."""
    caplog.set_level(logging.DEBUG)

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if "polic" in record.getMessage()]
        caplog.clear()
        return [line for line in found if "refused" in line]

    return lines
