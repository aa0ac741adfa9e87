"""What a server answers, row by row of the wire's table: hand-made bytes in, exact texts and bytes out, by plain gRPC.

One way alone: what a lane answers to any bytes is in ``lane/test_garbage.py``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from blazen_peer import Event, PeerServer, ServerSettings, StartEvent, StopEvent, Workflow
from blazen_peer.runtime.registry import Registry
from blazen_peer.testing import peers, virtual_time
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

Serve = Callable[..., Awaitable[PeerServer]]
RawCall = Callable[..., Awaitable[bytes]]
Code = grpc.StatusCode

VECTORS = json.loads((Path(__file__).parent / "wire" / "postcard.json").read_text())
HEX = {case["id"]: bytes.fromhex(case["hex"]) for case in (*VECTORS["vectors"], *VECTORS["refused"])}
ECHO = "blazen_peer::tests::e2e::echo"
DONE = bytes.fromhex("0100 01")  # version 1, no state, Some(result_json ...
ENDED = bytes.fromhex("0000")  # ... no refs, no error


@pytest.fixture
def steps(registry: Registry) -> None:
    """The steps that the requests of these tests name."""

    @registry.step(ECHO)
    async def echo(event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)

    @registry.step("demo::fails")
    async def fails(event: StartEvent) -> StopEvent:
        raise ValueError("boom: é\nsecond line")

    @registry.step("demo::strays")
    async def strays(event: StartEvent) -> Event:
        return Event.dynamic("demo::Stray")

    @registry.step("demo::waits")
    async def waits(event: StartEvent) -> StopEvent:
        await asyncio.Event().wait()
        return StopEvent()

    @registry.step("demo::cancels_itself")
    async def cancels_itself(event: StartEvent) -> StopEvent:
        raise asyncio.CancelledError

    registry.register_workflow(Workflow("noop", [ECHO], registry=registry))


def asked(*step_ids: str, input_json: bytes = b"null", timeout_secs: int | None = None, name: str = "w") -> bytes:
    return SubWorkflowRequest(name, step_ids, input_json, timeout_secs).encode()


async def refused(raw_call: RawCall, *args: Any, **options: Any) -> tuple[Code, str, ErrorInfo, Status]:
    """Make a call that is refused; return its status, its text, and the details beside it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(*args, **options)
    trailing = dict(caught.value.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailing, f"no details beside {caught.value}"
    status, info = Status.FromString(trailing["grpc-status-details-bin"]), ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "blazen.peer.v1"
    assert (status.code, status.message) == (caught.value.code().value[0], caught.value.details())
    return caught.value.code(), caught.value.details() or "", info, status


DECODED = [
    pytest.param("V1", b'{"hello":"world","n":42}', id="V1-steps-no-timeout"),
    pytest.param("V2", b'{"hello":"world","n":42}', id="V2-timeout"),
    pytest.param("V3", b'{"id":7}', id="V3-empty-step-ids-are-the-named-workflow"),
]


@pytest.mark.parametrize(("vector", "result"), DECODED)
@pytest.mark.usefixtures("steps")
async def test_golden_requests(serve: Serve, raw_call: RawCall, vector: str, result: bytes) -> None:
    """The reference's own request bytes run, and the answer's bytes are its own too: bare, compact JSON."""
    answer = await raw_call(await serve(), HEX[vector])
    assert answer == DONE + bytes([len(result)]) + result + ENDED
    if vector == "V1":
        assert answer == HEX["V5"]


@pytest.mark.usefixtures("steps")
async def test_null(serve: Serve, raw_call: RawCall) -> None:
    """A null payload is the four bytes ``null``, not a missing result."""
    assert await raw_call(await serve(), asked(ECHO)) == HEX["V6"]


@pytest.mark.usefixtures("steps")
async def test_version_0_and_trailing_bytes(serve: Serve, raw_call: RawCall) -> None:
    """Version 0 is accepted, and so are bytes after the last field."""
    assert await raw_call(await serve(), b"\0" + HEX["V3"][1:] + b"\xff") == await raw_call(await serve(), HEX["V3"])


BAD_PAYLOADS = [
    *(pytest.param({"envelope": HEX[name]}, id=name) for name in ("R1", "R3", "R4", "R5", "R7")),
    pytest.param({"envelope": b"\x01\xff\xff\xff\xff\x0f"}, id="a-length-beyond-the-bytes"),
    pytest.param({"message": b"\xff\xff\xff"}, id="no-protobuf-at-all"),
    pytest.param({"message": b""}, id="an-empty-message"),
]


@pytest.mark.parametrize("sent", BAD_PAYLOADS)
async def test_bad_payload(serve: Serve, raw_call: RawCall, sent: dict[str, bytes]) -> None:
    """Bytes that do not decode are INVALID_ARGUMENT, and say why."""
    code, text, info, _ = await refused(raw_call, await serve(), **sent)
    assert code is Code.INVALID_ARGUMENT
    assert re.fullmatch(r"postcard decode failed: [^\n]{5,200}", text)
    assert info.reason == "ENCODE"


NEWER = [
    pytest.param(b"\x02", 2, id="2-with-another-layout"),
    pytest.param(b"\x02" + HEX["V3"][1:], 2, id="2-with-our-layout"),
    pytest.param(HEX["V4"], 4294967295, id="V4"),
]


@pytest.mark.parametrize(("envelope", "got"), NEWER)
async def test_newer_version(serve: Serve, raw_call: RawCall, envelope: bytes, got: int) -> None:
    """A newer envelope is FAILED_PRECONDITION, whatever its layout."""
    code, text, info, _ = await refused(raw_call, await serve(), envelope)
    assert (code, text) == (Code.FAILED_PRECONDITION, f"envelope version {got} is newer than supported 1")
    assert (info.reason, dict(info.metadata)) == ("ENVELOPE_VERSION", {"got": str(got), "supported": "1"})


UNKNOWN = [
    pytest.param(["nope"], "w", "unknown step id `nope`", {"step_id": "nope"}, id="one"),
    pytest.param([ECHO, "b", "a"], "w", "unknown step id `b`", {"step_id": "b"}, id="the-first-of-several"),
    pytest.param(["`'\n%"], "w", "unknown step id ``'\n%`", {"step_id": "`'\n%"}, id="odd-characters"),
    pytest.param([""], "w", "unknown step id ``", {"step_id": ""}, id="empty"),
    pytest.param([], "no-such", "unknown workflow `no-such`", {}, id="workflow"),
    pytest.param([], "", "unknown workflow ``", {}, id="workflow-without-a-name"),
]


@pytest.mark.parametrize(("step_ids", "name", "expected", "fields"), UNKNOWN)
@pytest.mark.usefixtures("steps")
async def test_unknown(
    serve: Serve, raw_call: RawCall, step_ids: list[str], name: str, expected: str, fields: dict[str, str]
) -> None:
    """An id that is not registered is NOT_FOUND and named, before the input is looked at."""
    envelope = asked(*step_ids, name=name, input_json=b"not JSON")
    code, text, info, _ = await refused(raw_call, await serve(), envelope)
    assert (code, text, info.reason, dict(info.metadata)) == (Code.NOT_FOUND, expected, "UNKNOWN_STEP", fields)


async def test_a_long_unknown_id_is_cut(serve: Serve, raw_call: RawCall) -> None:
    """A step id of 20 KB arrives as what it is, cut, and not as another error."""
    code, text, _, _ = await refused(raw_call, await serve(), asked("x" * 20_000))
    assert code is Code.NOT_FOUND
    assert text == "unknown step id `" + "x" * (512 - 17 - 3) + "..."


async def test_the_same_step_twice(serve: Serve, raw_call: RawCall, registry: Registry, steps: None) -> None:
    """A step named twice is the caller's mistake, and nothing runs."""
    code, _, info, _ = await refused(raw_call, await serve(), asked(ECHO, ECHO))
    assert (code, info.reason) == (Code.INVALID_ARGUMENT, "ENCODE")


BAD_JSON = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="cut-short"),
    pytest.param(b"NaN", id="NaN"),
    pytest.param(b"1e400", id="beyond-a-double"),
    pytest.param(b"18446744073709551616", id="beyond-64-bits"),
    pytest.param(b'"\\ud800"', id="a-lone-surrogate"),
    pytest.param(b"\xef\xbb\xbf1", id="a-byte-order-mark"),
    pytest.param(b'"\xff"', id="not-UTF-8"),
    pytest.param(b"[" * 200 + b"]" * 200, id="too-deep"),
    pytest.param(b"1 2", id="two-documents"),
]


@pytest.mark.parametrize("input_json", BAD_JSON)
@pytest.mark.usefixtures("steps")
async def test_input_that_is_not_json(serve: Serve, raw_call: RawCall, input_json: bytes) -> None:
    """Input that is not strict JSON is INVALID_ARGUMENT; the text says why."""
    code, text, info, _ = await refused(raw_call, await serve(), asked(ECHO, input_json=input_json))
    assert (code, info.reason) == (Code.INVALID_ARGUMENT, "ENCODE")
    assert re.fullmatch(r"invalid input JSON: [^\n]{5,200}", text)


FAILURES = [
    pytest.param("demo::fails", None, "workflow error: step 'demo::fails' failed: boom: é\nsecond line", id="a-step-raises"),
    pytest.param("demo::strays", None, "workflow error: no handler for event type: demo::Stray", id="nobody-accepts"),
    pytest.param(
        "demo::cancels_itself", None, "workflow error: step 'demo::cancels_itself' failed: CancelledError", id="cancels-itself"
    ),
    pytest.param("demo::waits", 1, "workflow timed out after 1s", id="deadline"),
    pytest.param("demo::waits", 0, "workflow timed out after 0s", id="no-time-at-all"),
]


@pytest.mark.parametrize(("step_id", "timeout_secs", "expected"), FAILURES)
@pytest.mark.usefixtures("steps")
async def test_failures(serve: Serve, raw_call: RawCall, step_id: str, timeout_secs: int | None, expected: str) -> None:
    """What goes wrong in the workflow is answered with OK and the error's text alone: no traceback, no result."""
    answer = await raw_call(await serve(), asked(step_id, timeout_secs=timeout_secs))
    text = expected.encode()
    assert answer == bytes.fromhex("0100 00 00 01") + bytes([len(text)]) + text


@pytest.mark.usefixtures("steps")
async def test_no_time_suffices_for_what_never_waits(serve: Serve, raw_call: RawCall) -> None:
    """With ``timeout_secs`` 0 what finishes without waiting succeeds."""
    assert await raw_call(await serve(), asked(ECHO, timeout_secs=0)) == HEX["V6"]


@pytest.mark.usefixtures("steps")
async def test_default_and_most(registry: Registry, raw_call: RawCall) -> None:
    """Without a timeout a run has the server's default, and above the server's most the most, to the millisecond."""
    async with peers(registry=registry, with_token=False) as pair, virtual_time() as clock:
        for number, (timeout_secs, secs) in enumerate(((None, 300), (2**64 - 1, 3600)), 1):
            call = asyncio.create_task(raw_call(pair.server, asked("demo::waits", timeout_secs=timeout_secs)))
            await pair.recorder.wait_for("demo::waits", number)
            await clock.advance(secs - 0.001)
            assert pair.server._invocations.in_progress == 1
            await clock.advance(0.001)
            assert SubWorkflowResponse.decode(await call).error == f"workflow timed out after {secs}s"


@pytest.mark.usefixtures("steps")
async def test_exact_milliseconds(serve: Serve, raw_call: RawCall) -> None:
    """Metadata carries the exact time, which counts where it is less than the envelope's whole seconds."""
    server = await serve()
    for milliseconds in ("50", "050"):
        answer = await raw_call(server, asked("demo::waits", timeout_secs=1), metadata=[("blazen-timeout-ms", milliseconds)])
        assert SubWorkflowResponse.decode(answer).error == "workflow timed out after 0.05s"


@pytest.mark.usefixtures("steps")
async def test_bad_metadata_of_ours(serve: Serve, raw_call: RawCall) -> None:
    """Metadata of ours that is malformed or doubled is INVALID_ARGUMENT; other metadata is nobody's business."""
    server = await serve()
    for pairs in (
        [("blazen-timeout-ms", "-1")],
        [("blazen-invocation-id", "a b")],
        [("blazen-client-node-id", "../x")],
        [("blazen-invocation-id", "a"), ("blazen-invocation-id", "b")],
    ):
        code, text, info, _ = await refused(raw_call, server, asked(ECHO), metadata=pairs)
        assert (code, info.reason) == (Code.INVALID_ARGUMENT, "ENCODE"), text
    assert await raw_call(server, asked(ECHO), metadata=[("blazen-future", "1"), ("traceparent", "junk")]) == HEX["V6"]


@pytest.mark.usefixtures("steps")
async def test_over_the_runs_limit(serve: Serve, raw_call: RawCall) -> None:
    """Beyond ``max_runs``, where none may wait, a call is RESOURCE_EXHAUSTED, with google.rpc.RetryInfo."""
    server = await serve(settings=ServerSettings(max_runs=1, max_queued_runs=0, drain_secs=0, lame_duck_secs=0))
    first = asyncio.create_task(raw_call(server, asked("demo::waits", timeout_secs=1)))
    async with asyncio.timeout(10):
        while server._invocations.in_progress == 0:  # noqa: ASYNC110 - polled: the first call is on its way
            await asyncio.sleep(0.001)
    code, _, info, status = await refused(raw_call, server, asked(ECHO))
    assert (code, info.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    retry = RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    assert SubWorkflowResponse.decode(await first).error == "workflow timed out after 1s"
    assert await raw_call(server, asked(ECHO)) == HEX["V6"]


async def test_request_over_the_message_limit(serve: Serve, raw_call: RawCall) -> None:
    """A request over the limit is RESOURCE_EXHAUSTED with both sizes, by gRPC itself, before any handler."""
    server = await serve(settings=ServerSettings(max_message_bytes=1000, drain_secs=0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(server, message=b"x" * 1001)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert "(1001 vs. 1000)" in (caught.value.details() or "")


async def test_a_defect_tells_nothing(
    serve: Serve, raw_call: RawCall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of ours is INTERNAL without a word for the caller; the traceback goes to the peer's own log."""
    server = await serve()
    monkeypatch.setattr(server._invocations._resolution, "workflow", lambda *_: 1 / 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(server, asked(ECHO))
    assert (caught.value.code(), caught.value.details()) == (Code.INTERNAL, "internal error")
    assert "ZeroDivisionError" in caplog.text
