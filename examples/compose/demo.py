"""``docker compose run --rm demo``: run a document through the mesh of ``compose.yaml``; show the result, and its trace.

It stands in intake's network and holds the mesh's token, as a local program of that node would.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from blazen_peer import BlazenError, PeerClient, telemetry
from blazen_peer.cli.exporters import start_telemetry
from blazen_peer.cli.jaeger import wait_for_trace
from blazen_peer.cli.trace_tree import draw

SAMPLE = Path(__file__).parents[1] / "documents" / "sample.txt"
TRACE_SECS = 30.0


def main() -> int:
    """Run it; 0 when everything went as it should."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument(
        "document", type=Path, nargs="?", default=SAMPLE, metavar="FILE", help="a text file, or - (standard input)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    document = sys.stdin.read() if str(arguments.document) == "-" else arguments.document.read_text(encoding="utf-8")
    try:
        show(document, as_json=arguments.json)
    except BlazenError as error:
        print(f"demo: {error.kind}: {error}", file=sys.stderr)
        return 1
    return 0


def show(document: str, *, as_json: bool) -> None:
    """Run the parent workflow on intake, and print what came of it."""
    end_tracing = start_telemetry("demo", os.environ)
    began = time.monotonic()
    try:
        with (
            PeerClient.connect(os.environ["INTAKE_ADDRESS"], client_node_id="demo") as intake,
            telemetry.command_span("run", "intake-document"),
        ):
            trace_id = telemetry.current_trace_id()
            result = intake.run_remote_workflow_blocking("intake-document", [], json.dumps({"document": document}), 120).result
    finally:
        end_tracing()
    took_secs = time.monotonic() - began
    assert trace_id is not None
    page = f"{os.environ['JAEGER_PAGE']}/trace/{trace_id}"
    if as_json:
        print(json.dumps({"result": result, "trace_id": trace_id, "page": page}))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report(result, took_secs))
    spans = wait_for_trace(os.environ["JAEGER_QUERY"], trace_id, TRACE_SECS)
    services = len({span.service for span in spans})
    console.print(f"trace {trace_id}: {len(spans)} spans of {services} services", highlight=False)
    console.print(draw(spans, columns=console.width))
    console.print(f"in Jaeger: {page}", highlight=False, soft_wrap=True)


def report(result: dict[str, object], took_secs: float) -> Panel:
    """Draw the result."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("size", "{characters:,} characters, {words:,} words, {sentences:,} sentences".format_map(result))
    terms, sentences, embedding = result["key_terms"], result["key_sentences"], result["embedding"]
    assert isinstance(terms, dict)
    assert isinstance(sentences, list)
    assert isinstance(embedding, list)
    table.add_row("key terms", ", ".join(f"{term} ({count:,})" for term, count in terms.items()))
    for number, sentence in enumerate(sentences):
        table.add_row("" if number else "key sentences", sentence)
    table.add_row("embedding", " ".join(f"{value:+.2f}" for value in embedding))
    return Panel(table, title=f"result of intake-document, {took_secs:.2f} s", title_align="left")


if __name__ == "__main__":
    sys.exit(main())
