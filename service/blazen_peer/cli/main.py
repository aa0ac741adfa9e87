"""The command line of ``blazen-peer``: parse, call, translate."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import click
import typer
from rich.console import Console
from rich.json import JSON
from rich.table import Table

from blazen_peer import telemetry
from blazen_peer.cli.outcome import Exit, report
from blazen_peer.cli.serving import serve_app
from blazen_peer.cli.tracing import start_tracing
from blazen_peer.client import PeerClient
from blazen_peer.config import ServerSettings
from blazen_peer.errors import BlazenError, ValidationError
from blazen_peer.transport.proto import control_pb2

__all__ = ["entry", "main"]

MAX_INPUT_BYTES: Final = 64 * 1024 * 1024

app = typer.Typer(
    name="blazen-peer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Serve workflow steps to other machines, and run theirs.",
    epilog="Exit codes: 0 done, 2 wrong use, 3 refused, 4 the workflow failed, 5 transport, 6 overloaded, "
    "7 unknown step or workflow, 1 any other failure of the call.",
)

Address = Annotated[str, typer.Argument(help="http://host:port (behind a sidecar: its egress port) or unix:PATH.")]
NodeId = Annotated[
    str,
    typer.Option("--node-id", envvar="BLAZEN_NODE_ID", help="This end's name; behind a sidecar, the node of its certificate."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for scripts.")]


@app.command()
def serve(
    app_module: Annotated[
        str, typer.Option("--app", metavar="MODULE", help="The module whose import registers the steps, such as my_app.steps.")
    ],
    node_id: Annotated[str, typer.Option("--node-id", envvar="BLAZEN_NODE_ID", help="This peer's name.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDR", help="host:port (port 0 picks a free one) or unix:PATH.")
    ] = "127.0.0.1:50051",
    require_identity: Annotated[
        bool, typer.Option("--require-identity", help="Refuse every call that did not come through the sidecar.")
    ] = False,
    sidecar_proof_file: Annotated[
        Path | None,
        typer.Option("--sidecar-proof-file", metavar="FILE", help="The secret that the sidecar adds to what it forwards."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without a token: anybody who reaches it may call.")
    ] = False,
    default_timeout_secs: Annotated[float, typer.Option(help="What a run may take when the call says nothing.")] = 300,
    max_timeout_secs: Annotated[float, typer.Option(help="What any run may take at most.")] = 3600,
    lame_duck_secs: Annotated[float, typer.Option(help="After SIGTERM, how long calls are still accepted.")] = 10,
    drain_secs: Annotated[float, typer.Option(help="How long runs may then finish before they are cancelled.")] = 30,
    max_runs: Annotated[int, typer.Option(help="Runs in progress at once; a call beyond is refused.")] = 4096,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the steps that MODULE registers, until SIGTERM or SIGINT; then drain and end.

    The token comes from BLAZEN_PEER_TOKEN or the file that BLAZEN_PEER_TOKEN_FILE names. Traces are exported when the
    standard OTEL_* variables ask for it.

    Example: blazen-peer serve --app my_app.steps --node-id analyst --listen 127.0.0.1:50051
    """
    settings = ServerSettings(
        default_timeout_secs=default_timeout_secs,
        max_timeout_secs=max_timeout_secs,
        lame_duck_secs=lame_duck_secs,
        drain_secs=drain_secs,
        max_runs=max_runs,
    )
    serve_app(
        app_module,
        node_id,
        listen,
        require_identity=require_identity,
        sidecar_proof_file=sidecar_proof_file,
        insecure=insecure,
        settings=settings,
        log_level=log_level,
    )


@app.command()
def run(
    address: Address,
    workflow: Annotated[str, typer.Argument(help="What the peer knows the workflow by.")],
    step: Annotated[
        list[str] | None, typer.Option("--step", metavar="ID", help="A step to run; repeat it. None: the whole named workflow.")
    ] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="JSON|@FILE|-", help="The input: JSON text, a file, or standard input.")
    ] = "null",
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECS", help="What the run may take; the peer's default otherwise.")
    ] = None,
    node_id: NodeId = "cli",
    as_json: AsJson = False,
) -> None:
    """Run a workflow on a peer and print its result.

    Example: blazen-peer run http://127.0.0.1:16001 analyze-pipeline --step my_app::analyze --step my_app::summarize
    --input '{"document": "..."}'
    """
    console = Console(stderr=True)
    text = _input_text(input_)
    end_tracing = start_tracing(node_id, os.environ)
    try:
        with (
            console.status(f"{workflow} runs on {address}"),
            PeerClient.connect(address, node_id) as client,
            telemetry.command_span("run", workflow),
        ):
            trace_id = telemetry.current_trace_id()
            result = client.run_remote_workflow_blocking(workflow, step or [], text, timeout)
    finally:
        end_tracing()
    if as_json:
        print(json.dumps({"result": result.result, "trace_id": trace_id}, ensure_ascii=False))
        return
    Console().print(JSON(result.event.data_json))
    if trace_id is not None:
        console.print(f"trace {trace_id}", style="dim")


@app.command()
def describe(address: Address, node_id: NodeId = "cli", as_json: AsJson = False) -> None:
    """Show what a peer can run: its steps with what they accept and emit, its workflows, its limits."""
    with PeerClient.connect(address, node_id) as client:
        description = client.describe_blocking()
    if as_json:
        print(json.dumps(_as_object(description), ensure_ascii=False))
        return
    limits = description.limits
    console = Console()
    console.print(
        f"[bold]{description.node_id}[/bold]  version {description.version}, envelope {description.envelope_version}, "
        f"instance {description.instance_id[:8]}"
    )
    console.print(
        f"runs at once {limits.max_runs}, timeout {limits.default_timeout_ms / 1000:g} s (at most "
        f"{limits.max_timeout_ms / 1000:g} s), messages up to {limits.max_message_bytes / 2**20:g} MiB"
    )
    table = Table("step", "accepts", "emits", title="steps", title_justify="left")
    for item in description.steps:
        table.add_row(
            item.id,
            "\n".join(shape.event_type for shape in item.accepts),
            "\n".join(shape.event_type for shape in item.emits) or "any",
        )
    console.print(table)
    for named in description.workflows:
        console.print(f"workflow [bold]{named.name}[/bold]: {', '.join(named.step_ids)}")


@app.command()
def token() -> None:
    """Make a token: 256 random bits, for BLAZEN_PEER_TOKEN on every node.

    Example: blazen-peer token > token && chmod 600 token, then BLAZEN_PEER_TOKEN_FILE=token on each.
    """
    print(secrets.token_urlsafe(32))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an expected error is one line, a defect keeps its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="blazen-peer", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except BlazenError as error:
        return report(error, as_json="--json" in arguments)
    return int(code or Exit.DONE)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _input_text(value: str) -> str:
    if value != "-" and not value.startswith("@"):
        return value
    name = "standard input" if value == "-" else value[1:]
    try:
        raw = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1) if value == "-" else _head(Path(value[1:]))
        text = raw.decode()
    except OSError as error:
        raise ValidationError(f"cannot read the input from {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValidationError(f"the input from {name} is not UTF-8 text") from None
    if len(raw) > MAX_INPUT_BYTES:
        raise ValidationError(f"the input from {name} is over {MAX_INPUT_BYTES} bytes")
    return text


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_INPUT_BYTES + 1)


def _as_object(description: control_pb2.DescribeResponse) -> dict[str, object]:
    def shapes(items: Sequence[control_pb2.EventShape]) -> list[dict[str, object]]:
        return [
            {"event_type": item.event_type, "json_schema": json.loads(item.json_schema) if item.json_schema else None}
            for item in items
        ]

    limits = description.limits
    return {
        "node_id": description.node_id,
        "version": description.version,
        "envelope_version": description.envelope_version,
        "instance_id": description.instance_id,
        "limits": {
            "max_message_bytes": limits.max_message_bytes,
            "max_runs": limits.max_runs,
            "default_timeout_secs": limits.default_timeout_ms / 1000,
            "max_timeout_secs": limits.max_timeout_ms / 1000,
        },
        "steps": [{"id": item.id, "accepts": shapes(item.accepts), "emits": shapes(item.emits)} for item in description.steps],
        "workflows": [{"name": item.name, "step_ids": list(item.step_ids)} for item in description.workflows],
    }
