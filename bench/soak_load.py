"""The soak's load: calls at a constant rate, and of each what it was carried by, where to, and what became of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from blazen_peer import PeerClient
from blazen_peer.transport.lane import Lane

CALL_SECS = 40.0
END_SECS = CALL_SECS + 15.0
"""By then a call has its end: the run's own time, what the client waits above it, and ten seconds for a busy machine."""
SLOW_EVERY, SLOW_SECS = 10, 1.0
STREAM_EVERY, STREAM_SECS, EVENTS = 20, 0.4, 4
"""Streams are shorter: on its own, one that takes longer than the sidecars' bound for streams needs ``retries``."""


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        name: The id that it is answered with, and that its execution is noted by.
        begun, ended: In seconds of ``time.monotonic``.
        invocation_ids: What it was carried under.
        lanes: The processes that it was sent to by lanes, in that order; empty where it went alone.
        answer: The id that came back.
        error: What it ended with instead.
    """

    name: str
    begun: float
    ended: float = 0.0
    invocation_ids: list[str] = field(default_factory=list)
    lanes: list[str] = field(default_factory=list)
    answer: object = None
    error: Exception | None = None


_CALL: ContextVar[Call] = ContextVar("soak.call")


class WatchedClient(PeerClient):
    """A client that notes under which id each call goes."""

    def _id_for(self, lane: Lane | None) -> str:
        invocation_id = super()._id_for(lane)
        _CALL.get().invocation_ids.append(invocation_id)
        return invocation_id


def watch_lanes() -> None:
    """Note to which process each frame of a call is sent, for the rest of this process's life."""
    for name in ("invoke", "stream"):
        setattr(Lane, name, _watched(getattr(Lane, name)))


def _watched(send: Callable[..., Any]) -> Callable[..., Any]:
    def watched(lane: Lane, *args: Any, **named: Any) -> Any:
        _CALL.get().lanes.append(lane.instance_id)
        return send(lane, *args, **named)

    return watched


@dataclass
class Load:
    """Calls at a constant rate: a call begins when its time has come, whatever became of those before.

    It keeps the calls that failed, and numbers of the others.
    """

    client: PeerClient
    rate: float
    named: bool
    sent: int = 0
    secs: float = 0.0
    answered: int = 0
    streamed: int = 0
    by_lanes: int = 0
    moved: int = 0
    failed: list[Call] = field(default_factory=list)
    without_end: int = 0
    wrong_answers: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)

    async def run(self, secs: float) -> None:
        """Begin calls for *secs*, and wait for the end of the last."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while (due := begun + self.sent / self.rate) < begun + secs:
                if (ahead := due - time.monotonic()) > 0:
                    await asyncio.sleep(ahead)
                self.sent += 1
                stream = self.sent % STREAM_EVERY == 1
                call_secs = STREAM_SECS if stream else SLOW_SECS if self.sent % SLOW_EVERY == 0 else 0
                group.create_task(self._call(f"call-{self.sent}", call_secs, stream))
            self.secs = max(secs, time.monotonic() - begun)

    async def _answered(self, name: str, secs: float) -> object:
        """Make a call, and return its answer."""
        result = await self.client.run_remote_workflow(
            *("soak", ["soak::work"], json.dumps({"id": name, "secs": secs, "events": 0}), CALL_SECS),
            invocation_id=name if self.named else None,
        )
        return result.result

    async def _followed(self, name: str, secs: float) -> object:
        """Follow a stream, and return its result; what is missing of its events, or came twice, where not all came once."""
        stream = self.client.stream_remote_workflow(
            *("soak", ["soak::work"], json.dumps({"id": name, "secs": secs, "events": EVENTS}), CALL_SECS),
            invocation_id=name if self.named else None,
        )
        seen = [event.data["n"] async for event in stream if event.event_type == "soak::Number"]
        self.streamed += 1
        return stream.result.result if seen == list(range(EVENTS)) else f"the events {seen}"

    async def _call(self, name: str, secs: float, events: bool) -> None:
        call = Call(name, time.monotonic(), invocation_ids=[name] if self.named else [])
        _CALL.set(call)
        try:
            async with asyncio.timeout(END_SECS) as bound:
                answer = await (self._followed(name, secs) if events else self._answered(name, secs))
        except Exception as error:  # whatever it is, it is judged
            call.ended, call.error = time.monotonic(), error
            self.without_end += bound.expired()
            self.failed.append(call)
        else:
            self.took_ms.append((time.monotonic() - call.begun - secs) * 1000)
            self.answered += answer == name
            self.wrong_answers[str(answer)[:80]] += answer != name
        self.by_lanes += bool(call.lanes)
        self.moved += len(call.lanes) > 1

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which *share* of the calls were answered, their own time not counted."""
        return sorted(self.took_ms)[int(len(self.took_ms) * share)] if self.took_ms else 0.0
