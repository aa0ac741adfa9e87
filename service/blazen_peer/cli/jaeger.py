"""One trace, asked of Jaeger's query API: ``GET /api/v3/traces/{id}``, whose answer is OTLP in JSON.

https://www.jaegertracing.io/docs/2.13/apis/. Ids come as hex, as OTLP's JSON has them, or as base64, as protobuf's own JSON has
them: Jaeger's releases differ.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from blazen_peer.cli.trace_tree import TraceSpan, spans_of
from blazen_peer.errors import BlazenError, TransportError, ValidationError

__all__ = ["TraceNotFoundError", "fetch_trace", "wait_for_trace"]

REQUEST_SECS: Final = 5.0
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
POLL_SECS: Final = 0.5
_TRACE_ID = re.compile(r"[0-9a-f]{1,32}")
_HEX_IDS: Final = {"traceId": 16, "spanId": 8, "parentSpanId": 8}  # bytes, by OTLP's names


class TraceNotFoundError(BlazenError):
    """Jaeger has no trace of that id."""

    kind = "TraceNotFound"


def wait_for_trace(jaeger: str, trace_id: str, wait_secs: float) -> list[TraceSpan]:
    """Return the spans of a trace once it looks whole and a poll finds nothing new, or what there is after *wait_secs*.

    Spans arrive in batches, from every process by itself (5 s apart, by OpenTelemetry's default). While the other end of a
    call, or a span's parent, is missing, more is to come.

    Raises:
        TraceNotFoundError, TransportError, ValidationError: As :func:`fetch_trace`.
    """
    deadline = time.monotonic() + wait_secs
    seen = 0
    while True:
        try:
            spans = fetch_trace(jaeger, trace_id)
        except TraceNotFoundError:
            if time.monotonic() >= deadline:
                raise
            spans = []
        if (spans and len(spans) == seen and _whole(spans)) or time.monotonic() >= deadline:
            return spans
        seen = len(spans)
        time.sleep(min(POLL_SECS, max(deadline - time.monotonic(), 0)))


def _whole(spans: list[TraceSpan]) -> bool:
    known, parents = {span.span_id for span in spans}, {span.parent_id for span in spans}
    orphans = parents - known - {""}
    return not orphans and all(span.span_id in parents for span in spans if span.kind == "client")


def fetch_trace(jaeger: str, trace_id: str) -> list[TraceSpan]:
    """Return the spans of *trace_id* (1 to 32 hex digits) as the Jaeger at the URL *jaeger* has them now.

    Raises:
        ValidationError: The id or the URL is none.
        TraceNotFoundError: There is no such trace.
        TransportError: Nothing that speaks Jaeger's API answers there within 5 seconds.
    """
    if not _TRACE_ID.fullmatch(trace_id):
        raise ValidationError(f"{trace_id[:40]!r} is no trace id: it has 1 to 32 hex digits")
    if urllib.parse.urlsplit(jaeger).scheme not in ("http", "https"):
        raise ValidationError(f"{jaeger!r} is no URL of a Jaeger: use http://HOST:16686")
    url = f"{jaeger.rstrip('/')}/api/v3/traces/{trace_id.zfill(32)}"
    try:
        # The scheme was looked at above.
        with urllib.request.urlopen(url, timeout=REQUEST_SECS) as answer:  # noqa: S310
            raw = answer.read(MAX_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise TraceNotFoundError(f"{jaeger} has no trace {trace_id}; spans take a moment to arrive") from None
        raise TransportError(f"{jaeger} answers with HTTP {error.code}: is it Jaeger's query port, 16686?") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise TransportError(f"no Jaeger answers at {jaeger}: {why}") from None
    if len(raw) > MAX_ANSWER_BYTES:
        raise TransportError(f"the trace is over {MAX_ANSWER_BYTES >> 20} MiB: look at it in Jaeger's own page")
    spans = _spans(raw, jaeger)
    if not spans:
        raise TraceNotFoundError(f"{jaeger} has no trace {trace_id}; spans take a moment to arrive")
    return spans


def _spans(raw: bytes, jaeger: str) -> list[TraceSpan]:
    try:
        document = json.loads(raw)
        found = _with_base64_ids(document["result"])
        return spans_of(ParseDict(found, ExportTraceServiceRequest(), ignore_unknown_fields=True))
    except (ValueError, KeyError, TypeError, ParseError):
        raise TransportError(f"{jaeger} answers with something else than a trace: is it Jaeger's query port, 16686?") from None


def _with_base64_ids(value: Any) -> Any:
    """Return *value* with hex ids written as protobuf's JSON reads bytes."""
    if isinstance(value, list):
        return [_with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _base64(item, _HEX_IDS[name]) if name in _HEX_IDS else _with_base64_ids(item) for name, item in value.items()}


def _base64(text: str, size: int) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode() if len(text) == 2 * size else text
