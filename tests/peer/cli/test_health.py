"""``blazen-peer health``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

Command = Callable[..., Any]


def test_a_peer_that_serves(a_peer: Callable[..., Any], command: Command) -> None:
    """It says so, without a token, and the exit code is 0."""
    address = a_peer(token="t" * 32).address
    assert command("health", address) == (0, "SERVING\n", "")
    assert json.loads(command("health", address, "--json").out) == {"status": "SERVING"}


def test_a_peer_that_drains(command: Command, free_port: int) -> None:
    """It answers NOT_SERVING, and the exit code is 1."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{free_port}")
    server.start()
    try:
        assert command("health", f"http://127.0.0.1:{free_port}") == (1, "NOT_SERVING\n", "")
    finally:
        server.stop(0).wait()


def test_nobody_there(free_port: int) -> None:
    """One line says what to look at, and the exit code is 5."""
    address = f"http://127.0.0.1:{free_port}"
    argv = [sys.executable, "-m", "blazen_peer.cli", "health", address]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"blazen-peer: {address} does not answer: UNAVAILABLE (is the peer running?)\n"
