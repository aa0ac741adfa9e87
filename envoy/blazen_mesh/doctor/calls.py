"""Calls that change nothing: the standard health check, and ``blazen-peer describe`` for the token."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from blazen_mesh.address import Address, TcpAddress
from blazen_mesh.doctor.logs import HEALTH

__all__ = ["Answer", "Described", "check_health", "describe", "secure_channel"]

_OPTIONS: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a health check ended.

    Attributes:
        status: The gRPC status, such as ``UNAVAILABLE``.
        text: Its message.
        serving: Whether the peer says SERVING; None without an answer.
        date: What the clock of the machine that answered said, to the second; None where it did not tell.
        asked_at: Half-way between question and answer, by this machine's clock.
    """

    status: str
    text: str
    serving: bool | None
    date: datetime | None
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Described:
    """What became of ``blazen-peer describe``.

    Attributes:
        kind: Of the error, such as ``Unauthenticated``; None when the peer answered.
        text: The error's message, or which peer answered.
        policy: What the peer says of the policy that it enforces (``digest``, ``problem``); None without one.
        why_alone: Why calls cannot go by a lane; None where one was opened.
    """

    kind: str | None
    text: str
    policy: Mapping[str, Any] | None = None
    why_alone: str | None = None


def secure_channel(address: TcpAddress, current: Path, server_name: str) -> grpc.aio.Channel:
    """Return a channel straight to another sidecar as the node of *current*; *server_name* is a DNS name of its certificate."""
    credentials = grpc.ssl_channel_credentials(
        *((current / name).read_bytes() for name in ("bundle.crt", "tls.key", "tls.crt"))
    )
    return grpc.aio.secure_channel(str(address), credentials, [*_OPTIONS, ("grpc.ssl_target_name_override", server_name)])


async def check_health(
    target: Address | grpc.aio.Channel,
    timeout_secs: float,
    now: Callable[[], datetime],
    metadata: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Ask the gRPC server at *target* (plain text, unless it is a channel, which is closed) whether it serves."""
    channel = target if isinstance(target, grpc.aio.Channel) else grpc.aio.insecure_channel(str(target), _OPTIONS)
    begun = now()
    async with channel:
        method = channel.unary_unary(
            HEALTH,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = method(health_pb2.HealthCheckRequest(), timeout=timeout_secs, metadata=tuple(metadata))
        status, text, serving = "OK", "", None
        try:
            serving = (await call).status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError as error:
            status, text = error.code().name, error.details() or ""
        asked_at = begun + (now() - begun) / 2
        headers = dict(await call.trailing_metadata() or ()) | dict(await call.initial_metadata() or ())
        return Answer(status, text, serving, _date(headers.get("date")), asked_at)


async def describe(target: Address, node: str, timeout_secs: float, environment: Mapping[str, str]) -> Described:
    """Run ``blazen-peer describe`` as *node*, with the token of *environment*: the call that every peer of ours answers
    to a good token alone."""
    argv = [sys.executable, "-m", "blazen_peer.cli", "describe", f"http://{target}", "--node-id", node, "--lane", "--json"]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(timeout_secs):
            output, _ = await process.communicate()
        answer = json.loads(output)
    except (TimeoutError, ValueError):
        return Described("NoAnswer", f"blazen-peer describe did not answer within {timeout_secs:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if "error" in answer:
        return Described(answer["error"]["kind"], answer["error"]["message"])
    return Described(None, f"{answer['node_id']} version {answer['version']}", answer.get("policy"), answer["why_alone"])


def _date(text: str | bytes | None) -> datetime | None:
    """Return the moment of an HTTP ``date`` header, which Envoy adds to every answer that has none."""
    if not isinstance(text, str):
        return None
    try:
        return email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
