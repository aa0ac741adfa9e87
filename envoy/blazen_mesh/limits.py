"""Every number that the sidecars are rendered with, and why it is that."""

from __future__ import annotations

MAX_STREAMS = 4096
"""Calls in flight on one connection, and to one callee. Envoy's own 1,024 would refuse the 1,025th waiting workflow."""

MAX_CONNECTIONS = 1024
"""Connections to one callee, and ten times as many into one sidecar."""

MAX_RETRIES_IN_FLIGHT = 64

STREAM_WINDOW_BYTES = 1024 * 1024
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
BUFFER_BYTES = 1024 * 1024
"""What a sidecar holds of a message while the reader is slow. Messages of any size stream through; none is held whole."""

SIDECAR_CONNECT_TIMEOUT = "2s"
PEER_CONNECT_TIMEOUT = "1s"
HANDSHAKE_TIMEOUT = "5s"
REQUEST_HEADERS_TIMEOUT = "10s"

RETRIES = 2
SAFE_RETRIES = "connect-failure,refused-stream,reset-before-request"
"""Only what proves that no byte of the call was taken up; anything broader can run a workflow twice."""

KEEPALIVE = {"interval": "30s", "timeout": "10s"}
"""HTTP/2 pings between sidecars. Never towards a Python gRPC server, which answers them with "Too many pings"."""
