"""``PeerClient``: hands sub-workflows to a peer and gets their results."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from blazen_peer import telemetry
from blazen_peer.address_book import destination_of
from blazen_peer.auth import TokenMinter
from blazen_peer.carriage import CONNECT_TIMEOUT_SECS, MARGIN_SECS
from blazen_peer.config import MAX_MESSAGE_BYTES, client_target
from blazen_peer.credentials import TokenSource
from blazen_peer.errors import PeerError, ValidationError
from blazen_peer.port_class import PortClass
from blazen_peer.ref_calls import RefCalls
from blazen_peer.remote_stream import result_of
from blazen_peer.requests import bounded_secs
from blazen_peer.run_calls import RunCalls, check_invocation_id, check_retries, time_of_child, until_run_ends
from blazen_peer.runtime.context import current_run
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.transport.channels import Channels, run_in_background
from blazen_peer.transport.lanes import LANE_MODES, LaneMode
from blazen_peer.transport.proto import control_pb2
from blazen_peer.transport.servicer import PEER_SERVICE
from blazen_peer.transport.tls import ClientTls
from blazen_peer.wire import SubWorkflowResponse
from blazen_peer.wire.metadata import PeerTraits

__all__ = ["PeerClient"]


class PeerClient(RefCalls, RunCalls):
    """A connection to one peer, made by :meth:`connect` or :meth:`connect_async`.

    One client serves plain threads by its ``..._blocking`` methods and any number of event loops, at once or one after
    another. Its calls share one HTTP/2 connection and do not wait for each other. Leave it with ``with`` or
    ``async with``, or call :meth:`close`.
    """

    def __init__(
        self,
        address: str,
        client_node_id: str | None,
        token: str | None,
        max_message_bytes: int,
        tls: ClientTls | None = None,
        data_class: str | None = None,
        peers_file: str | Path | None = None,
        lane: LaneMode = "auto",
    ) -> None:
        """Prepare a client without connecting it: use :meth:`connect`."""
        super().__init__()
        there = destination_of(address, client_node_id, data_class, peers_file, os.environ, tls=tls is not None)
        self._node_id = there.node_id
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._channels = Channels(client_target(there.address, tls=tls is not None), max_message_bytes, tls)
        self._port = PortClass(address, there.data_class, there.classes)
        self._tokens = TokenSource.of(token, os.environ)
        self._minter = TokenMinter(self._node_id)
        self._traits = PeerTraits()
        if lane not in LANE_MODES:
            raise ValidationError(f"lane={lane!r} is not one of {', '.join(LANE_MODES)}")
        self._lane_mode = lane

    def __repr__(self) -> str:
        return f"PeerClient({self._address!r}, client_node_id={self._node_id!r})"

    @classmethod
    def connect(
        cls,
        address: str,
        client_node_id: str | None = None,
        *,
        token: str | None = None,
        timeout_secs: float = CONNECT_TIMEOUT_SECS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: ClientTls | None = None,
        data_class: str | None = None,
        peers_file: str | Path | None = None,
        lane: LaneMode = "auto",
    ) -> Self:
        """Connect, blocking: one health call goes all the way to the peer, through the sidecars where there are any.

        Args:
            address: ``http://host:port`` (behind a sidecar its egress port) or ``unix:PATH``; ``https://host:port`` with *tls*;
                ``peer:NAME``, which is looked up in the node's address book.
            client_node_id: Names the calling end in logs and traces, and in the token; for ``peer:NAME`` by default the node
                whose address book it is.
            token: The shared token; by default ``BLAZEN_PEER_TOKEN`` or the file that ``BLAZEN_PEER_TOKEN_FILE`` names.
            timeout_secs: How long to wait for the peer, in seconds.
            max_message_bytes: The largest message, each way.
            tls: From :func:`load_client_tls`, for a peer without a sidecar that speaks TLS itself.
            data_class: The class of the data that goes there: the port must stamp it, or a stricter one.
            peers_file: The address book, ``peers.json`` of this node; by default the file that ``BLAZEN_PEERS_FILE`` names.
            lane: Whether calls share a stream where the peer has lanes: ``auto``, ``never``, or ``always``, which needs one.

        Raises:
            ValidationError: The address, the node id or the token is not usable, or the address book has no such port.
            TransportError: Nobody answered in time.
            TlsError: With *tls*, one end does not believe the other's certificate.
            PermissionDeniedError: A sidecar on the way allows no flow from here to there, or stamps a laxer class.
        """
        client = cls(address, client_node_id, token, max_message_bytes, tls, data_class, peers_file, lane)
        run_in_background(client._greet(timeout_secs))
        return client

    @classmethod
    async def connect_async(
        cls,
        address: str,
        client_node_id: str | None = None,
        *,
        token: str | None = None,
        timeout_secs: float = CONNECT_TIMEOUT_SECS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: ClientTls | None = None,
        data_class: str | None = None,
        peers_file: str | Path | None = None,
        lane: LaneMode = "auto",
    ) -> Self:
        """Connect as :meth:`connect` does, without blocking the running loop."""
        client = cls(address, client_node_id, token, max_message_bytes, tls, data_class, peers_file, lane)
        await client._greet(timeout_secs)
        return client

    @property
    def node_id(self) -> str:
        """What this end calls itself."""
        return self._node_id

    async def run_remote_workflow(
        self,
        workflow_name: str,
        step_ids: Sequence[str],
        input_json: str,
        timeout_secs: float | None = None,
        *,
        invocation_id: str | None = None,
        retries: int = 0,
    ) -> WorkflowResult:
        """Run *step_ids* on the peer as the sub-workflow *workflow_name* and return its result.

        Cancelling the awaiting task severs the wait only: the run goes on until its deadline. Awaited inside a step, it is a
        child of the step's run: it gets at most the time that is left, and is cancelled when the wait is.

        Args:
            workflow_name: What the peer knows the workflow by.
            step_ids: The steps, each registered on the peer; empty means the whole workflow of that name.
            input_json: One JSON document, handed to the entry step.
            timeout_secs: How long the run may take, in seconds; None leaves it to the server's default.
            invocation_id: Names this call for :meth:`cancel`, :meth:`attach` and repeats: the same id with the same request
                gets the same answer, and is run once. None makes one.
            retries: How often to repeat the call when the connection breaks. Only the process that may have begun the run takes
                a repeat up, so it never runs twice.

        Raises:
            ValidationError: *input_json* is not JSON, or another argument is not usable. Nothing was sent.
            PermissionDeniedError: The policy there does not allow it; or data of the class of the run in whose step this is
                awaited may not go there, and nothing was sent.
            WorkflowError: The workflow ran and failed.
            PeerError: The call failed; its subclass and ``kind`` say how.
        """
        parent = current_run()
        if parent is not None:
            timeout_secs = time_of_child(parent, timeout_secs)
        check_retries(retries)
        if invocation_id is not None:
            check_invocation_id(invocation_id)
        request = self._request(workflow_name, step_ids, input_json, timeout_secs)
        with telemetry.call_span(PEER_SERVICE, "InvokeSubWorkflow") as span:
            data_class = self._port.of_call(parent)
            begun = time.monotonic()
            lane = await self._lane(len(request.envelope), invocation_id, data_class, retries=retries)
            metadata = self._about(request, invocation_id or self._id_for(lane), parent, data_class)
            if span.is_recording():
                span.set_attributes(
                    {
                        telemetry.WORKFLOW_NAME: workflow_name,
                        telemetry.NODE_ID: self._node_id,
                        telemetry.INVOCATION_ID: metadata.invocation_id or "",
                        telemetry.REQUEST_BYTES: len(request.envelope),
                    }
                )
            try:
                deadline_secs = request.waits_secs + MARGIN_SECS - (time.monotonic() - begun)
                answer = await self._carried(request.envelope, metadata, max(0.0, deadline_secs), retries, lane)
            except asyncio.CancelledError:
                if parent is not None:
                    self._abandon(metadata.invocation_id or "")
                raise
            result = result_of(SubWorkflowResponse.decode(answer), metadata.invocation_id)
            if result.remote_refs:
                self._tell_parents_end(metadata.invocation_id or "")
            return result

    def run_remote_workflow_blocking(
        self,
        workflow_name: str,
        step_ids: Sequence[str],
        input_json: str,
        timeout_secs: float | None = None,
        *,
        invocation_id: str | None = None,
        retries: int = 0,
    ) -> WorkflowResult:
        """Do what :meth:`run_remote_workflow` does while this thread waits."""
        call = self.run_remote_workflow(
            workflow_name, step_ids, input_json, timeout_secs, invocation_id=invocation_id, retries=retries
        )
        return run_in_background(call, until_run_ends(current_run()))

    async def describe(self, timeout_secs: float = CONNECT_TIMEOUT_SECS) -> control_pb2.DescribeResponse:
        """Return what the peer can run and within which limits.

        Raises:
            PeerError: The call failed; kind "Unsupported" from a peer that is not one of ours.
        """
        timeout_secs = bounded_secs(timeout_secs)
        call = self._endpoint().describe(control_pb2.DescribeRequest(), timeout=timeout_secs, metadata=self._authorization())
        return await self._answer(call)

    async def open_lane(self, timeout_secs: float = CONNECT_TIMEOUT_SECS) -> None:
        """Open a lane now, where none is open: the first call does so by itself. What this raises is why calls go alone.

        Raises:
            PeerError: There is none to be had; kind "Unsupported" where the peer has none, or a sidecar lets none through.
        """
        if not self._has_lanes:
            raise PeerError("the peer has no lanes, or one end takes no messages of their size", kind="Unsupported")
        await self._lanes_here().open_one(bounded_secs(timeout_secs))

    def open_lane_blocking(self, timeout_secs: float = CONNECT_TIMEOUT_SECS) -> None:
        """Do what :meth:`open_lane` does while this thread waits."""
        run_in_background(self.open_lane(timeout_secs))

    def describe_blocking(self, timeout_secs: float = CONNECT_TIMEOUT_SECS) -> control_pb2.DescribeResponse:
        """Do what :meth:`describe` does while this thread waits."""
        return run_in_background(self.describe(timeout_secs))

    def close(self) -> None:
        """Close the connection; calls in flight end with ``TransportError``. Calling it again does nothing."""
        self._told_blocking()
        self._channels.close()

    async def aclose(self) -> None:
        """Close as :meth:`close` does, and wait until it is done; peers first get to know of parent runs that are over."""
        await self._told()
        await asyncio.wait_for(
            asyncio.gather(*(asyncio.wrap_future(future) for future in self._channels.close()), return_exceptions=True),
            CONNECT_TIMEOUT_SECS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _greet(self, timeout_secs: float) -> None:
        """Make sure that a peer answers, and learn its traits. UNIMPLEMENTED is an answer: Blazen's own have no health."""
        try:
            self._traits = await self._met(self._endpoint(), bounded_secs(timeout_secs))
        except PeerError:
            await self.aclose()
            raise
