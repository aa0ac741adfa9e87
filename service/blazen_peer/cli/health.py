"""``blazen-peer health``: does the peer at an address serve, for the health checks of containers and service managers."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2

from blazen_peer.cli.options import Address, AsJson
from blazen_peer.cli.outcome import Exit, fail, print_json
from blazen_peer.config import client_target

__all__ = ["health"]


def health(
    address: Address,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECS", min=0.1, max=60, help="How long it may take.")] = 2,
    as_json: AsJson = False,
) -> int:
    """Ask a peer whether it serves. Needs no token; a peer that drains says no.

    [bold]Example[/bold]

      blazen-peer health http://127.0.0.1:50051
    """
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(client_target(address), options=options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            said = f"{address} does not answer: {error.code().name}"
            return fail(Exit.TRANSPORT, "Transport", said, hint="is the peer running?", as_json=as_json)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if as_json:
        print_json({"status": status})
    else:
        print(status)
    return Exit.DONE if answer.status == health_pb2.HealthCheckResponse.SERVING else Exit.OTHER
