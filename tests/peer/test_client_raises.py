"""What a client raises, row by row of the wire's table, against servers that answer anything; no bare gRPC error escapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from blazen_peer import (
    BlazenError,
    EncodeError,
    EnvelopeVersionError,
    InvocationConflictError,
    OverloadedError,
    PeerClient,
    PeerError,
    PermissionDeniedError,
    RefNotFoundError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    WorkflowError,
)
from blazen_peer.transport.proto import peer_pb2
from blazen_peer.transport.status import refusal_of
from blazen_peer.wire import SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

Connect = Callable[..., Awaitable[PeerClient]]
RawPeers = Callable[..., Awaitable[Any]]
ServicerContext = grpc.aio.ServicerContext[bytes, bytes]
Code = grpc.StatusCode


def saying(code: Code, text: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> Callable[..., Awaitable[bytes]]:
    """A handler that ends each call with a status."""

    async def answer(_: bytes, context: ServicerContext) -> bytes:
        await context.abort(code, text, trailing)
        raise AssertionError

    return answer


def sending(message: bytes) -> Callable[..., Awaitable[bytes]]:
    """A handler that answers each call with the same bytes."""

    async def answer(_: bytes, __: ServicerContext) -> bytes:
        return message

    return answer


def sending_envelope(envelope: bytes) -> Callable[..., Awaitable[bytes]]:
    """A handler that answers each call with the same envelope."""
    return sending(peer_pb2.PostcardResponse(postcard_payload=envelope).SerializeToString())


async def hang(_: bytes, __: ServicerContext) -> bytes:
    """A handler that never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def raised(client: PeerClient, timeout_secs: float | None = 5) -> BlazenError:
    """Make a call that fails; return what it raises, which must be an error of ours."""
    with pytest.raises(BlazenError) as caught:
        await client.run_remote_workflow("w", ["s"], "null", timeout_secs)
    return caught.value


BY_CODE: dict[Code, tuple[type[BlazenError], str]] = {
    Code.UNAVAILABLE: (TransportError, "Transport"),
    Code.DEADLINE_EXCEEDED: (TransportError, "Transport"),
    Code.NOT_FOUND: (UnknownStepError, "UnknownStep"),
    Code.FAILED_PRECONDITION: (EnvelopeVersionError, "EnvelopeVersion"),
    Code.INVALID_ARGUMENT: (EncodeError, "Encode"),
    Code.OUT_OF_RANGE: (EncodeError, "Encode"),
    Code.UNAUTHENTICATED: (UnauthenticatedError, "Unauthenticated"),
    Code.PERMISSION_DENIED: (PermissionDeniedError, "PermissionDenied"),
    Code.RESOURCE_EXHAUSTED: (OverloadedError, "Overloaded"),
    Code.ALREADY_EXISTS: (InvocationConflictError, "InvocationConflict"),
    Code.UNIMPLEMENTED: (PeerError, "Unsupported"),
    Code.INTERNAL: (PeerError, "Protocol"),
    Code.UNKNOWN: (PeerError, "Protocol"),
    Code.CANCELLED: (PeerError, "Protocol"),
    Code.ABORTED: (PeerError, "Protocol"),
    Code.DATA_LOSS: (PeerError, "Protocol"),
}
STATUSES = [code for code in Code if code is not Code.OK]


@pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
async def test_every_status(raw_peer: RawPeers, connect: Connect, code: Code) -> None:
    """Every status there is, sent without details, becomes one error of ours by its code alone, with the sentence as it was."""
    peer = await raw_peer(saying(code, "no such thing, 100 %"))
    error = await raised(await connect(peer.address))
    assert (type(error), error.kind) == BY_CODE[code]
    assert "no such thing, 100 %" in str(error)
    if type(error) is PeerError:
        assert error.status == code.name
    if isinstance(error, TransportError):
        assert error.may_have_run is True


WITH_DETAILS = [
    pytest.param(UnknownStepError("unknown step id `x`", "x"), id="step"),
    pytest.param(EnvelopeVersionError(7, 1), id="version"),
    pytest.param(EncodeError("invalid input JSON: odd"), id="encode"),
    pytest.param(RefNotFoundError("session ref u not found"), id="ref"),
    pytest.param(UnauthenticatedError("no"), id="unauthenticated"),
    pytest.param(PermissionDeniedError("no"), id="permission"),
    pytest.param(OverloadedError("busy", 1.5), id="overloaded"),
    pytest.param(InvocationConflictError("used"), id="conflict"),
    pytest.param(TransportError("going away", may_have_run=False), id="draining"),
]


@pytest.mark.parametrize("error", WITH_DETAILS)
async def test_details(raw_peer: RawPeers, connect: Connect, error: BlazenError) -> None:
    """With details the fields come from them; the sentence beside them is never parsed."""
    refusal = refusal_of(error)
    peer = await raw_peer(saying(refusal.code, "a sentence that tells nothing", refusal.trailing_metadata))
    back = await raised(await connect(peer.address))
    assert type(back) is type(error)
    assert {k: v for k, v in vars(back).items() if k != "message"} == {k: v for k, v in vars(error).items() if k != "message"}


async def test_tls(raw_peer: RawPeers, connect: Connect) -> None:
    """A certificate that the sidecar refused is a TlsError, which is a TransportError; nothing ran."""
    text = "upstream connect error: TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:TLS_error_end"
    error = await raised(await connect((await raw_peer(saying(Code.UNAVAILABLE, text))).address))
    assert (type(error), error.kind) == (TlsError, "Tls")
    assert isinstance(error, TransportError)
    assert error.may_have_run is False


GARBAGE = [
    pytest.param(sending(b"\xff\xff\xff"), id="no-protobuf"),
    pytest.param(sending(b""), id="nothing-at-all"),
    pytest.param(sending_envelope(b"\x01\xff"), id="cut-short"),
    pytest.param(sending_envelope(b"\x01\x00\x07"), id="an-option-tag-of-7"),
    pytest.param(sending_envelope(SubWorkflowResponse(result_json=b"{").encode()), id="a-result-that-is-not-JSON"),
    pytest.param(sending_envelope(SubWorkflowResponse(result_json=b"NaN").encode()), id="a-result-of-NaN"),
    pytest.param(sending_envelope(SubWorkflowResponse(result_json=b"\xff").encode()), id="a-result-that-is-not-UTF-8"),
    pytest.param(sending_envelope(SubWorkflowResponse(result_json=b"").encode()), id="an-empty-result"),
]


@pytest.mark.parametrize("answer", GARBAGE)
async def test_garbage_answers(raw_peer: RawPeers, connect: Connect, answer: Callable[..., Awaitable[bytes]]) -> None:
    """An answer that does not decode is an EncodeError of one line."""
    error = await raised(await connect((await raw_peer(answer)).address))
    assert type(error) is EncodeError
    assert "\n" not in str(error)


async def test_newer_answer(raw_peer: RawPeers, connect: Connect) -> None:
    """An answer of a newer version is told as such, whatever follows."""
    error = await raised(await connect((await raw_peer(sending_envelope(b"\x02\xff\xff"))).address))
    assert isinstance(error, EnvelopeVersionError)
    assert (error.got, error.supported) == (2, 1)


@pytest.mark.parametrize("text", ["", "workflow exploded", "workflow timed out after 3s"])
async def test_workflow_error(raw_peer: RawPeers, connect: Connect, text: str) -> None:
    """OK with ``error`` set, even to the empty text and beside a result, is a WorkflowError."""
    envelope = SubWorkflowResponse(result_json=b"1", error=text).encode()
    error = await raised(await connect((await raw_peer(sending_envelope(envelope))).address))
    assert type(error) is WorkflowError
    assert str(error) == text


async def test_neither_result_nor_error(raw_peer: RawPeers, connect: Connect) -> None:
    """An answer with neither is a fault of the peer's protocol."""
    error = await raised(await connect((await raw_peer(sending_envelope(SubWorkflowResponse().encode()))).address))
    assert (type(error), error.kind) == (PeerError, "Protocol")


async def test_blazens_own_peers_have_no_health(raw_peer: RawPeers, connect: Connect) -> None:
    """A peer without a health service counts as there; trailing bytes in its answer are its own affair."""
    envelope = SubWorkflowResponse(result_json=b'{"a":1}').encode() + b"\x00\x01"
    client = await connect((await raw_peer(sending_envelope(envelope), has_lanes=False)).address)
    result = await client.run_remote_workflow("w", ["s"], "null")
    assert (result.result, result.event.event_type, result.event.data_json) == ({"a": 1}, "blazen::StopEvent", '{"a":1}')


async def test_another_service_than_a_peer(raw_peer: RawPeers, connect: Connect) -> None:
    """A gRPC server that is no peer answers calls with UNIMPLEMENTED: kind "Unsupported"."""
    error = await raised(await connect((await raw_peer()).address))
    assert (type(error), error.kind, getattr(error, "status", None)) == (PeerError, "Unsupported", "UNIMPLEMENTED")


GREETINGS = [
    pytest.param(Code.UNAVAILABLE, TransportError, id="unavailable"),
    pytest.param(Code.PERMISSION_DENIED, PermissionDeniedError, id="a-sidecar-that-allows-no-flow"),
    pytest.param(Code.INTERNAL, PeerError, id="internal"),
]


@pytest.mark.parametrize(("code", "error_type"), GREETINGS)
async def test_refused_at_connect(raw_peer: RawPeers, connect: Connect, code: Code, error_type: type[BlazenError]) -> None:
    """A health check that is refused fails the connect with the error of its status."""
    with pytest.raises(error_type):
        await connect((await raw_peer(greet=saying(code, "no"))).address)


async def test_a_peer_that_hangs(raw_peer: RawPeers, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never answers is given up on at the RPC's own deadline, a little above the run's; it may have run."""
    monkeypatch.setattr("blazen_peer.client.MARGIN_SECS", 0.2)
    client = await connect((await raw_peer(hang)).address)
    began = time.monotonic()
    error = await raised(client, timeout_secs=0.1)
    assert isinstance(error, TransportError)
    assert error.may_have_run is True
    assert 0.25 < time.monotonic() - began < 3


async def test_a_peer_that_dies_in_a_call(raw_peer: RawPeers, connect: Connect) -> None:
    """A connection that breaks in the middle of a call: TransportError, and it may have run."""

    async def die(_: bytes, __: ServicerContext) -> bytes:
        begun.set()
        return await hang(_, __)

    begun = asyncio.Event()
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(die)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("blazen.peer.v1.BlazenPeer", {"InvokeSubWorkflow": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = await connect(f"http://127.0.0.1:{port}")
    call = asyncio.create_task(raised(client, timeout_secs=10))
    async with asyncio.timeout(10):
        await begun.wait()
        await server.stop(None)
        error = await call
    assert isinstance(error, BlazenError)
    assert type(error) is TransportError
    assert error.may_have_run is True
