"""``blazen-peer trace``, against recorded answers of a real Jaeger 2.13.0; ``tests/compose`` asks a running one."""

from __future__ import annotations

import base64
import json
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

RECORDED = (Path(__file__).parent / "jaeger_trace.json").read_bytes()
TRACE_ID = "37c0f166f31b0cb7a0ad767849b1818d"
NOT_FOUND = b'{"error":{"httpCode":404,"message":"No traces found"}}'
Command = Callable[..., Any]


class Jaeger:
    """Answers each request with the next of *answers*, the last one again and again."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers, self.paths = list(answers), list[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                status, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()


@pytest.fixture
def jaeger() -> Iterator[Callable[..., Jaeger]]:
    """A factory of servers that give recorded answers."""
    started: list[Jaeger] = []

    def start(*answers: tuple[int, bytes]) -> Jaeger:
        started.append(Jaeger(*answers))
        return started[-1]

    yield start
    for item in started:
        item.server.shutdown()
        item.server.server_close()


def without(service: str) -> bytes:
    """Return the recorded answer without the spans of *service*."""
    document = json.loads(RECORDED)
    result = document["result"]
    result["resourceSpans"] = [
        spans
        for spans in result["resourceSpans"]
        if {"key": "service.name", "value": {"stringValue": service}} not in spans["resource"]["attributes"]
    ]
    return json.dumps(document).encode()


def with_base64_ids(raw: bytes) -> bytes:
    """Return an answer with its ids as protobuf's JSON writes bytes."""
    document = json.loads(raw)
    for resource in document["result"]["resourceSpans"]:
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            for name in ("traceId", "spanId", "parentSpanId"):
                if span.get(name):
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json.dumps(document).encode()


def test_tree(jaeger: Callable[..., Jaeger], command: Command) -> None:
    """The tree shows every span below its parent, with its service; the title counts them; the page is named."""
    server = jaeger((200, RECORDED))
    outcome = command("trace", TRACE_ID, "--jaeger", server.url)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"trace {TRACE_ID}: 5 spans of 2 services"
    assert [" ".join(line.split()[:-2]).split(" ━")[0] for line in lines[2:7]] == [
        "blazen-peer run cli",
        "└ BlazenPeer/InvokeSubWorkflow client cli",
        "└ BlazenPeer/InvokeSubWorkflow server node-b",
        "└ blazen.run demo node-b",
        "└ blazen.step app::boom node-b",
    ]
    assert lines[7] == f"{server.url}/trace/{TRACE_ID}"
    assert server.paths == [f"/api/v3/traces/{TRACE_ID}"] * 2


@pytest.mark.parametrize("encode", [lambda raw: raw, with_base64_ids], ids=["hex", "base64"])
def test_object(encode: Callable[[bytes], bytes], jaeger: Callable[..., Jaeger], command: Command) -> None:
    """With --json it is one object: ids in hex whichever way Jaeger writes them, parents before children, attributes."""
    outcome = command("trace", TRACE_ID.upper(), "--jaeger", jaeger((200, encode(RECORDED))).url, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    spans = found["spans"]
    assert found["trace_id"] == TRACE_ID
    assert [span["parent_id"] for span in spans] == [None, *(span["span_id"] for span in spans[:-1])]
    assert [span["service"] for span in spans] == ["cli", "cli", "node-b", "node-b", "node-b"]
    assert spans[3]["attributes"]["blazen.workflow.name"] == "demo"
    assert [span["failed"] for span in spans] == [True, True, False, True, True]
    assert all(span["duration_ns"] > 0 for span in spans)


def test_waits_until_it_looks_whole(jaeger: Callable[..., Jaeger], command: Command) -> None:
    """A trace that is not there yet, or lacks the other end of a call, is asked for again."""
    server = jaeger((404, NOT_FOUND), *[(200, without("node-b"))] * 3, (200, RECORDED))
    outcome = command("trace", TRACE_ID, "--jaeger", server.url, "--wait", "30")
    assert "5 spans of 2 services" in outcome.out
    assert len(server.paths) == 6


def test_what_there_is_after_the_wait(jaeger: Callable[..., Jaeger], command: Command) -> None:
    """When the time is over, what has come is drawn."""
    outcome = command("trace", TRACE_ID, "--jaeger", jaeger((200, without("node-b"))).url, "--wait", "0")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, f"trace {TRACE_ID}: 2 spans of 1 services")


def test_picture(jaeger: Callable[..., Jaeger], command: Command, tmp_path: Path) -> None:
    """--svg writes a picture with every span in it, which fetches nothing."""
    outcome = command("trace", TRACE_ID, "--jaeger", jaeger((200, RECORDED)).url, "--svg", str(tmp_path / "trace.svg"))
    assert outcome.code == 0
    text = (tmp_path / "trace.svg").read_text()
    words = "".join(ET.fromstring(text).itertext()).replace("\xa0", " ")  # noqa: S314 - ours
    assert words.count("InvokeSubWorkflow") == 2
    assert "app::boom" in words
    assert "url(" not in text.replace("url(#", "")


@pytest.mark.parametrize(
    ("argv", "answer", "code", "text"),
    [
        (["xyz"], (200, RECORDED), 2, "'xyz' is no trace id: it has 1 to 32 hex digits"),
        ([TRACE_ID], (404, NOT_FOUND), 1, f"has no trace {TRACE_ID}; spans take a moment to arrive"),
        ([TRACE_ID], (200, b"<html>hello</html>"), 5, "something else than a trace: is it Jaeger's query port, 16686?"),
        ([TRACE_ID], (200, b'{"result": {"resourceSpans": [{"x": 1, "scopeSpans": 7}]}}'), 5, "something else than a trace"),
        ([TRACE_ID], (500, b""), 5, "answers with HTTP 500"),
        ([TRACE_ID, "--jaeger", "localhost:16686"], (200, RECORDED), 2, "is no URL of a Jaeger: use http://HOST:16686"),
        ([TRACE_ID, "--svg", "/nowhere/t.svg"], (200, RECORDED), 2, "cannot write /nowhere/t.svg: No such file or directory"),
    ],
    ids=["no id", "not found", "a page", "odd json", "an error", "no url", "no place"],
)
def test_refusals(
    argv: list[str], answer: tuple[int, bytes], code: int, text: str, jaeger: Callable[..., Jaeger], command: Command
) -> None:
    """What cannot be shown is one line that says what to do."""
    outcome = command("trace", "--jaeger", jaeger(answer).url, "--wait", "0", *argv)
    assert (outcome.code, outcome.out) == (code, "")
    assert text in outcome.err
    assert outcome.err.count("\n") == 1


def test_no_jaeger(command: Command, free_port: int) -> None:
    """Where nothing answers, that is said, with exit code 5."""
    outcome = command("trace", TRACE_ID, "--jaeger", f"http://127.0.0.1:{free_port}")
    assert outcome.code == 5
    assert outcome.err.startswith(f"blazen-peer: no Jaeger answers at http://127.0.0.1:{free_port}: ")
