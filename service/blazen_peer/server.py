"""``PeerServer``: serves registered steps and workflows to other peers."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blazen_peer.auth.gate import Gate
from blazen_peer.config import ListenAddress, ServerSettings, parse_listen_address
from blazen_peer.credentials import ProofSource, TokenSource
from blazen_peer.description import describe
from blazen_peer.errors import TransportError, ValidationError
from blazen_peer.identity import check_node_id
from blazen_peer.policy import Policy
from blazen_peer.policy_file import PolicySource
from blazen_peer.process import run_until_signalled
from blazen_peer.ref_listing import listing_of
from blazen_peer.runtime.invocations import Invocations
from blazen_peer.runtime.local_refs import epoch_ms
from blazen_peer.runtime.ref_serving import RefServing
from blazen_peer.runtime.refs import RefTable
from blazen_peer.runtime.registry import DEFAULT_REGISTRY, Registry
from blazen_peer.runtime.rulings import Rulings
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.transport.binding import check_bindable
from blazen_peer.transport.call_log import CallLog
from blazen_peer.transport.call_rate import CallRate
from blazen_peer.transport.gate import GateInterceptor
from blazen_peer.transport.lane_limits import LANE_VERSION
from blazen_peer.transport.lane_servicer import LANE_METHOD, LaneServicer, lane_handlers
from blazen_peer.transport.proto.control_pb2 import DescribeResponse
from blazen_peer.transport.ref_servicer import ref_handlers
from blazen_peer.transport.reflection import reflection_handlers
from blazen_peer.transport.run_servicer import run_handlers
from blazen_peer.transport.servicer import (
    CONTROL_SERVICE,
    PEER_SERVICE,
    TraitsHealthServicer,
    control_handlers,
    peer_handlers,
)
from blazen_peer.transport.tls import ServerTls
from blazen_peer.wire.metadata import PeerTraits

__all__ = ["PeerServer"]

HEALTH_SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
CANCEL_GRACE_SECS: Final = 2.0  # for answers of cancelled runs to leave the process

logger = logging.getLogger(__name__)


class PeerServer:
    """Serves the steps of a registry over ``blazen.peer.v1``. It listens once.

    Args:
        node_id: Names this peer in traces, logs and ref descriptors.
        token: The shared token; by default ``BLAZEN_PEER_TOKEN`` or the file that ``BLAZEN_PEER_TOKEN_FILE`` names.
        require_identity: Refuse every call of whom no certificate proves who it is. Needs a token, and the sidecar's proof or
            direct TLS.
        sidecar_proof_file: The secret that the sidecar adds to what it forwards; without it no identity header counts.
        insecure: Allow listening beyond loopback without a token.
        settings: Limits and times.
        registry: Where steps and workflows are looked up; by default the process-wide one.
        workflows: What this server runs by name beside the registry's workflows, and before one of the same name.
        policy: Who may call which workflow with data of which class: the ``policy.json`` that ``blazen-mesh render`` writes for
            this node, read again when it changes, or its value. It demands all that ``require_identity`` does. Without one,
            everybody who is admitted may run everything.
        access_log: Write one line for each call that comes by a lane to the log ``blazen_peer.calls``, as sidecars do for those
            that come alone.

    Raises:
        ValidationError: One of them is not usable.
    """

    def __init__(
        self,
        node_id: str,
        *,
        token: str | None = None,
        require_identity: bool = False,
        sidecar_proof_file: str | Path | None = None,
        insecure: bool = False,
        settings: ServerSettings | None = None,
        registry: Registry | None = None,
        workflows: Iterable[Workflow] = (),
        policy: Policy | str | Path | None = None,
        access_log: bool = False,
    ) -> None:
        self._node_id = check_node_id(node_id)
        self._tokens = TokenSource.of(token, os.environ)
        self._proof = ProofSource(sidecar_proof_file) if sidecar_proof_file is not None else None
        self._policy = None if policy is None else PolicySource(policy, self._node_id, time.time)
        if (require_identity or policy is not None) and self._tokens is None:
            asks = "require_identity" if policy is None else "a policy"
            raise ValidationError(f"{asks} demands a token as well: set BLAZEN_PEER_TOKEN")
        self._require_identity, self._insecure = require_identity or policy is not None, insecure
        self._settings = settings or ServerSettings()
        self._registry = registry or DEFAULT_REGISTRY
        self._workflows = _by_name(workflows)
        self._access_log = access_log
        self._instance_id = secrets.token_hex(16)
        self._used = False
        self._draining: asyncio.Task[None] | None = None
        self._address: str | None = None

    @property
    def node_id(self) -> str:
        """What this peer is called."""
        return self._node_id

    @property
    def address(self) -> str:
        """Where it listens, as a client writes it: ``http://host:port``, ``https://host:port`` or ``unix:PATH``.

        Raises:
            ValidationError: It does not listen yet.
        """
        if self._address is None:
            raise ValidationError("this server does not listen yet")
        return self._address

    async def serve(self, listen_address: str, *, tls: ServerTls | None = None) -> None:
        """Listen on *listen_address* and serve until :meth:`drain` is called or the surrounding task is cancelled.

        Args:
            listen_address: ``host:port`` (0 picks a free one) or ``unix:PATH``. Without a token or *tls* it must be loopback.
            tls: From :func:`load_server_tls`, for a peer without a sidecar: speak mutual TLS here. Then every caller must
                have a certificate of that CA, and is who its certificate says.

        Raises:
            ValidationError: The address is not usable, or this server has served before; ``require_identity`` without *tls*
                and without the sidecar's proof.
            TransportError: The address cannot be bound, by another program's having it for one.
        """
        await self._start(listen_address, tls)
        try:
            await self._stopped.wait()
        finally:
            await self._stop()

    def serve_blocking(self, listen_address: str, *, tls: ServerTls | None = None) -> None:
        """Do what :meth:`serve` does while this thread waits. On the main thread SIGTERM and SIGINT drain it, a second
        one stops it at once, and the process ends within the drain's time whatever a step does."""
        settings = self._settings
        run_until_signalled(
            self.serve(listen_address, tls=tls),
            drain=self.drain,
            budget_secs=settings.lame_duck_secs + settings.drain_secs + 2 * CANCEL_GRACE_SECS + 1,
        )

    @asynccontextmanager
    async def serving(self, listen_address: str = "127.0.0.1:0", *, tls: ServerTls | None = None) -> AsyncIterator[Self]:
        """Serve inside the block: entered means listening at :attr:`address`, left means drained (without a lame duck)."""
        await self._start(listen_address, tls)
        try:
            yield self
            await self.drain(lame_duck_secs=0)
        finally:
            await self._stop()

    async def drain(self, lame_duck_secs: float | None = None) -> None:
        """Go away in good order, and return when done; calling it again waits for the same end.

        Health says NOT_SERVING; for *lame_duck_secs* (by default the settings') calls are still accepted; then new ones
        are refused with UNAVAILABLE and what runs may finish within ``drain_secs``; then it is cancelled.
        """
        if self._address is None:
            raise ValidationError("this server does not listen yet")
        if self._draining is None:
            lame_duck = self._settings.lame_duck_secs if lame_duck_secs is None else lame_duck_secs
            self._draining = asyncio.create_task(self._drained(lame_duck))
        await asyncio.shield(self._draining)

    async def _start(self, listen_address: str, tls: ServerTls | None) -> None:
        if self._used:
            raise ValidationError("this server has served before: make a new PeerServer")
        address = parse_listen_address(listen_address)
        self._check_guarded(listen_address, address, tls)
        self._used = True
        settings = self._settings
        self._stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._rulings = None if self._policy is None else Rulings(self._node_id, self._policy.in_force)
        table = RefTable(
            settings,
            node_id=self._node_id,
            clock=_clock_of(loop),
            epoch_ms=epoch_ms,
            new_uuid=uuid4,
            admits=None if self._rulings is None else self._rulings.admits,
        )
        self._refs = RefServing(table, max_message_bytes=settings.max_message_bytes)
        self._invocations = Invocations(
            self._node_id,
            self._registry,
            settings,
            self._refs,
            self._workflows,
            rulings=self._rulings,
            instance_id=self._instance_id,
        )
        self._health = TraitsHealthServicer(self._traits)
        self._grpc = self._assembled(direct_tls=tls is not None)
        self._address = self._bound(address, tls)
        for service in ("", PEER_SERVICE, CONTROL_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        if self._tokens is None:
            who = "every local process" if tls is None else "whoever has a certificate of the CA"
            logger.warning("%s has no token: %s may call it", self._node_id, who)
        logger.info("%s listens on %s", self._node_id, self._address)

    def _check_guarded(self, listen_address: str, address: ListenAddress, tls: ServerTls | None) -> None:
        if tls is not None and self._proof is not None:
            raise ValidationError("with direct TLS no sidecar vouches for callers: leave sidecar_proof_file away, or tls")
        if tls is not None and address.host is None:
            raise ValidationError(f"tls= needs host:port to listen on, not {listen_address}")
        if self._require_identity and tls is None and self._proof is None:
            asks = "require_identity" if self._policy is None else "a policy"
            raise ValidationError(f"{asks} demands the sidecar's proof or direct TLS: give sidecar_proof_file or tls")
        if self._tokens is None and tls is None and not address.is_local and not self._insecure:
            raise ValidationError(
                f"refusing to listen on {listen_address} without a token: set BLAZEN_PEER_TOKEN (blazen-peer token makes one), "
                "listen on loopback, or say insecure"
            )

    def _assembled(self, *, direct_tls: bool) -> grpc.aio.Server:
        limit = self._settings.max_message_bytes
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # two servers must not share a port by accident
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: the bound holds only before a message is unpacked
            ),
        )
        per_sec = self._rulings.per_sec if self._rulings is not None else lambda: None
        rate = CallRate(per_sec, _clock_of(asyncio.get_running_loop()))
        self._lanes = LaneServicer(
            self._invocations,
            self._node_id,
            self._instance_id,
            lambda metadata, context: gate.readmit(LANE_METHOD, metadata, context),
            rate,
            CallLog(self._node_id, time.time) if self._access_log else None,
        )
        gate = GateInterceptor(
            (
                lane_handlers(self._lanes),
                peer_handlers(self._invocations.invoke, self._node_id),
                control_handlers(self._described),
                *run_handlers(self._invocations, self._node_id),
                *reflection_handlers((PEER_SERVICE, CONTROL_SERVICE, HEALTH_SERVICE)),
                *ref_handlers(
                    self._refs,
                    lambda caller: listing_of(self._refs.table, self._refs.listed(caller)),
                    max_stream_secs=self._settings.max_timeout_secs,
                ),
            ),
            Gate(require_identity=self._require_identity),
            keys=self._tokens.keys if self._tokens else lambda: None,
            proofs=self._proof.proofs if self._proof else tuple,
            clock=time.time,
            direct_tls=direct_tls,
            forbids=None if self._rulings is None else self._rulings.forbids,
        )
        server.add_generic_rpc_handlers((gate,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    def _traits(self) -> PeerTraits:
        settings, policy = self._settings, None
        if self._policy is not None:
            self._policy.in_force()  # health checks come at intervals, whether calls do or not
            state = self._policy.state
            policy = state.digest if state.problem is None else f"{state.digest} stale"
        return PeerTraits(
            default_timeout_ms=round(settings.default_timeout_secs * 1000),
            max_timeout_ms=round(settings.max_timeout_secs * 1000),
            instance_id=self._instance_id,
            max_message_bytes=settings.max_message_bytes,
            policy=policy,
            lane=LANE_VERSION,
        )

    def _described(self) -> DescribeResponse:
        policy = None if self._policy is None else self._policy.state
        lanes = self._lanes.described()
        return describe(self._node_id, self._instance_id, self._registry, self._settings, self._workflows, policy, lanes)

    def _bound(self, address: ListenAddress, tls: ServerTls | None) -> str:
        check_bindable(address)
        try:
            if tls is None:
                port = self._grpc.add_insecure_port(address.target)
            else:
                port = self._grpc.add_secure_port(address.target, tls.credentials())
        except RuntimeError:
            raise TransportError(f"cannot listen on {address.target}", may_have_run=False) from None
        return address.target if address.host is None else f"{'http' if tls is None else 'https'}://{address.host}:{port}"

    async def _drained(self, lame_duck_secs: float) -> None:
        logger.info("%s drains: %d runs in progress", self._node_id, self._invocations.in_progress)
        await self._health.enter_graceful_shutdown()
        self._lanes.send_away("this peer drains")
        await asyncio.sleep(lame_duck_secs)
        self._invocations.refuse_new()
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._settings.drain_secs
        if await self._invocations.wait_idle(self._settings.drain_secs):
            await self._lanes.taken_up(ends - loop.time())
        else:
            cancelled = self._invocations.cancel_all()
            logger.warning(
                "%s cancelled %d runs that did not finish in %g s", self._node_id, cancelled, self._settings.drain_secs
            )
        await self._lanes.finish(CANCEL_GRACE_SECS)
        await self._grpc.stop(CANCEL_GRACE_SECS)
        self._stopped.set()

    async def _stop(self) -> None:
        """End everything at once; after a drain there is nothing left to end."""
        if self._draining is not None and not self._draining.done():
            self._draining.cancel()
        self._invocations.refuse_new()
        if self._invocations.cancel_all():
            await asyncio.sleep(0)  # let the cancelled runs' answers be written
        await self._grpc.stop(None if self._stopped.is_set() else CANCEL_GRACE_SECS / 4)
        self._refs.close()


def _by_name(workflows: Iterable[Workflow]) -> dict[str, Workflow]:
    named: dict[str, Workflow] = {}
    for workflow in workflows:
        if not isinstance(workflow, Workflow):
            raise ValidationError(f"workflows= takes workflows, not {type(workflow).__name__}: builder.build() gives one")
        if named.setdefault(workflow.name, workflow) is not workflow:
            raise ValidationError(f"workflows= has two named {workflow.name!r}: choose another name")
    return named


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the loop's clock as it is at each reading: a test may take the loop's time over after the server began."""
    return lambda: float(loop.time())
