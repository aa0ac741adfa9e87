"""The gate: one interceptor in front of every method but health, unary and streaming alike.

It admits or refuses by :class:`blazen_peer.auth.gate.Gate` before a handler sees a byte of the request. The caller learns
that it was refused and not why; the reason goes to this process's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from blazen_peer.auth.gate import Gate, Refused
from blazen_peer.auth.tokens import TokenKeys
from blazen_peer.errors import BlazenError, PermissionDeniedError, UnauthenticatedError
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.transport.status import refusal_of

__all__ = ["CALLER", "GateInterceptor"]

CALLER: ContextVar[Caller] = ContextVar("blazen_peer.caller", default=ANONYMOUS)
"""Whom the gate admitted, for the handler of the same call: both run in one task."""

_HEALTH_METHODS = "/grpc.health.v1.Health/"
_ANSWERS: dict[str, BlazenError] = {
    "UNAUTHENTICATED": UnauthenticatedError("the call was refused: a valid token is needed"),
    "PERMISSION_DENIED": PermissionDeniedError("the call was refused: this caller is not allowed"),
}

logger = logging.getLogger(__name__)


class GateInterceptor(grpc.aio.ServerInterceptor):
    """Asks the gate about each call.

    Args:
        gate: What decides.
        keys: Gives the token keys of this moment; None where no token is set.
        proofs: Gives the sidecar's proofs of this moment; empty where there is no sidecar.
        clock: Gives seconds since the epoch.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        keys: Callable[[], TokenKeys | None],
        proofs: Callable[[], tuple[str, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._gate, self._keys, self._proofs, self._clock = gate, keys, proofs, clock
        self._refusing = {status: _refusing(answer) for status, answer in _ANSWERS.items()}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's own handler, or one that refuses."""
        if not handler_call_details.method.startswith(_HEALTH_METHODS):
            try:
                caller = self._gate.admit(
                    handler_call_details.invocation_metadata,
                    keys=self._keys(),
                    proofs=self._proofs(),
                    now=self._clock(),
                )
            except Refused as refused:
                logger.warning("refused %s with %s: %s", handler_call_details.method, refused.status, refused.reason)
                return self._refusing[refused.status]
            CALLER.set(caller)
        return await continuation(handler_call_details)


def _refusing(answer: BlazenError) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that ends any kind of call with *answer*, without reading its messages."""
    refusal = refusal_of(answer)

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
