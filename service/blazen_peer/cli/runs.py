"""What the command does with runs beside the plain call: ``run --stream`` and ``cancel``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from blazen_peer.cli.connection import DataClass, PeersFile, connected
from blazen_peer.cli.options import Address, AsJson, NodeId
from blazen_peer.cli.outcome import Exit, print_json, printable
from blazen_peer.cli.tls import TlsCa, TlsCert, TlsKey, TlsServerName
from blazen_peer.events import StopEvent
from blazen_peer.remote_stream import RemoteStream
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.transport.channels import run_in_background
from blazen_peer.wire.cancellation import CancelOutcome

__all__ = ["cancel", "follow"]


def follow(stream: RemoteStream, *, as_json: bool) -> WorkflowResult:
    """Print each event of *stream* on a line of its own while this thread waits, and return the result."""
    return run_in_background(_printed(stream, as_json=as_json))


async def _printed(stream: RemoteStream, *, as_json: bool) -> WorkflowResult:
    async for event in stream:
        if isinstance(event, StopEvent):
            continue
        if as_json:
            print_json({"event": {"event_type": event.event_type, "data": event.data}, "cursor": stream.cursor})
        else:
            print(printable(f"{event.event_type} {json.dumps(event.data, ensure_ascii=False)}"), flush=True)
    return stream.result


def cancel(
    address: Address,
    invocation_id: Annotated[str, typer.Argument(metavar="ID", help="What the run was begun with: run --invocation-id.")],
    grace: Annotated[float, typer.Option("--grace", metavar="SECS", help="How long to wait for its steps to let go.")] = 5,
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
    as_json: AsJson = False,
) -> None:
    """Stop a run of this caller's, which is the --node-id that began it, and its remote children; say what became of it.

    [bold]Example[/bold]

      blazen-peer cancel http://127.0.0.1:16001 nightly-2026-11-23 --node-id intake
    """
    with connected(address, node_id, data, peers_file, tls_cert, tls_key, tls_ca, tls_server_name) as client:
        report = client.cancel_blocking(invocation_id, grace_secs=grace)
    still = report.outcome is CancelOutcome.STILL_STOPPING
    if as_json:
        print_json(
            {"outcome": report.outcome, "step_ids": list(report.step_ids), "stopping_secs": round(report.stopping_secs, 3)}
        )
    elif still:
        steps = printable(", ".join(report.step_ids))
        print(f"{report.outcome}: {steps} since {report.stopping_secs:.1f} s; its callers have their answer")
    else:
        print(report.outcome)
    if still:
        raise typer.Exit(Exit.OTHER)
