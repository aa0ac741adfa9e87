"""The gate: one interceptor in front of every method but health, unary and streaming alike.

It admits or refuses by :class:`blazen_peer.auth.gate.Gate` before a handler sees a byte of the request. The caller learns
that it was refused and not why; the reason goes to this process's own log.

It intercepts where gRPC looks a method up (``grpc.GenericRpcHandler``), and not as a ``grpc.aio.ServerInterceptor``, which
does the same by a coroutine for each call and cost a tenth to a fifth of a bare server's throughput when it was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc

from blazen_peer.auth.gate import Gate, Refused
from blazen_peer.auth.tokens import TokenKeys
from blazen_peer.errors import BlazenError, EncodeError, PermissionDeniedError, UnauthenticatedError
from blazen_peer.identity import Caller
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ADMITTED", "Admitted", "GateInterceptor"]


class Admitted(NamedTuple):
    """Whom the gate admitted, and the call's metadata as the gate saw it (gRPC makes it anew whenever it is asked)."""

    caller: Caller
    metadata: Sequence[tuple[str, str | bytes]]


ADMITTED: ContextVar[Admitted] = ContextVar("blazen_peer.admitted")
"""For the handler of the same call: gate and handler run in one task."""

_HEALTH_METHODS = "/grpc.health.v1.Health/"
_ANSWERS: dict[str, BlazenError] = {
    "UNAUTHENTICATED": UnauthenticatedError("the call was refused: a valid token is needed"),
    "PERMISSION_DENIED": PermissionDeniedError("the call was refused: this caller is not allowed"),
}

logger = logging.getLogger(__name__)


class GateInterceptor(grpc.GenericRpcHandler):
    """Asks the gate about each call of the services behind it, and of unknown methods.

    Args:
        behind: The services.
        gate: What decides.
        keys: Gives the token keys of this moment; None where no token is set.
        proofs: Gives the sidecar's proofs of this moment; empty where there is no sidecar.
        clock: Gives seconds since the epoch.
    """

    def __init__(
        self,
        behind: Sequence[grpc.GenericRpcHandler],
        gate: Gate,
        *,
        keys: Callable[[], TokenKeys | None],
        proofs: Callable[[], tuple[str, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._behind, self._gate = tuple(behind), gate
        self._keys, self._proofs, self._clock = keys, proofs, clock
        self._refusing = {status: _refusing(answer) for status, answer in _ANSWERS.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's own handler, or one that refuses; None for what no service behind has."""
        method = handler_call_details.method
        if method.startswith(_HEALTH_METHODS):
            return None  # health stands beside the gate
        metadata: Sequence[tuple[str, str | bytes]] = handler_call_details.invocation_metadata
        try:
            caller = self._gate.admit(metadata, keys=self._keys(), proofs=self._proofs(), now=self._clock())
        except Refused as refused:
            logger.warning("refused %s with %s: %s%s", method, refused.status, refused.reason, _said_of(metadata))
            return self._refusing[refused.status]
        ADMITTED.set(Admitted(caller, metadata))
        return next((found for item in self._behind if (found := item.service(handler_call_details)) is not None), None)


def _said_of(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Return what a refused call said of itself, for the log: it proves nothing. Empty when it said nothing well formed."""
    try:
        call = CallMetadata.decode(metadata)
    except EncodeError:
        return ""
    said = [f"client {call.client_node_id}"] if call.client_node_id else []
    said += [f"invocation {call.invocation_id}"] if call.invocation_id else []
    return f" ({', '.join(said)})" if said else ""


def _refusing(answer: BlazenError) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that ends any kind of call with *answer*, without reading its messages."""
    refusal = refusal_of(answer)

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
