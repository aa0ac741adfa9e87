"""Every number that the sidecars are rendered with, and why it is that."""

from __future__ import annotations

MAX_STREAMS = 4096
"""Calls in flight on one connection, and to one callee. Envoy's own 1,024 would refuse the 1,025th waiting workflow."""

MAX_CONNECTIONS = 1024
"""Connections to one callee, and ten times as many into one sidecar."""

MAX_RETRIES_IN_FLIGHT = MAX_STREAMS
"""Every call may wait for a sidecar that is being restarted; what is sent again is no more than a connection."""

HEAP_BYTES = 512 * 1024 * 1024
"""What one sidecar may take of memory for calls. From 90 % on it gives memory back, from 95 % on it refuses new calls, and from
98 % on new connections; what is in flight goes on."""

SHRINK_HEAP, REFUSE_CALLS, REFUSE_CONNECTIONS = 0.90, 0.95, 0.98

STREAM_WINDOW_BYTES = 1024 * 1024
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
BUFFER_BYTES = 1024 * 1024
"""What a sidecar holds of a message while the reader is slow. Messages of any size stream through; none is held whole."""

MAX_HEADERS_KIB = 60
MAX_HEADERS = 100
"""Of one request or answer, all of them together; Envoy's own numbers, said aloud. gRPC itself takes 8 to 16 KiB."""

SIDECAR_CONNECT_TIMEOUT = "2s"
PEER_CONNECT_TIMEOUT = "1s"
HANDSHAKE_TIMEOUT = "5s"
REQUEST_HEADERS_TIMEOUT = "10s"

SAFE_RETRIES = "connect-failure,refused-stream,reset-before-request"
"""Only what proves that no byte of the call was taken up; anything broader can run a workflow twice."""

READING_RETRIES = f"{SAFE_RETRIES},reset,unavailable"
"""For calls that change nothing, however often they run; at the egress alone, since both hops together would multiply."""

PATIENT = {"num_retries": 5, "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}
"""At the egress: about a second and a half, in which a sidecar that is restarted is back."""

QUICK = {"num_retries": 2, "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"}}
"""At the ingress: its peer is on the same machine, or another replica takes the call."""

KEEPALIVE = {"interval": "30s", "timeout": "10s"}
"""HTTP/2 pings between sidecars. Never towards a Python gRPC server, which answers them with "Too many pings"."""

CONNECTION_SHARE, DRAIN_SHARE, STREAM_SHARE = 0.5, 0.1, 0.4
"""How the mesh's connection age is spent: a connection takes calls for half of it, says goodbye for a tenth (5 s at most), and
a stream that began in its last moment lasts four tenths. So nothing that a revoked certificate opened outlives the age."""

MAX_DRAIN_SECS = 5.0

HEALTH_INTERVAL_SECS = 3
HEALTH_TIMEOUT_SECS = 1
UNHEALTHY_AFTER = 2
"""Failed checks in a row: out of the choice after 3 to 6 s, well within the 10 s that a draining peer still takes calls."""

RECHECK_SECS = 1
"""Between checks of a host that failed its last one."""

EJECT_AFTER = 3
EJECTION_INTERVAL_SECS = 5
EJECTION_SECS = 15
MAX_EJECTION_SECS = 60

PANIC_PERCENT = 1
"""Hosts that are out get calls only when every one is out: then each is tried, and the real reason stands in the log. Envoy's
own 50 % sends to one dead replica of two; 0 would refuse calls to hosts that are back, until a check finds out."""

OVERLOADED_RETRY_SECS = 1
"""What a caller over its rate is told to wait: by then its bucket is full again."""


def connection_secs(age_secs: int) -> float:
    """Return for how long a connection takes new calls, so that all of it is over within *age_secs*."""
    return age_secs * CONNECTION_SHARE


def drain_secs(age_secs: int) -> float:
    """Return how long a connection that is too old still takes calls that were on their way."""
    return min(age_secs * DRAIN_SHARE, MAX_DRAIN_SECS)


def stream_secs(age_secs: int) -> float:
    """Return how long one stream may last."""
    return age_secs * STREAM_SHARE


def duration(secs: float) -> str:
    """Return *secs* as Envoy writes durations, to the millisecond: ``"1800s"``, ``"0.4s"``."""
    return f"{round(secs, 3):g}s"
