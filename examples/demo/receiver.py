"""A small OTLP receiver: keeps the spans that peers and sidecars send, by trace, up to a bound.

It is OpenTelemetry's own trace service (opentelemetry-proto), so that the sidecars' spans, which only Envoy itself can
send, arrive as they would at a collector.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from blazen_peer.cli.trace_tree import TraceSpan, spans_of

MAX_SPANS = 10_000


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Entered means listening at ``address`` (``host:port``); left means closed."""

    def __init__(self) -> None:
        self._spans: defaultdict[str, list[TraceSpan]] = defaultdict(list)
        self._count = 0
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the service's name)
        """Take one export; what is over the bound is dropped."""
        async with self._arrived:
            for span in spans_of(request)[: MAX_SPANS - self._count]:
                self._spans[span.trace_id].append(span)
                self._count += 1
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def trace(self, trace_id: str, complete: Callable[[list[TraceSpan]], bool], timeout_secs: float) -> list[TraceSpan]:
        """Return the spans of *trace_id* once they are *complete*, or what has come within *timeout_secs*."""
        try:
            async with asyncio.timeout(timeout_secs), self._arrived:
                await self._arrived.wait_for(lambda: complete(self._spans[trace_id]))
        except TimeoutError:
            pass
        return list(self._spans[trace_id])
