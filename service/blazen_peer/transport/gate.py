"""The gate: one interceptor in front of every method but health, unary and streaming alike.

It admits or refuses by :class:`blazen_peer.auth.gate.Gate` before a handler sees a byte of the request. The caller learns
that it was refused and not why; the reason goes to this process's own log.

It intercepts where gRPC looks a method up (``grpc.GenericRpcHandler``), and not as a ``grpc.aio.ServerInterceptor``, which
does the same by a coroutine for each call and cost a tenth to a fifth of a bare server's throughput when it was measured.

What gRPC gives there is the method and the metadata, and not the connection. With direct TLS, where the caller is who its
certificate says, each handler therefore goes out inside another one, which asks the gate before anything else; since no handler
goes out without it, no method can be forgotten. gRPC has then read the (first) message already, of a caller that has a
certificate of the right CA; nobody has decoded it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import grpc

from blazen_peer import telemetry
from blazen_peer.auth.gate import Gate, Refused
from blazen_peer.auth.tokens import TokenKeys
from blazen_peer.errors import BlazenError, EncodeError, PermissionDeniedError, UnauthenticatedError
from blazen_peer.identity import Caller
from blazen_peer.policy import METHODS
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["ADMITTED", "Admitted", "GateInterceptor", "answer_to", "note_refusal"]


class Admitted(NamedTuple):
    """Whom the gate admitted, and the call's metadata as the gate saw it (gRPC makes it anew whenever it is asked)."""

    caller: Caller
    metadata: Sequence[tuple[str, str | bytes]]


ADMITTED: ContextVar[Admitted] = ContextVar("blazen_peer.admitted")
"""For the handler of the same call: gate and handler run in one task."""

FIRST_MESSAGE_SECS: Final = 0.05
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_CERTIFICATE_URIS = "peer_uri"  # gRPC's name for the URI names of the other end's certificate
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
        direct_tls: Whether callers prove themselves by a certificate shown to this process.
        forbids: Says why a caller that was admitted may not call a method all the same; None where it may.
    """

    def __init__(
        self,
        behind: Sequence[grpc.GenericRpcHandler],
        gate: Gate,
        *,
        keys: Callable[[], TokenKeys | None],
        proofs: Callable[[], tuple[str, ...]],
        clock: Callable[[], float],
        direct_tls: bool = False,
        forbids: Callable[[Caller, str], str | None] | None = None,
    ) -> None:
        self._direct_tls, self._forbids = direct_tls, forbids
        self._asking_first = lru_cache(maxsize=256)(self._asking)
        self._behind, self._gate = tuple(behind), gate
        self._keys, self._proofs, self._clock = keys, proofs, clock
        self._refusing = {status: _refusing(answer) for status, answer in _ANSWERS.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's own handler, or one that refuses; None for what no service behind has."""
        method = handler_call_details.method
        if method.startswith(_HEALTH_METHODS):
            return None  # health stands beside the gate
        if self._direct_tls:
            return self._asking_first(method, self._found(handler_call_details) or _UNKNOWN_METHOD)
        metadata: Sequence[tuple[str, str | bytes]] = handler_call_details.invocation_metadata
        status = self._admit(method, metadata, None)
        found = self._found(handler_call_details)
        if status is None:
            return found
        one_message = found is not None and not found.request_streaming
        return self._refusing[status][0 if one_message else 1]

    def _admit(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], certificate_uris: Sequence[bytes] | None
    ) -> str | None:
        """Set ``ADMITTED`` and return None; for a caller that is not admitted, write why to the log and return the status."""
        try:
            admitted = self._admitted(method, metadata, certificate_uris)
        except Refused as refused:
            note_refusal(method, refused, *_said_of(metadata))
            return refused.status
        ADMITTED.set(admitted)
        return None

    def _admitted(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], certificate_uris: Sequence[bytes] | None
    ) -> Admitted:
        caller = self._gate.admit(
            metadata, keys=self._keys(), proofs=self._proofs(), now=self._clock(), certificate_uris=certificate_uris
        )
        if self._forbids is not None and (why := self._forbids(caller, method)) is not None:
            raise Refused("PERMISSION_DENIED", why)
        return Admitted(caller, metadata)

    def readmit(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Admitted:
        """Ask the gate about a caller of *method* as of now, as for a new call on the connection of *context*.

        Raises:
            Refused: It is not admitted. :func:`note_refusal` is for whoever asked, who knows which calls that ends.
        """
        uris = tuple(context.auth_context().get(_CERTIFICATE_URIS, ())) if self._direct_tls else None
        return self._admitted(method, metadata, uris)

    def _found(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return next((found for item in self._behind if (found := item.service(details)) is not None), None)

    def _asking(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler of *handler*'s kind that asks the gate, and only then decodes and does what *handler* does."""
        [(kind, serve)] = [(kind, found) for kind in _KINDS if (found := getattr(handler, kind)) is not None]
        decode = handler.request_deserializer if kind.startswith("unary") and handler.request_deserializer else _as_it_is

        async def admitted(context: grpc.aio.ServicerContext[Any, Any]) -> None:
            uris = tuple(context.auth_context().get(_CERTIFICATE_URIS, ()))
            metadata = cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())
            status = self._admit(method, metadata, uris)
            if status is not None:
                refusal = refusal_of(_ANSWERS[status])
                await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await admitted(context)
            return await serve(decode(request), context)

        async def answers(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await admitted(context)
            async for response in serve(decode(request), context):
                yield response

        asking = answers if inspect.isasyncgenfunction(serve) else answer
        changes = {kind: asking, **({"request_deserializer": None} if kind.startswith("unary") else {})}
        return cast("grpc.RpcMethodHandler[Any, Any]", handler._replace(**changes))


def note_refusal(method: str, refused: Refused, client_node_id: str | None, invocation_id: str | None) -> None:
    """Write that a call of *method* was refused to the log, with what it said of itself, which proves nothing; and count it."""
    # Whoever is refused may name what it likes: names of its own would use the series up.
    telemetry.refused(method.rpartition("/")[2] if method in METHODS else telemetry.OTHER, refused.status)
    said = [f"client {client_node_id}"] if client_node_id else []
    said += [f"invocation {invocation_id}"] if invocation_id else []
    about = f" ({', '.join(said)})" if said else ""
    logger.warning("refused %s with %s: %s%s", method, refused.status, refused.reason, about)


def answer_to(refused: Refused) -> BlazenError:
    """Return what the caller hears; each its own: one that is raised again and again gathers tracebacks, and keeps them."""
    answer = _ANSWERS[refused.status]
    return type(answer)(*answer.args)


def _said_of(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[str | None, str | None]:
    """Return the client's node id and the call's invocation id, where it said them well formed."""
    try:
        call = CallMetadata.decode(metadata)
    except EncodeError:
        return None, None
    return call.client_node_id, call.invocation_id


def _refusing(answer: BlazenError) -> tuple[grpc.RpcMethodHandler[Any, Any], grpc.RpcMethodHandler[Any, Any]]:
    """Return two handlers that end a call with *answer*: for one with one message of the caller's, and for any other kind.

    The first lets gRPC take the message, and looks at nothing of it: a grpc.aio client that is answered while it still sends
    one now and then reports "Internal error from Core" instead of the answer. The second waits a moment for one, likewise.
    """
    refusal = refusal_of(answer)

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)

    async def refuse_stream(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_MESSAGE_SECS):
                await context.read()
        await context.abort(refusal.code, refusal.text, refusal.trailing_metadata)

    return grpc.unary_unary_rpc_method_handler(refuse), grpc.stream_stream_rpc_method_handler(refuse_stream)


def _as_it_is(request: Any) -> Any:
    return request


async def _unknown_method(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # gRPC's own words


_UNKNOWN_METHOD: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_unknown_method)
