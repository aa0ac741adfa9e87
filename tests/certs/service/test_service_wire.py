"""The door to the network: whole requests come through, everything else is refused with its status, nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_certs.service_wire import MAX_HEAD_BYTES, MAX_REQUEST_BYTES, MalformedError, read_answer, read_request


def fed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def post(body: bytes, *headers: str, line: str = "POST /v1/join HTTP/1.1", length: str | None = None) -> bytes:
    head = [line, f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def test_a_request_comes_through() -> None:
    """Path and object, whatever other headers a client sends."""
    request = await read_request(fed(post(b'{"a": [1]}', "Host: x:1", "User-Agent: curl/8 (x)", "Accept: */*")))
    assert (request.path, request.body) == ("/v1/join", {"a": [1]})


async def test_an_answer_comes_through() -> None:
    """Status and object; the phrase may be missing (RFC 9112, section 4)."""
    answer = await read_answer(fed(b"HTTP/1.1 429 \r\ncontent-length: 2\r\n\r\n{}"))
    assert (answer.status, answer.body) == (429, {})


REFUSED = [
    pytest.param(post(b"{}", line="GET /v1/roots HTTP/1.1"), 405, id="get"),
    pytest.param(post(b"{}", line="POST http://x/v1 HTTP/1.1"), 400, id="proxy-form"),
    pytest.param(post(b"{}", line="POST /v1/join HTTP/2.0"), 400, id="http-2"),
    pytest.param(post(b"{}", line="PRI * HTTP/2.0"), 400, id="http-2-preface"),
    pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", 400, id="tls-inside-tls"),
    pytest.param(post(b"{}", "Content-Length: 2"), 400, id="length-twice"),
    pytest.param(post(b"{}", "Transfer-Encoding: chunked"), 411, id="chunked"),
    pytest.param(post(b"{}", length="-1"), 411, id="negative-length"),
    pytest.param(post(b"{}", length="0x2"), 411, id="hex-length"),
    pytest.param(post(b"{}", " folded: x"), 400, id="folded-header"),
    pytest.param(post(b"{}", "bad header: x"), 400, id="space-in-header"),
    pytest.param(post(b"", length=str(MAX_REQUEST_BYTES + 1)), 413, id="large-body"),
    pytest.param(post(b"{}", "x: " + "y" * MAX_HEAD_BYTES), 431, id="large-head"),
    pytest.param(post(b"[]"), 400, id="not-an-object"),
    pytest.param(post(b"{"), 400, id="not-json"),
    pytest.param(post(b"[" * 60000), 400, id="deep"),
    pytest.param(post(b"\xff\xfe"), 400, id="not-text"),
]


@pytest.mark.parametrize(("data", "status"), REFUSED)
async def test_refused(data: bytes, status: int) -> None:
    """One wrong thing each, with the status that says so."""
    with pytest.raises(MalformedError) as caught:
        await read_request(fed(data))
    assert caught.value.status == status


async def test_every_prefix_is_cut_short() -> None:
    """A connection that ends before the request does is no request."""
    whole = post(json.dumps({"a": "b"}).encode())
    for end in range(len(whole)):
        with pytest.raises(EOFError):
            await read_request(fed(whole[:end]))


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes is a request, malformed, or cut short; nothing else is raised."""

    async def read() -> Any:
        try:
            return await read_request(fed(data))
        except (MalformedError, EOFError):
            return None

    asyncio.run(read())
