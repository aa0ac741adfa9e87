"""What a lane at the server needs of others: what answers its frames and asks the gate; and how one ends for breaking rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeAlias

import grpc

from blazen_peer.identity import Caller
from blazen_peer.transport.gate import Admitted
from blazen_peer.wire import SubWorkflowEvent
from blazen_peer.wire.cancellation import CancelReport
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Admit", "Begun", "Context", "LaneError", "LaneService", "Metadata"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Admit: TypeAlias = Callable[[Metadata, Context], Admitted]
"""Asks the gate about metadata as of now; raises ``Refused``."""


class Begun(Protocol):
    """A call that was begun."""

    def on_answer(self, tell: Callable[[bytes], None]) -> bool:
        """Call *tell* with the response envelope, at once or later; False: another is told, and this one waits."""

    def forget(self) -> None:
        """Tell nobody: who was to be told is gone."""

    async def wait(self) -> bytes:
        """Wait for the response envelope."""


class LaneService(Protocol):
    """What answers the frames; ``runtime.invocations`` does."""

    @property
    def untaken(self) -> int:
        """How many answers too large for a frame are kept for callers that come for them."""

    def begin(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Begun:
        """Begin a call, or find it again: request envelope, caller, metadata -> what has the response envelope."""

    def stream(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> AsyncIterator[SubWorkflowEvent]:
        """Answer a call, and give what its run emits meanwhile."""

    def attach(self, caller: Caller, invocation_id: str, cursor: int) -> AsyncIterator[SubWorkflowEvent]:
        """Give what a run of *caller*'s emits."""

    async def cancel(self, caller: Caller, invocation_id: str, grace_secs: float) -> CancelReport:
        """Stop a run of *caller*'s."""


class LaneError(Exception):
    """The caller broke the lane's rules, or is gone: the lane ends with this status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
