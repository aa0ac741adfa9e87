"""One table between errors and statuses: each error of ours survives the way there and back, others are read by their code."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc.aio import AioRpcError, Metadata

from blazen_peer.errors import (
    BlazenError,
    EncodeError,
    EnvelopeVersionError,
    InvocationConflictError,
    InvocationNotFoundError,
    OtherProcessError,
    OverloadedError,
    PeerError,
    PermissionDeniedError,
    RefNotFoundError,
    TlsError,
    TransportError,
    UnauthenticatedError,
    UnknownStepError,
    WorkflowError,
)
from blazen_peer.transport.status import DETAILS_KEY, raised_by, refusal_of

Code = grpc.StatusCode


def rpc_error(code: Code, text: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> AioRpcError:
    """A failed RPC as grpc.aio raises it."""
    return AioRpcError(code, Metadata(), Metadata(*trailing), details=text)


ROUND_TRIPS = [
    pytest.param(EncodeError("postcard decode failed: unexpected end"), Code.INVALID_ARGUMENT, id="encode"),
    pytest.param(EncodeError("too large", 10, 5), Code.RESOURCE_EXHAUSTED, id="encode-with-sizes"),
    pytest.param(EnvelopeVersionError(2, 1), Code.FAILED_PRECONDITION, id="version"),
    pytest.param(UnknownStepError("unknown step id `x`", "x"), Code.NOT_FOUND, id="step"),
    pytest.param(RefNotFoundError("session ref u not found"), Code.NOT_FOUND, id="ref"),
    pytest.param(UnauthenticatedError("no"), Code.UNAUTHENTICATED, id="unauthenticated"),
    pytest.param(PermissionDeniedError("no"), Code.PERMISSION_DENIED, id="permission"),
    pytest.param(OverloadedError("busy", 1.5), Code.RESOURCE_EXHAUSTED, id="overloaded"),
    pytest.param(OverloadedError("busy"), Code.RESOURCE_EXHAUSTED, id="overloaded-without-a-time"),
    pytest.param(InvocationConflictError("used"), Code.ALREADY_EXISTS, id="conflict"),
    pytest.param(InvocationNotFoundError("no such call"), Code.NOT_FOUND, id="invocation-not-found"),
    pytest.param(OtherProcessError("another process", "0123"), Code.UNAVAILABLE, id="another-process"),
    pytest.param(TransportError("going away", may_have_run=False), Code.UNAVAILABLE, id="draining"),
]


@pytest.mark.parametrize(("error", "code"), ROUND_TRIPS)
def test_there_and_back(error: BlazenError, code: Code) -> None:
    """The caller gets the same class with the same fields, from the details and not from the sentence."""
    refusal = refusal_of(error)
    assert refusal.code is code
    back = raised_by(rpc_error(refusal.code, refusal.text, refusal.trailing_metadata))
    assert type(back) is type(error)
    assert str(back) == str(error)
    fields = {name: value for name, value in vars(error).items() if name != "message"}
    assert {name: value for name, value in vars(back).items() if name != "message"} == fields


def test_every_refusal_carries_error_info() -> None:
    """A refusal has google.rpc.ErrorInfo of our domain, with the step's id where there is one."""
    refusal = refusal_of(UnknownStepError("unknown step id `x`", "x"))
    [(key, value)] = refusal.trailing_metadata
    info = ErrorInfo()
    assert key == DETAILS_KEY
    assert Status.FromString(value).details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("blazen.peer.v1", "UNKNOWN_STEP", {"step_id": "x"})


def test_a_long_text_is_cut() -> None:
    """A 20 KB step id does not become another error: texts end at 512 bytes, in whole characters."""
    refusal = refusal_of(UnknownStepError("é" * 20_000, "é" * 20_000))
    assert len(refusal.text.encode()) <= 512
    assert refusal.text.endswith("...")
    assert len(refusal.trailing_metadata[0][1]) < 2_000


def test_a_defect_tells_nothing() -> None:
    """What the table lacks goes out as INTERNAL without its text."""
    refusal = refusal_of(WorkflowError("a secret"))
    assert (refusal.code, refusal.text) == (Code.INTERNAL, "internal error")


ENVOY = "upstream connect error or disconnect/reset before headers. "
BY_CODE = [
    pytest.param(
        Code.UNAVAILABLE,
        "failed to connect to all addresses; last error: Connection refused",
        TransportError,
        False,
        id="refused",
    ),
    pytest.param(Code.UNAVAILABLE, "DNS resolution failed for x", TransportError, False, id="dns"),
    pytest.param(
        Code.UNAVAILABLE,
        "errors resolving x:1: [field:hostname lookup error:address lookup failed for x:1: Domain name not found]",
        TransportError,
        False,
        id="dns-of-newer-grpc",
    ),
    pytest.param(Code.UNAVAILABLE, "Socket closed", TransportError, True, id="broke-off"),
    pytest.param(Code.UNAVAILABLE, ENVOY + "reset reason: connection termination", TransportError, True, id="envoy-broke-off"),
    pytest.param(
        Code.UNAVAILABLE,
        ENVOY + "reset reason: remote connection failure, transport failure reason: delayed connect error: Connection refused",
        TransportError,
        False,
        id="envoy-never-connected",
    ),
    pytest.param(Code.UNAVAILABLE, "no healthy upstream", TransportError, False, id="envoy-no-host"),
    pytest.param(
        Code.UNAVAILABLE,
        ENVOY + "reset reason: remote connection failure, transport failure reason: TLS_error:|268435581:SSL routines:"
        "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:TLS_error_end",
        TlsError,
        False,
        id="envoy-tls",
    ),
    pytest.param(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", TransportError, True, id="deadline"),
    pytest.param(
        Code.INTERNAL,
        "Stream removed (Received RST_STREAM with error code 2 (RST_STREAM))",
        TransportError,
        True,
        id="stream-cut-in-the-middle",
    ),
]


@pytest.mark.parametrize(("code", "text", "error_type", "may_have_run"), BY_CODE)
def test_transport(code: Code, text: str, error_type: type[TransportError], may_have_run: bool) -> None:
    """Without details of ours: whether anything may have run is told by what gRPC and Envoy write, and True in doubt."""
    error = raised_by(rpc_error(code, text))
    assert type(error) is error_type
    assert isinstance(error, TransportError)
    assert error.may_have_run is may_have_run


OTHERS = [
    pytest.param(Code.NOT_FOUND, UnknownStepError, "UnknownStep", id="not-found"),
    pytest.param(Code.FAILED_PRECONDITION, EnvelopeVersionError, "EnvelopeVersion", id="failed-precondition"),
    pytest.param(Code.INVALID_ARGUMENT, EncodeError, "Encode", id="invalid-argument"),
    pytest.param(Code.UNAUTHENTICATED, UnauthenticatedError, "Unauthenticated", id="unauthenticated"),
    pytest.param(Code.PERMISSION_DENIED, PermissionDeniedError, "PermissionDenied", id="permission-denied"),
    pytest.param(Code.RESOURCE_EXHAUSTED, OverloadedError, "Overloaded", id="resource-exhausted"),
    pytest.param(Code.ALREADY_EXISTS, InvocationConflictError, "InvocationConflict", id="already-exists"),
    pytest.param(Code.UNIMPLEMENTED, PeerError, "Unsupported", id="unimplemented"),
    pytest.param(Code.INTERNAL, PeerError, "Protocol", id="internal"),
    pytest.param(Code.UNKNOWN, PeerError, "Protocol", id="unknown"),
    pytest.param(Code.CANCELLED, PeerError, "Protocol", id="cancelled"),
    pytest.param(Code.DATA_LOSS, PeerError, "Protocol", id="any-other"),
]


@pytest.mark.parametrize(("code", "error_type", "kind"), OTHERS)
def test_by_code_alone(code: Code, error_type: type[BlazenError], kind: str) -> None:
    """From a server that sends no details the status code decides."""
    error = raised_by(rpc_error(code, "some text"))
    assert (type(error), error.kind, str(error)) == (error_type, kind, "some text")


CLOSED = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"


@pytest.mark.parametrize("greeting_over_tls", [False, True])
def test_closed_while_connecting(greeting_over_tls: bool) -> None:
    """A server that closes a connection at once refused the certificate where TLS is spoken and it is the first call."""
    error = raised_by(rpc_error(Code.UNAVAILABLE, CLOSED), greeting_over_tls=greeting_over_tls)
    assert type(error) is (TlsError if greeting_over_tls else TransportError)
    assert error.may_have_run is False
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"
    error = raised_by(rpc_error(Code.UNAVAILABLE, refused), greeting_over_tls=greeting_over_tls)
    assert type(error) is TransportError


SIZES = [
    pytest.param(Code.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger than max (70 vs. 64)", id="grpcio"),
    pytest.param(
        Code.OUT_OF_RANGE, "Error, decoded message length too large: found 70 bytes, the limit is: 64 bytes", id="tonic"
    ),
]


@pytest.mark.parametrize(("code", "text"), SIZES)
def test_message_over_the_limit(code: Code, text: str) -> None:
    """A message over a limit is an EncodeError with the size and the limit."""
    error = raised_by(rpc_error(code, text))
    assert isinstance(error, EncodeError)
    assert (error.size_bytes, error.limit_bytes) == (70, 64)


GARBAGE = [
    pytest.param(b"\xff\xff\xff", id="not-a-status"),
    pytest.param(Status(code=5, message="x").SerializeToString(), id="no-details"),
    pytest.param(b"", id="empty"),
]


@pytest.mark.parametrize("value", GARBAGE)
def test_garbage_details(value: bytes) -> None:
    """Details that are not ours, or nothing at all, are passed over."""
    assert type(raised_by(rpc_error(Code.NOT_FOUND, "x", ((DETAILS_KEY, value),)))) is UnknownStepError


def test_an_unknown_reason_falls_back_on_the_code() -> None:
    """A newer peer's reason that we do not know is read by its status code."""
    status = Status(code=8, message="x")
    status.details.add().Pack(ErrorInfo(domain="blazen.peer.v1", reason="TOO_NEW"))
    assert (
        type(raised_by(rpc_error(Code.RESOURCE_EXHAUSTED, "x", ((DETAILS_KEY, status.SerializeToString()),))))
        is OverloadedError
    )
