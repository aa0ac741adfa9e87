"""Run a document through two peers behind mutual-TLS sidecars, show what came of it, and what is refused."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import ssl
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table

from blazen_certs import Authority
from blazen_peer import BlazenError, PeerClient, UnauthenticatedError
from blazen_peer.cli.trace_tree import TraceSpan, draw
from examples.demo.mesh import LocalMesh, Ports
from examples.demo.receiver import Receiver

SAMPLE = Path(__file__).parents[1] / "documents" / "sample.txt"
NODES = ("intake", "analyst")
MAX_DOCUMENT_BYTES = 60 * 1024 * 1024
SERVICES = {"intake", "intake-sidecar", "analyst-sidecar", "analyst"}
SPANS = 11  # intake: call, run, step, call; two sidecars with two each; analyst: call, run, two steps; less what is optional

console = Console(width=None if sys.stdout.isatty() else 100)


class DemoError(Exception):
    """Something did not go as the demo promises."""


def main() -> int:
    """Run the demo; 0 when everything went as it should."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--document", type=Path, default=SAMPLE, metavar="FILE", help="a text file of your own")
    arguments = parser.parse_args()
    try:
        document = read(arguments.document)
    except DemoError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="blazen-demo-"))
    try:
        asyncio.run(demo(document, directory))
    except (DemoError, BlazenError, RuntimeError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def read(path: Path) -> str:
    """Return the document's text."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise DemoError(f"{path} is over {MAX_DOCUMENT_BYTES >> 20} MiB, more than one message carries")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DemoError(f"{path} is not UTF-8 text") from None


async def demo(document: str, directory: Path) -> None:
    """The whole of it; whatever is started here is gone at the end."""
    authority = Authority.create(directory / "certs", "mesh.example")
    for node in NODES:
        authority.issue(node)
    did(f"a certificate authority and the identities {' and '.join(f'spiffe://mesh.example/peer/{node}' for node in NODES)}")
    async with Receiver() as receiver:
        mesh = LocalMesh(directory, Ports.free(), receiver.address)
        try:
            with console.status("starting two peers and two Envoys"):
                began = time.monotonic()
                await mesh.__aenter__()
            try:
                did(f"two peers and two Envoys on loopback, ready after {time.monotonic() - began:.1f} s")
                await show(document, mesh, receiver)
            finally:
                with console.status("stopping everything"):
                    await mesh.__aexit__(None, None, None)
        except BaseException:
            for line in list(mesh.lines)[-25:]:
                print(line, file=sys.stderr)
            raise
        did("everything that was started has stopped")


async def show(document: str, mesh: LocalMesh, receiver: Receiver) -> None:
    """Run the workflow, then print the result, what protected it, its trace and two refusals."""
    intake = f"http://127.0.0.1:{mesh.ports.intake_peer}"
    async with await PeerClient.connect_async(intake, "demo", token=mesh.token) as client:
        with console.status("intake runs the parent workflow, analyst its sub-workflow"):
            began = time.monotonic()
            result = await client.run_remote_workflow("intake-document", [], json.dumps({"document": document}), 120)
            took_secs = time.monotonic() - began
    console.print(report(result.result, took_secs))

    call = await mesh.logged(
        5, node="analyst", hop="ingress", log="call", grpc_status="OK", method="/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"
    )
    if call is None:
        raise DemoError("the analyst's sidecar logged no call")
    console.print(protection(call))

    with console.status("waiting for the last spans"):
        spans = await receiver.trace(str(call["trace_id"]), complete, timeout_secs=15)
    if not complete(spans):
        raise DemoError(f"the trace is not whole: {len(spans)} spans of {', '.join(sorted({span.service for span in spans}))}")
    console.print(
        Rule(f"trace {call['trace_id']}: {len(spans)} spans of {len({span.service for span in spans})} services", align="left")
    )
    console.print(draw(spans, columns=console.width))
    console.print(Rule())

    await refused_without_token(mesh)
    await refused_without_certificate(mesh)


def report(result: dict[str, object], took_secs: float) -> Panel:
    """Draw what the analyst found."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(
        "size",
        "{characters:,} characters, {words:,} words ({distinct_words:,} distinct), {sentences:,} sentences".format_map(result),
    )
    terms, sentences = result["key_terms"], result["key_sentences"]
    assert isinstance(terms, dict)
    assert isinstance(sentences, list)
    table.add_row("key terms", ", ".join(f"{term} ({count:,})" for term, count in terms.items()))
    for number, sentence in enumerate(sentences):
        table.add_row("" if number else "key sentences", sentence)
    return Panel(table, title=f"result of analyze-pipeline, {took_secs:.2f} s", title_align="left")


def protection(call: dict[str, object]) -> Panel:
    """Draw what protected the call, as the analyst's sidecar logged it."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("TLS", f"{call['tls_version']}, both ends with certificates")
    table.add_row("caller", f"{call['peer_uri']}")
    table.add_row("callee", f"{call['local_uri']}")
    table.add_row("token", "a JWT of node intake, signed with the shared token, good for 60 s; its node is the certificate's")
    return Panel(table, title="what protected it", title_align="left")


def complete(spans: list[TraceSpan]) -> bool:
    """Say whether all four services are in the trace and nobody's parent is missing."""
    known = {span.span_id for span in spans}
    return (
        len(spans) >= SPANS
        and {span.service for span in spans} >= SERVICES
        and sum(span.parent_id not in known for span in spans) == 1
    )


async def refused_without_token(mesh: LocalMesh) -> None:
    """Call the analyst through both sidecars, with the right certificate and no token."""
    async with await PeerClient.connect_async(f"http://127.0.0.1:{mesh.ports.egress}", "intake") as client:
        try:
            await client.run_remote_workflow("analyze-pipeline", ["my_app::analyze"], "{}", 10)
        except UnauthenticatedError as error:
            did(f"refused without a token: {error.kind}: {error}")
            return
    raise DemoError("a call without a token was let in")


async def refused_without_certificate(mesh: LocalMesh) -> None:
    """Dial the analyst's sidecar directly, trusting the right CA and showing no certificate."""
    bundle = mesh.directory / "certs" / "nodes" / "intake" / "current" / "bundle.crt"
    context = ssl.create_default_context(cafile=str(bundle))
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", mesh.ports.analyst_sidecar, ssl=context, server_hostname="analyst.mesh.example"
            )
            try:
                if await reader.read(1):  # TLS 1.3 tells the refusal after the client thinks that it is connected
                    raise DemoError("a connection without a client certificate was let in")
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:  # the alert
        if isinstance(error, TimeoutError):
            raise DemoError("a connection without a client certificate was neither refused nor let in") from None
    reason = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    if await mesh.logged(5, lambda entry: reason in str(entry.get("failure")), node="analyst", log="connection") is None:
        raise DemoError("the analyst's sidecar logged no refused handshake")
    did(f"refused without a client certificate: {reason}, says the analyst's sidecar")


def did(what: str) -> None:
    """Print one thing that was done."""
    console.print(f"[green]✓[/green] {what}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
