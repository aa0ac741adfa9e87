"""A remote run as a client reads it: its events one by one, then its result, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, Self, TypeAlias

import grpc

from blazen_peer import jsontext
from blazen_peer.errors import EncodeError, PeerError, TransportError, ValidationError, WorkflowError
from blazen_peer.events import Event
from blazen_peer.repeats import Repeats
from blazen_peer.runtime.refs import RemoteRef
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.transport.lane_way import CarriedStream
from blazen_peer.transport.status import raised_by
from blazen_peer.wire import SubWorkflowEvent, SubWorkflowResponse
from blazen_peer.wire.stream import END, GAP, HEARTBEAT, HEARTBEAT_SECS, read_gap

__all__ = ["Open", "Read", "RemoteStream", "StreamCall", "result_of"]

SILENCE_SECS: Final = 3 * HEARTBEAT_SECS

StreamCall: TypeAlias = "grpc.aio.UnaryStreamCall[Any, bytes] | CarriedStream"
Open: TypeAlias = Callable[[int, Repeats, float], Awaitable[StreamCall]]
"""Begins one connection's call: after a cursor, to the process that the repeats say, with that many seconds."""
Read: TypeAlias = Callable[[bytes], SubWorkflowEvent]


class RemoteStream(AsyncIterator[Event]):
    """What a remote run emits, then its ``StopEvent``; made by ``PeerClient.stream_remote_workflow`` and ``attach``.

    Each event is untyped: ``event_type`` and ``data``. One of type ``blazen::Gap`` stands for events that the peer no longer
    kept; its data says which: ``{"first": 3, "last": 9}``. Iterating raises what ``run_remote_workflow`` raises. Leaving it
    early leaves the run alone, except in a step, where the run is a child of the step's own and is cancelled.

    Attributes:
        invocation_id: What the peer knows the run by.
        cursor: The sequence number of the last event given: what ``attach`` goes on from.
    """

    def __init__(
        self,
        invocation_id: str,
        open_: Open,
        read: Read,
        repeats: Repeats,
        *,
        cursor: int,
        deadline_secs: float,
        on_refs: Callable[[], None],
        abandon: Callable[[], None] | None,
    ) -> None:
        """Prepare a stream without beginning it: its call begins with the first event that is asked for."""
        self.invocation_id, self.cursor = invocation_id, cursor
        self._open, self._read, self._repeats = open_, read, repeats
        self._deadline_secs, self._on_refs, self._abandon = deadline_secs, on_refs, abandon
        self._result: WorkflowResult | None = None
        self._over = False
        self._events = self._follow()

    @property
    def result(self) -> WorkflowResult:
        """The result, once the last event was given.

        Raises:
            ValidationError: It was not.
        """
        if self._result is None:
            raise ValidationError("the stream has no result yet: read it to its end")
        return self._result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Leave the stream; the run goes on."""
        await self._events.aclose()

    async def _follow(self) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._deadline_secs
        try:
            while True:
                try:
                    async for event in self._once(max(0.0, ends - loop.time())):
                        yield event
                    return
                except TransportError as error:
                    delay_secs = self._repeats.delay_secs(error, random.random())  # noqa: S311 - it spreads, it guards nothing
                    if delay_secs is None or loop.time() + delay_secs >= ends:
                        self._over = True
                        raise self._repeats.final(error) from error.__cause__
                await asyncio.sleep(delay_secs)
        except (PeerError, WorkflowError):
            self._over = True
            raise
        finally:
            if not self._over and self._abandon is not None:
                self._abandon()

    async def _once(self, left_secs: float) -> AsyncGenerator[Event, None]:
        """Give what comes over one connection. Returns at the end of the run."""
        call = await self._open(self.cursor, self._repeats, left_secs)
        silence = _Silence(call)
        try:
            async for message in call:
                silence.broken()
                self._repeats.progressed()
                item = message if isinstance(message, SubWorkflowEvent) else self._read(message)
                if item.event_type == HEARTBEAT:
                    continue
                if item.terminal is not None:
                    self._over = True
                    self._result = result_of(item.terminal, self.invocation_id)
                    if self._result.remote_refs:
                        self._on_refs()
                    yield self._result.event
                    return
                yield self._taken(item)
        except grpc.aio.AioRpcError as error:
            raise raised_by(error) from error
        except TransportError:
            if silence.over:
                raise TransportError(silence.why) from None
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            why = silence.why if silence.over else "the client was closed while it waited"
            raise TransportError(why) from None
        finally:
            silence.end()
            call.cancel()
        raise PeerError(f"the peer's stream ended without {END}")

    def _taken(self, item: SubWorkflowEvent) -> Event:
        first, last = read_gap(item) if item.event_type == GAP else (item.sequence, item.sequence)
        if first != self.cursor + 1 or last < first:
            raise PeerError(f"the peer's stream goes on with event {first} after {self.cursor}")
        self.cursor = last
        try:
            return Event.dynamic(item.event_type, jsontext.parse(item.data_json))
        except ValidationError as error:
            raise EncodeError(f"an event of the peer's cannot be read: {error}") from None


class _Silence:
    """Ends a call on which nothing is heard, not even heartbeats: the connection is gone and nobody said so."""

    def __init__(self, call: StreamCall) -> None:
        self._call, self._loop = call, asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(SILENCE_SECS, self._check)
        self.over, self.why = False, f"the peer was silent for {SILENCE_SECS:g} s"

    def broken(self) -> None:
        """Something was heard."""
        self._heard = self._loop.time()

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _check(self) -> None:
        left_secs = self._heard + SILENCE_SECS - self._loop.time()
        if left_secs > 0:
            self._timer = self._loop.call_later(left_secs, self._check)
        else:
            self.over = True
            self._call.cancel()


def result_of(response: SubWorkflowResponse, invocation_id: str | None) -> WorkflowResult:
    """Return the result that a response carries, or raise what it says went wrong.

    Raises:
        WorkflowError: The run failed.
        EncodeError: The result is not JSON.
        PeerError: There is neither a result nor an error.
    """
    if response.error is not None:
        raise WorkflowError(response.error)
    if response.result_json is None:
        raise PeerError("the peer's answer holds neither a result nor an error")
    try:
        refs = {uuid: RemoteRef.of(uuid, known, invocation_id) for uuid, known in response.remote_refs.items()}
        state_json = {key: document.decode() for key, document in response.state_json.items()}
        return WorkflowResult.from_json(response.result_json.decode(), refs, state_json)
    except (UnicodeDecodeError, ValidationError) as error:
        raise EncodeError(f"the peer's result is not JSON: {error}") from None
