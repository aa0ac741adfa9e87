"""The certificate service on the wire: JSON over HTTP/1.1 (RFC 9112), one request a connection, always inside TLS 1.3.

    POST /v1/<what> HTTP/1.1        content-length: N, then one JSON object
    HTTP/1.1 200 OK                 one JSON object; {"error": {"kind", "message"}} with any other status

As little of HTTP as any client of it speaks: no other method, no chunks, no second request. Everything has a bound: the
head, the body, and, by the callers of these functions, the time. This is the one door for what comes over the network.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from blazen_peer.errors import BlazenError

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_REQUEST_BYTES",
    "Answer",
    "MalformedError",
    "Request",
    "close",
    "read_answer",
    "read_request",
    "text_field",
    "write_answer",
    "write_request",
]

MAX_HEAD_BYTES = 8 * 1024
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a bundle, and revocation lists of some 100,000 certificates
CLOSE_SECS = 1.0
_HEAD_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,200}) HTTP/1\.[01]")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [ -~]{0,100})?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([\t -~]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,9}")


class MalformedError(BlazenError):
    """What came is not as it must be.

    Attributes:
        status: The HTTP status that says so.
    """

    kind = "Malformed"

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what is asked for, and the object that came with it."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    status: HTTPStatus
    body: dict[str, Any]


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Return the request that comes in.

    Raises:
        MalformedError: It is none of ours, or too large.
        EOFError: The other side closed before the end of it.
        OSError: The connection broke.
    """
    first, headers = await _read_head(reader)
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise MalformedError("not an HTTP request")
    if match[1] != b"POST":
        raise MalformedError(f"{match[1].decode()} is not served: use POST", HTTPStatus.METHOD_NOT_ALLOWED)
    return Request(match[2].decode("ascii"), await _read_object(reader, headers, MAX_REQUEST_BYTES))


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Return the answer that comes in.

    Raises:
        MalformedError, EOFError, OSError: As ``read_request``.
    """
    first, headers = await _read_head(reader)
    match = _STATUS_LINE.fullmatch(first)
    if match is None or int(match[1]) not in set(HTTPStatus):
        raise MalformedError("not an HTTP answer")
    return Answer(HTTPStatus(int(match[1])), await _read_object(reader, headers, MAX_ANSWER_BYTES))


def write_request(writer: asyncio.StreamWriter, host: str, request: Request) -> None:
    """Put *request* into the writer's buffer."""
    _write(writer, f"POST {request.path} HTTP/1.1\r\nhost: {host}\r\n", request.body)


def write_answer(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Put *answer* into the writer's buffer."""
    _write(writer, f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n", answer.body)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close the connection, in good order where the other side answers within a second."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECS):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except OSError:
        pass  # it is broken, which is closed too


def text_field(body: dict[str, Any], name: str, *, max_chars: int) -> str:
    """Return a text of *body*.

    Raises:
        MalformedError: It is not there, not an ASCII text, or too long.
    """
    value = body.get(name)
    if not isinstance(value, str) or len(value) > max_chars or not value.isascii():
        raise MalformedError(f"{name!r} must be an ASCII text of at most {max_chars} characters")
    return value


def _write(writer: asyncio.StreamWriter, head: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode("ascii") + data)


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes]]:
    try:
        head = await reader.readuntil(_HEAD_END)
    except asyncio.LimitOverrunError:
        head = b"-" * (MAX_HEAD_BYTES + 1)
    if len(head) > MAX_HEAD_BYTES:
        raise MalformedError("the head is too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    first, *lines = head.removesuffix(_HEAD_END).split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise MalformedError("a header is malformed, or came twice")
        headers[match[1].lower()] = match[2]
    return first, headers


async def _read_object(reader: asyncio.StreamReader, headers: dict[bytes, bytes], limit: int) -> dict[str, Any]:
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers or not _LENGTH.fullmatch(length):
        raise MalformedError("a body with content-length is needed", HTTPStatus.LENGTH_REQUIRED)
    if int(length) > limit:
        raise MalformedError(f"the body is larger than {limit} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    data = await reader.readexactly(int(length))
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError("the body is not JSON") from error
    if not isinstance(body, dict):
        raise MalformedError("the body is not a JSON object")
    return body
