"""A trace drawn as a tree: who did what inside what, for how long, and when within the whole."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.markup import escape
from rich.table import Table

__all__ = ["TraceSpan", "draw", "in_order", "spans_of"]

_BAR_CELLS = 10
_NAME_CELLS, _MS_CELLS = 24, 8  # at least
_HOP = "blazen.hop"  # the sidecars' own tag; Envoy's names for spans say less
_KINDS = {2: "server", 3: "client"}  # opentelemetry.proto.trace.v1.Span.SpanKind
_ERROR = 2  # opentelemetry.proto.trace.v1.Status.StatusCode


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """One span; ids in hex, times in nanoseconds since the epoch; ``kind`` is "server", "client" or "".

    ``links`` are the ids of the spans that it points to beside its parent.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    failed: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()


def spans_of(request: ExportTraceServiceRequest) -> list[TraceSpan]:
    """Return the spans of one OTLP export."""
    spans = []
    for resource_spans in request.resource_spans:
        service = _texts(resource_spans.resource.attributes).get("service.name", "unknown")
        spans += [
            TraceSpan(
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                service=service,
                name=_name(span),
                kind=_KINDS.get(span.kind, ""),
                start_ns=span.start_time_unix_nano,
                end_ns=span.end_time_unix_nano,
                failed=span.status.code == _ERROR,
                attributes=_texts(span.attributes),
                links=tuple(link.span_id.hex() for link in span.links),
            )
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
    return spans


def _name(span: Span) -> str:
    """Return a short name: a sidecar's hop, or the span's own name without the package of an RPC's service."""
    hop = next((item.value.string_value for item in span.attributes if item.key == _HOP), None)
    return hop or re.sub(r"^[\w.]+\.(\w+/\w+)$", r"\1", span.name)


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Return attributes as text, whatever their type; lists and tables, of which we have none, are left out."""
    found = {}
    for item in attributes:
        kind = item.value.WhichOneof("value")
        if kind in ("string_value", "bool_value", "int_value", "double_value"):
            found[item.key] = str(getattr(item.value, kind))
    return found


def in_order(spans: Sequence[TraceSpan]) -> list[TraceSpan]:
    """Return *spans* as :func:`draw` shows them: each before its children, siblings in order of time."""
    return [span for _, span in _walk(_children(spans), "", "")]


def _children(spans: Sequence[TraceSpan]) -> dict[str, list[TraceSpan]]:
    known = {span.span_id for span in spans}
    children: defaultdict[str, list[TraceSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        children[span.parent_id if span.parent_id in known else ""].append(span)
    return children


def draw(spans: Sequence[TraceSpan], *, columns: int = 120, bar_cells: int = _BAR_CELLS) -> Table:
    """Return the spans of one trace as a table whose first column is the tree, in order of time.

    Args:
        columns: How wide it may be: names are cut for it, and nothing else.
        bar_cells: How many characters wide the whole of the time is.
    """
    children = _children(spans)
    start_ns, end_ns = min(span.start_ns for span in spans), max(span.end_ns for span in spans)

    services = max(len("service"), *(len(span.service) for span in spans))
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = max(_NAME_CELLS, columns - services - _MS_CELLS - bar_cells - 6)  # and what stands between
    table.add_column("span", no_wrap=True, overflow="ellipsis", max_width=names)
    table.add_column("service", no_wrap=True, style="cyan")
    table.add_column("ms", justify="right", no_wrap=True, min_width=_MS_CELLS)
    table.add_column("when", no_wrap=True, style="blue", min_width=bar_cells)
    for prefix, span in _walk(children, "", ""):
        name = escape(span.name) + (f" [dim]{span.kind}[/dim]" if span.kind else "")
        table.add_row(
            f"[dim]{prefix}[/dim]{f'[red]{name}[/red]' if span.failed else name}",
            span.service,
            f"{(span.end_ns - span.start_ns) / 1e6:.2f}",
            _bar(span, start_ns, end_ns, bar_cells),
        )
    return table


def _walk(children: dict[str, list[TraceSpan]], parent_id: str, indent: str) -> Iterable[tuple[str, TraceSpan]]:
    """Yield each span below *parent_id* with the lines that lead to it. A span is visited once: its parent is one."""
    siblings = children.get(parent_id, [])
    for span in siblings:
        last = span is siblings[-1]
        branch, below = ("", "") if not parent_id else (("└ ", "  ") if last else ("├ ", "│ "))
        yield indent + branch, span
        yield from _walk(children, span.span_id, indent + below)


def _bar(span: TraceSpan, start_ns: int, end_ns: int, cells: int) -> str:
    cell_ns = max(end_ns - start_ns, 1) / cells
    first = min(int((span.start_ns - start_ns) / cell_ns), cells - 1)
    length = max(1, round((span.end_ns - span.start_ns) / cell_ns))
    return " " * first + "━" * min(length, cells - first)
