"""Distributed workflow peers, wire-compatible with Blazen.

Steps are registered by :func:`step`, served by :class:`PeerServer` and called by :class:`PeerClient`. The folders are floors:
``errors``, ``identity``, ``events`` are the vocabulary; ``wire``, ``auth``, ``engine`` are pure; ``runtime`` and ``transport``
touch the loop and the network; ``server`` and ``client`` put them together; ``cli`` is ``blazen-peer``.
"""

from blazen_peer.client import PeerClient
from blazen_peer.config import ServerSettings
from blazen_peer.errors import (
    BlazenError,
    EncodeError,
    EnvelopeVersionError,
    InvocationConflictError,
    InvocationNotFoundError,
    OverloadedError,
    PeerError,
    PermissionDeniedError,
    RefNotFoundError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    ValidationError,
    WorkflowError,
)
from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.identity import Caller
from blazen_peer.remote_stream import RemoteStream
from blazen_peer.runtime import (
    Context,
    RefLifetime,
    RemoteRef,
    Retry,
    Workflow,
    WorkflowBuilder,
    WorkflowResult,
    WorkflowWarning,
    isolated_registry,
    local_step,
    parallel,
    register_workflow,
    registered_steps,
    remote_step,
    step,
    unregister_step,
    unregister_workflow,
)
from blazen_peer.server import PeerServer
from blazen_peer.transport.tls import ClientTls, ServerTls, load_client_tls, load_server_tls
from blazen_peer.wire.cancellation import CancelOutcome, CancelReport

__all__ = [
    "BlazenError",
    "Caller",
    "CancelOutcome",
    "CancelReport",
    "ClientTls",
    "Context",
    "EncodeError",
    "EnvelopeVersionError",
    "Event",
    "InvocationConflictError",
    "InvocationNotFoundError",
    "OverloadedError",
    "PeerClient",
    "PeerError",
    "PeerServer",
    "PermissionDeniedError",
    "RefLifetime",
    "RefNotFoundError",
    "RemoteRef",
    "RemoteStream",
    "Retry",
    "ServerSettings",
    "ServerTls",
    "StartEvent",
    "StopEvent",
    "TlsError",
    "TransportError",
    "UnauthenticatedError",
    "UnknownStepError",
    "ValidationError",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowError",
    "WorkflowResult",
    "WorkflowWarning",
    "isolated_registry",
    "load_client_tls",
    "load_server_tls",
    "local_step",
    "parallel",
    "register_workflow",
    "registered_steps",
    "remote_step",
    "step",
    "unregister_step",
    "unregister_workflow",
]
