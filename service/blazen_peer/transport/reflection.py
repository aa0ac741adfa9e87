"""gRPC's own description of the services, for tools such as grpcurl; behind the gate like everything it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

__all__ = ["reflection_handlers"]


class _Collector:
    """Takes handlers as a server does."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Do nothing: these are the same handlers, registered past where the gate looks methods up."""


def reflection_handlers(services: Iterable[str]) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of ``grpc.reflection.v1alpha.ServerReflection`` for *services*."""
    collector = _Collector()
    servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    add = cast("Callable[[object, object], None]", reflection_pb2_grpc.add_ServerReflectionServicer_to_server)
    add(servicer, collector)
    return tuple(collector.handlers)
