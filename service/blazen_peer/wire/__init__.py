"""The envelopes that peers exchange, and their bytes: the one door for untrusted bytes."""

from blazen_peer.wire.envelopes import (
    ENVELOPE_VERSION,
    DerefRequest,
    DerefResponse,
    ReleaseRequest,
    ReleaseResponse,
    RemoteRefDescriptor,
    SubWorkflowEvent,
    SubWorkflowRequest,
    SubWorkflowResponse,
)

__all__ = [
    "ENVELOPE_VERSION",
    "DerefRequest",
    "DerefResponse",
    "ReleaseRequest",
    "ReleaseResponse",
    "RemoteRefDescriptor",
    "SubWorkflowEvent",
    "SubWorkflowRequest",
    "SubWorkflowResponse",
]
