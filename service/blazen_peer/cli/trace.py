"""``blazen-peer trace``: a trace that Jaeger has, as a tree on the terminal, as JSON, or as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from blazen_peer.cli.jaeger import wait_for_trace
from blazen_peer.cli.options import AsJson
from blazen_peer.cli.outcome import Exit, fail, print_json, printable
from blazen_peer.cli.trace_tree import TraceSpan, draw, in_order
from blazen_peer.errors import TransportError, ValidationError

__all__ = ["picture", "trace"]

PICTURE_COLUMNS = 118
PICTURE_BAR_CELLS = 32
_FETCHED_FONTS = re.compile(r"@font-face\s*\{.*?\}", re.DOTALL)
_THEME = TerminalTheme(
    (255, 255, 255),
    (31, 35, 40),
    [(31, 35, 40), (207, 34, 46), (26, 127, 55), (154, 103, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129)],
)


def trace(
    trace_id: Annotated[str, typer.Argument(metavar="TRACE_ID", help="As run prints it: 32 hex digits.")],
    jaeger: Annotated[
        str, typer.Option("--jaeger", metavar="URL", envvar="BLAZEN_JAEGER_URL", help="Jaeger's query address.")
    ] = "http://127.0.0.1:16686",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECS", min=0, max=600, help="How long to wait until it looks whole.")
    ] = 10,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the tree as a picture, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a trace that Jaeger has as a tree: who did what inside what, on which node, for how long, and when.

    A name in red failed. Jaeger's own page of it is URL/trace/TRACE_ID.

    [bold]Example[/bold]

      blazen-peer trace 4bf92f3577b34da6a3ce929d0e0e4736 --jaeger http://127.0.0.1:16686 --svg trace.svg
    """
    try:
        spans = wait_for_trace(jaeger, trace_id.lower(), wait)
    except TransportError as error:  # it is no peer that does not answer
        raise typer.Exit(fail(Exit.TRANSPORT, error.kind, str(error), as_json=as_json)) from None
    page = f"{jaeger.rstrip('/')}/trace/{trace_id.lower()}"
    services = len({span.service for span in spans})
    title = f"trace {trace_id.lower()}: {len(spans)} spans of {services} services"
    if svg is not None:
        try:
            svg.write_text(picture(spans, title), encoding="utf-8")
        except OSError as error:
            raise ValidationError(f"cannot write {svg}: {error.strerror}") from None
    if as_json:
        print_json({"trace_id": trace_id.lower(), "page": page, "spans": [_object(span) for span in in_order(spans)]})
        return
    console = Console()
    console.print(title, highlight=False)
    console.print(draw(spans, columns=console.width))
    console.print(page, style="dim", highlight=False, soft_wrap=True)


def picture(spans: Sequence[TraceSpan], title: str) -> str:
    """Return the tree of *spans* as an SVG document that needs nothing from elsewhere."""
    console = Console(record=True, width=PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(draw(spans, columns=PICTURE_COLUMNS, bar_cells=PICTURE_BAR_CELLS))
    drawn = console.export_svg(title=title, theme=_THEME, unique_id="trace")
    # Its fonts would be fetched from somebody's server by whoever looks at it: the reader's own are good enough.
    return _FETCHED_FONTS.sub("", drawn).replace("Fira Code, ", "")


def _object(span: TraceSpan) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id or None,
        "service": printable(span.service),
        "name": printable(span.name),
        "kind": span.kind or None,
        "start_ns": span.start_ns,
        "duration_ns": span.end_ns - span.start_ns,
        "failed": span.failed,
        "attributes": dict(sorted(span.attributes.items())),
        "links": list(span.links),
    }
