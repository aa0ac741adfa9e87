"""How a supervisor treats its sidecar."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How patient a supervisor is, in seconds, and how Envoy runs.

    Attributes:
        wait_secs: For the identity to be there.
        start_secs: For Envoy to be ready.
        drain_secs: For calls in flight, when Envoy is stopped or replaced; what still runs then is cut off.
        poll_secs: Between two looks at the files and at Envoy.
        concurrency: Envoy's worker threads.
        flush_ms: How often access logs are written, in milliseconds.
        take_over: Whether to take a sidecar over from another supervisor that runs it; otherwise that one is in the way.
        share_output: Access logs go to our own standard output, unread by us.
    """

    wait_secs: float = 300.0
    start_secs: float = 30.0
    drain_secs: float = 30.0
    poll_secs: float = 1.0
    concurrency: int = 1
    flush_ms: int = 500
    take_over: bool = True
    share_output: bool = False
