"""What lies between a client and a server, as sidecars and networks do, and fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import grpc

from blazen_peer.auth import DATA_CLASS_STAMP
from blazen_peer.errors import ValidationError
from blazen_peer.flows import check_class_name
from blazen_peer.testing.cable import Cable
from blazen_peer.transport.lane_told import STREAM_SECS

__all__ = ["Link"]

INVOKE: Final = "InvokeSubWorkflow"
# What a caller reads from Envoy in the same case: its text is how a client tells "never sent" from "may have run".
REFUSED_TEXT: Final = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
BROKEN_TEXT: Final = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # limits are the two ends' own
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 10),  # a peer that was started anew is found at once
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 50),
)
# Told by sidecars: that such a way is there, and can break without the peer.
_LANE: Final = ((STREAM_SECS, "3600"),)
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@dataclass(slots=True)
class _Fault:
    """What happens to the next *times* calls of *method*: the stage at which they fail, or how long they are held up."""

    stage: Literal["refused", "before", "midway", "after", "late"]
    method: str
    times: int
    messages: int = 0
    secs: float = 0.0


class Link(grpc.GenericRpcHandler):
    """Carries every call to a server as it is, and does to chosen ones what a test asks for. Made by :func:`peers`.

    Each fault is for the next *times* calls of one method, given by its name in the service (a run by default); several are
    used up in the order they were asked for. The calls of other methods, health among them, pass. A fault for less than one
    call is a ``ValidationError``.
    """

    def __init__(self, folder: Path, server_target: str, data_class: str | None = None) -> None:
        """Prepare the way to *server_target*, with sockets in *folder*; :meth:`start` makes it. It stamps *data_class*."""
        self._folder, self._server_target = folder, server_target
        self._stamp = () if data_class is None else ((DATA_CLASS_STAMP, check_class_name(data_class)),)
        self._cable = Cable(folder / "link", folder / "inner")
        self._faults: list[_Fault] = []
        self._calls: list[str] = []

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"unix:{self._folder / 'link'}"

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return self._cable.connections

    def calls(self, method: str = INVOKE) -> int:
        """Return how many calls of *method* came in so far, repeats and those that failed here included."""
        return self._calls.count(method)

    def refuse(self, times: int = 1, *, method: str = INVOKE) -> None:
        """Fail calls as when the peer cannot be reached: nothing runs, and ``TransportError.may_have_run`` is False."""
        self._ask(_Fault("refused", method, times))

    def drop_before_run(self, times: int = 1, *, method: str = INVOKE) -> None:
        """Lose requests on their way: nothing runs, but ``TransportError.may_have_run`` is True, as the caller cannot know."""
        self._ask(_Fault("before", method, times))

    def drop_midway(self, messages: int, times: int = 1, *, method: str) -> None:
        """Break streams once *messages* of their answers have passed; ``TransportError.may_have_run`` is True."""
        self._ask(_Fault("midway", method, times, messages=messages))

    def drop_after_run(self, times: int = 1, *, method: str = INVOKE) -> None:
        """Let the peer do all of it and lose its answer, a refusal too; ``TransportError.may_have_run`` is True."""
        self._ask(_Fault("after", method, times))

    def delay(self, secs: float, times: int = 1, *, method: str = INVOKE) -> None:
        """Hold requests up for *secs* seconds of the loop's time, then pass them on."""
        self._ask(_Fault("late", method, times, secs=secs))

    async def up(self) -> None:
        """Take connections again after :meth:`down`; nothing changes where it does so already."""
        await self._cable.plug_in()

    async def down(self) -> None:
        """Break all connections, as a pulled cable does, and take no new ones until :meth:`up`.

        Calls in flight end with ``TransportError``, ``may_have_run`` True; calls made while it is down with False, once their
        client has noticed. The server notices that its callers are gone; its runs go on.
        """
        await self._cable.pull()

    async def start(self) -> None:
        """Make the way and open it."""
        self._channel = grpc.aio.insecure_channel(self._server_target, options=_OPTIONS)
        self._grpc = grpc.aio.server(options=_OPTIONS)
        self._grpc.add_generic_rpc_handlers((self,))
        self._grpc.add_insecure_port(f"unix:{self._folder / 'inner'}")
        await self._grpc.start()
        await self.up()

    async def stop(self) -> None:
        """Take the way down for good."""
        await self.down()
        await self._grpc.stop(None)
        await self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what carries a call, of whatever method and kind. gRPC calls this."""
        path, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        method = path.rpartition("/")[2]
        self._calls.append(method)
        fault = self._next_fault(method)

        async def carry(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            stage = None if fault is None else fault.stage
            if fault is not None and stage == "late":
                await asyncio.sleep(fault.secs)
            if stage in {"refused", "before"}:
                await context.abort(grpc.StatusCode.UNAVAILABLE, REFUSED_TEXT if stage == "refused" else BROKEN_TEXT)
            if told := (*self._stamp, *(_LANE if method == "Lane" else ())):  # on every answer, as a sidecar's port does
                await context.send_initial_metadata(told)
            carrier: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(path)
            call = carrier(requests, timeout=context.time_remaining(), metadata=_passed_on(metadata))
            refusal: grpc.aio.AioRpcError | None = None
            passed = 0
            try:
                async for answer in call:
                    if fault is not None and stage == "midway" and passed == fault.messages:
                        break
                    if stage != "after":
                        yield answer
                    passed += 1
            except grpc.aio.AioRpcError as error:
                refusal = error
            finally:
                call.cancel()  # does nothing to a call that is over
            if stage in {"midway", "after"}:
                await context.abort(grpc.StatusCode.UNAVAILABLE, BROKEN_TEXT)
            if refusal is not None:
                await context.abort(refusal.code(), refusal.details() or "", tuple(refusal.trailing_metadata() or ()))
            context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))

        return grpc.stream_stream_rpc_method_handler(cast("Any", carry))

    def _ask(self, fault: _Fault) -> None:
        if fault.times < 1:
            raise ValidationError(f"times is {fault.times!r}: a fault is for 1 or more calls")
        self._faults.append(fault)

    def _next_fault(self, method: str) -> _Fault | None:
        for fault in self._faults:
            if fault.method == method:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                return fault
        return None


def _passed_on(metadata: Sequence[tuple[str, str | bytes]]) -> grpc.aio.Metadata:
    """Return what the caller sent, without what gRPC itself adds again."""
    return grpc.aio.Metadata(*((name, value) for name, value in metadata if name != "user-agent"))
