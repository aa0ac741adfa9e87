"""One client's channels to one address: one for each event loop it is used from, all on one connection.

grpc.aio binds a channel to the loop it was made in. gRPC core pools connections by target and options in the whole
process, so that these channels share one TCP connection. Threads without a loop use one loop that the process keeps in a
daemon thread for all clients.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from blazen_peer.transport.lanes import Lanes
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.transport.servicer import CONTROL_SERVICE, PEER_SERVICE
from blazen_peer.transport.tls import ClientTls

__all__ = ["Channels", "Endpoint", "run_in_background"]

T = TypeVar("T")

FAREWELL_SECS: Final = 2.0
RETIRED_SECS: Final = 3600.0  # calls that take longer go on all the same: gRPC lets a channel go, not its calls
WAY_OUT_SECS: Final = 1.0
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment must never see a call to the sidecar
    ("grpc.service_config_disable_resolution", 1),  # no retry policy from DNS: what may be repeated is ours to say
    ("grpc.enable_retries", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC bounds a message only before it is unpacked
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt may take, whatever its name says: TLS far away needs it
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Endpoint:
    """The methods of one peer, on a channel that belongs to the running loop.

    Attributes:
        farewells: Tasks that end child runs; closing waits for them, shortly.
        lanes: The lanes of this channel, once a call has asked for one.
        met: Whether the port of the connection as it is was asked what it stamps.
    """

    def __init__(
        self,
        target: str,
        max_message_bytes: int,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
    ) -> None:
        self.credentials = credentials
        self.met = False
        self.lanes: Lanes | None = None
        limits = (
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
        )
        self.farewells: set[asyncio.Task[None]] = set()
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, options=(*_OPTIONS, *limits))
        else:
            named = () if server_name is None else (("grpc.ssl_target_name_override", server_name),)
            self.channel = grpc.aio.secure_channel(target, credentials, options=(*_OPTIONS, *limits, *named))
        self.invoke: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{PEER_SERVICE}/InvokeSubWorkflow"
        )
        self.stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(
            f"/{PEER_SERVICE}/StreamSubWorkflowEvents"
        )
        self.attach: grpc.aio.UnaryStreamMultiCallable[control_pb2.AttachRequest, bytes] = self.channel.unary_stream(
            f"/{CONTROL_SERVICE}/Attach", request_serializer=control_pb2.AttachRequest.SerializeToString
        )
        self.cancel: grpc.aio.UnaryUnaryMultiCallable[control_pb2.CancelRequest, control_pb2.CancelResponse] = (
            self.channel.unary_unary(
                f"/{CONTROL_SERVICE}/Cancel",
                request_serializer=control_pb2.CancelRequest.SerializeToString,
                response_deserializer=control_pb2.CancelResponse.FromString,
            )
        )
        self.describe: grpc.aio.UnaryUnaryMultiCallable[control_pb2.DescribeRequest, control_pb2.DescribeResponse] = (
            self.channel.unary_unary(
                f"/{CONTROL_SERVICE}/Describe",
                request_serializer=control_pb2.DescribeRequest.SerializeToString,
                response_deserializer=control_pb2.DescribeResponse.FromString,
            )
        )
        self.deref: grpc.aio.UnaryUnaryMultiCallable[peer_pb2.PostcardRequest, peer_pb2.PostcardResponse] = (
            self.channel.unary_unary(
                f"/{PEER_SERVICE}/DerefSessionRef",
                request_serializer=peer_pb2.PostcardRequest.SerializeToString,
                response_deserializer=peer_pb2.PostcardResponse.FromString,
            )
        )
        self.release: grpc.aio.UnaryUnaryMultiCallable[peer_pb2.PostcardRequest, peer_pb2.PostcardResponse] = (
            self.channel.unary_unary(
                f"/{PEER_SERVICE}/ReleaseSessionRef",
                request_serializer=peer_pb2.PostcardRequest.SerializeToString,
                response_deserializer=peer_pb2.PostcardResponse.FromString,
            )
        )
        self.deref_chunks: grpc.aio.UnaryStreamMultiCallable[
            control_pb2.DerefChunksRequest, control_pb2.DerefChunksResponse
        ] = self.channel.unary_stream(
            f"/{CONTROL_SERVICE}/DerefChunks",
            request_serializer=control_pb2.DerefChunksRequest.SerializeToString,
            response_deserializer=control_pb2.DerefChunksResponse.FromString,
        )
        self.list_refs: grpc.aio.UnaryUnaryMultiCallable[control_pb2.ListRefsRequest, control_pb2.ListRefsResponse] = (
            self.channel.unary_unary(
                f"/{CONTROL_SERVICE}/ListRefs",
                request_serializer=control_pb2.ListRefsRequest.SerializeToString,
                response_deserializer=control_pb2.ListRefsResponse.FromString,
            )
        )
        self.parent_ended: grpc.aio.UnaryUnaryMultiCallable[control_pb2.ParentEndedRequest, control_pb2.ParentEndedResponse] = (
            self.channel.unary_unary(
                f"/{CONTROL_SERVICE}/ParentEnded",
                request_serializer=control_pb2.ParentEndedRequest.SerializeToString,
                response_deserializer=control_pb2.ParentEndedResponse.FromString,
            )
        )
        self.lane: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(f"/{CONTROL_SERVICE}/Lane")
        self.check_health: grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
            self.channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
        )

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection: a lost one is made anew by the next call, and may lead somewhere else."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Close the channel."""
        if self.farewells:  # some go by a lane
            await asyncio.wait(self.farewells, timeout=FAREWELL_SECS)
        if self.lanes is not None:
            self.lanes.close()
        await self.channel.close()


class Channels:
    """The endpoints of one client, by event loop. Safe to use from any thread."""

    def __init__(self, target: str, max_message_bytes: int, tls: ClientTls | None = None) -> None:
        self._target, self._max_message_bytes, self._tls = target, max_message_bytes, tls
        self._endpoints: dict[asyncio.AbstractEventLoop, Endpoint] = {}
        self._retired: list[tuple[asyncio.AbstractEventLoop, Endpoint]] = []
        self._lock = threading.Lock()
        self.closed = False

    @property
    def over_tls(self) -> bool:
        """Whether these channels speak TLS themselves."""
        return self._tls is not None

    @property
    def lanes(self) -> Lanes | None:
        """The running loop's lanes, where there are some by now; None without a loop."""
        try:
            endpoint = self._endpoints.get(asyncio.get_running_loop())
        except RuntimeError:
            return None
        return None if endpoint is None else endpoint.lanes

    def here(self) -> Endpoint:
        """Return the running loop's endpoint: a new one, on a new connection, once the TLS files have changed."""
        loop = asyncio.get_running_loop()
        endpoint = self._endpoints.get(loop)
        credentials = None if self._tls is None else self._tls.credentials()
        if endpoint is not None and endpoint.credentials is not credentials:
            self._retire(loop, endpoint)
            endpoint = None
        if endpoint is None:
            server_name = None if self._tls is None else self._tls.server_name
            endpoint = Endpoint(self._target, self._max_message_bytes, credentials, server_name)
            with self._lock:
                for over in [known for known in self._endpoints if known.is_closed()]:
                    del self._endpoints[over]  # an endpoint holds its loop, so that neither would ever go by itself
                self._endpoints[loop] = endpoint
        return endpoint

    def close(self) -> list[concurrent.futures.Future[None]]:
        """Close what belongs to other loops that run, and return what there is to wait for; the rest goes with its loop."""
        self.closed = True
        with self._lock:
            endpoints = [*self._endpoints.items(), *self._retired]
            self._endpoints.clear()
            self._retired.clear()
        return [asyncio.run_coroutine_threadsafe(endpoint.close(), loop) for loop, endpoint in endpoints if loop.is_running()]

    def _retire(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> None:
        """Let *endpoint* go once no call can be in flight on it any more; until then it is there to be closed with the rest."""
        retired = (loop, endpoint)
        if endpoint.lanes is not None:
            endpoint.lanes.retire()
        with self._lock:
            self._retired = [kept for kept in self._retired if not kept[0].is_closed()]
            self._retired.append(retired)

        def let_go() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._retired.remove(retired)
            if endpoint.lanes is not None:
                endpoint.lanes.retire()  # those that calls were taken up by since

        loop.call_later(RETIRED_SECS, let_go)


class _BackgroundLoop:
    """The process's one loop for callers that have none, in a daemon thread, started at its first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="blazen-peer-client", daemon=True).start()
            return self._loop


_BACKGROUND = _BackgroundLoop()


def run_in_background(work: Coroutine[Any, Any, T], begun: Callable[[concurrent.futures.Future[T]], None] | None = None) -> T:
    """Run *work* to its end in the process's own loop while this thread waits. *work* must bound its own time.

    Context variables, the current span among them, go with it. *begun* is given the future of the work: whoever cancels it ends
    the wait.
    """
    over = threading.Event()

    async def whole() -> T:
        try:
            return await work
        finally:
            over.set()

    future = asyncio.run_coroutine_threadsafe(whole(), _BACKGROUND.loop())
    if begun is not None:
        begun(future)
    try:
        return future.result()
    except BaseException:
        if future.cancel() or future.cancelled():  # by Ctrl-C here, or by who was told of it: what it does on its way out comes
            over.wait(WAY_OUT_SECS)  # before what follows here, such as closing the client
        raise
