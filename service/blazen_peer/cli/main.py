"""The command line of ``blazen-peer``: parse, call, translate."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from rich.console import Console
from rich.text import Text

from blazen_peer import telemetry
from blazen_peer.cli.connection import DataClass, PeersFile, connected, named, why_alone
from blazen_peer.cli.exporters import start_telemetry
from blazen_peer.cli.health import health
from blazen_peer.cli.options import Address, AsJson, NodeId
from blazen_peer.cli.outcome import Exit, fail, print_json, printable, report
from blazen_peer.cli.refs import ref_object, refs_app
from blazen_peer.cli.runs import cancel, follow
from blazen_peer.cli.serving import end_process, serve_app
from blazen_peer.cli.show import description_object, show_description, show_result
from blazen_peer.cli.tls import TlsCa, TlsCert, TlsKey, TlsServerName, server_tls
from blazen_peer.cli.token import token
from blazen_peer.cli.trace import trace
from blazen_peer.config import ServerSettings
from blazen_peer.errors import BlazenError, ValidationError
from blazen_peer.transport.lanes import LaneMode

__all__ = ["entry", "main"]

MAX_INPUT_BYTES: Final = 64 * 1024 * 1024
EXIT_CODES: Final = (
    "Exit codes: 0 done, 2 wrong use, 3 refused, 4 the workflow failed, 5 transport, 6 overloaded, "
    "7 unknown step, workflow, session ref or run, 1 any other failure of the call, 130 Ctrl-C."
)
# Typer carries click's classes under different module names from release to release; its own subclass always leads to them.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="blazen-peer",
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and tokens are among them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve workflow steps to other machines, and run theirs.\n\n"
    "[bold]Example[/bold]\n\n"
    "  blazen-peer serve --app my_app --node-id node-b --listen 127.0.0.1:50051\n\n"
    "  blazen-peer describe http://127.0.0.1:50051",
    epilog=EXIT_CODES,
)
app.add_typer(refs_app, name="refs")
app.command(
    epilog="Exit codes: 0 stopped, or already finished, 1 still stopping, or any other failure, 2 wrong use, 3 refused, "
    "5 transport, 7 no such run."
)(cancel)
app.command(epilog="Exit codes: 0 it serves, 1 it answers and does not serve, 2 wrong use, 5 nobody answers.")(health)
app.command(epilog="Exit codes: 0 done, 2 wrong use.")(token)
app.command(epilog="Exit codes: 0 drawn, 1 Jaeger has no such trace, 2 wrong use, 5 no Jaeger answers there.")(trace)


@app.command(
    epilog="Exit codes: 0 drained or stopped, 2 wrong use, 5 cannot listen there, 70 something did not let go in its time."
)
def serve(
    app_module: Annotated[
        str, typer.Option("--app", metavar="MODULE", help="The module whose import registers the steps, such as my_app.steps.")
    ],
    node_id: Annotated[str, typer.Option("--node-id", metavar="NODE", envvar="BLAZEN_NODE_ID", help="This peer's name.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDR", help="host:port (port 0 picks a free one) or unix:PATH.")
    ] = "127.0.0.1:50051",
    require_identity: Annotated[
        bool,
        typer.Option("--require-identity", help="Refuse every call without a proven identity: by the sidecar or direct TLS."),
    ] = False,
    sidecar_proof_file: Annotated[
        Path | None,
        typer.Option("--sidecar-proof-file", metavar="FILE", help="The secret that the sidecar adds to what it forwards."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without a token: anybody who reaches it may call.")
    ] = False,
    default_timeout_secs: Annotated[
        float, typer.Option(metavar="SECS", help="What a run may take when the call says nothing.")
    ] = 300,
    max_timeout_secs: Annotated[float, typer.Option(metavar="SECS", help="What any run may take at most.")] = 3600,
    lame_duck_secs: Annotated[
        float, typer.Option(metavar="SECS", help="After SIGTERM, how long calls are still accepted.")
    ] = 10,
    drain_secs: Annotated[
        float, typer.Option(metavar="SECS", help="How long runs may then finish before they are cancelled.")
    ] = 30,
    max_runs: Annotated[int, typer.Option(metavar="COUNT", help="Runs in progress at once; calls beyond wait.")] = 4096,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="The policy.json of this node: who may call what, with which data. Read again when it changes.",
        ),
    ] = None,
    max_queued_runs: Annotated[
        int, typer.Option(metavar="COUNT", help="Calls that may wait for their turn; one beyond is refused.")
    ] = 1024,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    access_log: Annotated[
        bool,
        typer.Option("--access-log", help="Log each call that came by a lane; sidecars log those that come alone."),
    ] = False,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[
        str, typer.Option(metavar="FORMAT", envvar="BLAZEN_LOG_FORMAT", help="text, or json: one object a line.")
    ] = "text",
) -> None:
    """Serve the steps that MODULE registers, until SIGTERM or SIGINT; then drain and end. A second signal stops at once.

    The token comes from BLAZEN_PEER_TOKEN, or from the file that BLAZEN_PEER_TOKEN_FILE names. Traces are exported when the
    standard OTEL_* variables ask for it. The log goes to standard error; its line "listens on" says where calls are taken.

    [bold]Example[/bold]

      blazen-peer serve --app my_app.steps --node-id analyst --listen 127.0.0.1:50051
    """
    settings = ServerSettings(
        default_timeout_secs=default_timeout_secs,
        max_timeout_secs=max_timeout_secs,
        lame_duck_secs=lame_duck_secs,
        drain_secs=drain_secs,
        max_runs=max_runs,
        max_queued_runs=max_queued_runs,
    )
    serve_app(
        app_module,
        node_id,
        listen,
        require_identity=require_identity,
        sidecar_proof_file=sidecar_proof_file,
        insecure=insecure,
        tls=server_tls(tls_cert, tls_key, tls_ca),
        settings=settings,
        policy=policy,
        access_log=access_log,
        log_level=log_level,
        log_format=log_format,
    )


@app.command(epilog=EXIT_CODES)
def run(
    address: Address,
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="What the peer knows the workflow by.")],
    step: Annotated[
        list[str] | None, typer.Option("--step", metavar="ID", help="A step to run; repeat it. None: the whole named workflow.")
    ] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="JSON|@FILE|-", help="The input: JSON text, a file, or standard input.")
    ] = "null",
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECS", help="What the run may take; the peer's default otherwise.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each event that the run emits, one a line.")] = False,
    invocation_id: Annotated[
        str | None,
        typer.Option(
            "--invocation-id", metavar="ID", help="Names the run for cancel and repeats: the same call again runs nothing anew."
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", metavar="COUNT", help="How often to go on after the connection broke.")
    ] = 0,
    lane: Annotated[
        str, typer.Option("--lane", metavar="WAY", help="Whether the call goes by a lane: never, auto (if it can) or always.")
    ] = "never",
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow on a peer and print its result.

    With --stream and --json, each event is one object on one line, and the result is the last line.

    [bold]Example[/bold]

      blazen-peer run http://127.0.0.1:16001 intake-document --input @document.json

      blazen-peer run peer:analyst analyze-pipeline --data personal --input @document.json

      blazen-peer run unix:/run/peer.sock demo --step my_app::analyze --input '{"document": "..."}' --json
    """
    console = Console(stderr=True)
    text = _input_text(input_)
    invocation_id = invocation_id or secrets.token_hex(16)
    end_tracing = start_telemetry(named(node_id), os.environ)
    try:
        with (
            console.status(Text(f"{printable(workflow)} runs on {printable(address)}")),
            connected(
                address,
                node_id,
                data,
                peers_file,
                tls_cert,
                tls_key,
                tls_ca,
                tls_server_name,
                lane=cast("LaneMode", lane),
            ) as client,
            telemetry.command_span("run", workflow),
        ):
            trace_id = telemetry.current_trace_id()
            names = (workflow, step or [], text, timeout)
            if stream:
                events = client.stream_remote_workflow(*names, invocation_id=invocation_id, retries=retries)
                result = follow(events, as_json=as_json)
            else:
                result = client.run_remote_workflow_blocking(*names, invocation_id=invocation_id, retries=retries)
        if as_json:
            refs = [ref_object(ref) for ref in result.remote_refs.values()]
            print_json({"result": result.result, "trace_id": trace_id, **({"refs": refs} if refs else {})})
        else:
            show_result(result)
            for ref in result.remote_refs.values():
                console.print(Text(f"session ref {ref.uuid} {printable(ref.type_tag)}"), style="dim", highlight=False)
            if trace_id is not None:
                console.print(f"trace {trace_id}", style="dim", highlight=False)
    except KeyboardInterrupt:
        what = (
            "stopped waiting; a run that has begun goes on at the peer until it ends or its time is over: "
            f"blazen-peer cancel {address} {invocation_id} stops it"
        )
        raise typer.Exit(fail(Exit.INTERRUPTED, "Interrupted", what, as_json=as_json)) from None
    finally:
        end_tracing()


@app.command(epilog="Exit codes: 0 done, 2 wrong use, 3 refused, 5 transport, 1 any other failure of the call.")
def describe(
    address: Address,
    data: DataClass = None,
    peers_file: PeersFile = None,
    node_id: NodeId = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    tls_server_name: TlsServerName = None,
    lane: Annotated[bool, typer.Option("--lane", help="Open a lane too, as calls do, and say whether that goes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a peer can run: its steps with what they accept and emit, its workflows, its limits.

    With --json each event also has its JSON Schema.

    [bold]Example[/bold]

      blazen-peer describe http://127.0.0.1:16001
    """
    with connected(address, node_id, data, peers_file, tls_cert, tls_key, tls_ca, tls_server_name) as client:
        description = client.describe_blocking()
        why = why_alone(client) if lane else None
    if as_json:
        told = description_object(description)
        print_json({**told, "why_alone": why} if lane else told)
    else:
        show_description(description)
        if lane:
            sys.stdout.write("calls go by a lane\n" if why is None else f"calls go alone: {printable(why)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an expected error is one line, a defect keeps its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        code = app(arguments or ["--help"], prog_name="blazen-peer", standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "blazen-peer"
        message = f"{error.format_message().rstrip('.')}. See: {command} --help"
        return fail(Exit.WRONG_USE, "Usage", message, as_json=as_json)
    except BlazenError as error:
        return report(error, as_json=as_json, hint=arguments[:1] != ["serve"])  # the hints are a caller's
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; the interpreter must not fail again when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OTHER
    if not arguments:
        return Exit.WRONG_USE  # the help was shown; nothing was done
    return code if isinstance(code, int) else Exit.DONE


def entry() -> None:
    """The console script. It ends the process whatever threads the served application has left."""
    end_process(main())


def _input_text(value: str) -> str:
    if value != "-" and not value.startswith("@"):
        return value
    name = "standard input" if value == "-" else value[1:] or "@, which names no file"
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
