"""Who gets in by the token: every call comes through both sidecars with intake's certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from blazen_peer import PermissionDeniedError, UnauthenticatedError

pytestmark = [pytest.mark.envoy, pytest.mark.usefixtures("way")]  # by both ways of carrying a call
OTHER = "another-token-that-nobody-here-shares-987654"
Headers = Callable[[Any], list[tuple[str, str]]]


async def refused(remote: Any, headers: list[tuple[str, str]], kind: type[Exception], code: grpc.StatusCode) -> None:
    """Call with *headers* and see the call refused with no reason given, nothing executed and the reason in no answer."""
    with pytest.raises(kind) as caught:
        await remote.invoke(remote.message("demo::echo", 1), headers)
    assert caught.value.__cause__.code() is code
    assert str(caught.value).startswith("the call was refused: ")
    assert not remote.begun


ADMITTED = [
    pytest.param(lambda remote: [remote.bearer(remote.jwt())], id="jwt"),
    pytest.param(lambda remote: [remote.bearer()], id="the-token-itself"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt(age_secs=85))], id="within-the-leeway"),
]
REFUSED = [
    pytest.param(lambda remote: [], id="none"),
    pytest.param(lambda remote: [("authorization", "")], id="empty"),
    pytest.param(lambda remote: [remote.bearer(OTHER)], id="another-token"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt(token=OTHER))], id="signed-with-another-token"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt(age_secs=95))], id="expired"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt(age_secs=-60))], id="of-the-future"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt())] * 2, id="twice-the-same"),
    pytest.param(lambda remote: [remote.bearer(remote.jwt()), remote.bearer(OTHER)], id="good-then-bad"),
    pytest.param(lambda remote: [remote.bearer(OTHER), remote.bearer(remote.jwt())], id="bad-then-good"),
    pytest.param(lambda remote: [("authorization", f"Basic {remote.jwt()}")], id="another-scheme"),
]


@pytest.mark.parametrize("headers", ADMITTED)
async def test_admitted(remote: Any, headers: Headers) -> None:
    """A JWT in force and the shared token itself get in, as the certificate's node."""
    answer = await remote.invoke(remote.message("demo::caller"), headers(remote))
    assert answer.result_json == b'"spiffe://mesh.test/peer/intake"'
    assert remote.begun == {"demo::caller": 1}


@pytest.mark.parametrize("headers", REFUSED)
async def test_refused(remote: Any, headers: Headers) -> None:
    """Anything but exactly one good ``authorization`` is UNAUTHENTICATED, and nothing is executed."""
    await refused(remote, headers(remote), UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
@pytest.mark.parametrize(
    "method",
    [
        "blazen.peer.v1.BlazenPeer/InvokeSubWorkflow",
        "blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents",
        "no.such.Service/Method",  # which its sidecar refuses, since no flow opens it
    ],
)
async def test_every_method_is_behind_the_gate(remote: Any, method: str, kind: str) -> None:
    """Without a token every method is refused, served or not, unary or streaming: nobody learns what there is."""

    async def messages() -> AsyncIterator[bytes]:
        yield remote.message("demo::echo", 1)

    async with grpc.aio.insecure_channel(remote.egress.removeprefix("http://")) as channel:
        request = remote.message("demo::echo", 1) if kind.startswith("unary") else messages()
        call = getattr(channel, kind)(f"/{method}")(request, timeout=10)
        if method == "no.such.Service/Method":
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        else:
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await call.details() == "the call was refused: a valid token is needed"
    assert not remote.begun


async def test_jwt_of_another_node(remote: Any) -> None:
    """A good JWT of another node than the certificate's is PERMISSION_DENIED: a borrowed token is worth nothing."""
    headers = [remote.bearer(remote.jwt("archive"))]
    await refused(remote, headers, PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED)


async def test_clients_own_refusals(remote: Any) -> None:
    """Our own client raises the kind that fits: no token, a wrong one, and another node's name."""
    run = ("echo", ["demo::echo"], "null")
    with pytest.raises(UnauthenticatedError):
        await (await remote.connect(token=None)).run_remote_workflow(*run)
    with pytest.raises(UnauthenticatedError):
        await (await remote.connect(token=OTHER)).run_remote_workflow(*run)
    with pytest.raises(PermissionDeniedError):
        await (await remote.connect("archive")).run_remote_workflow(*run)
    assert not remote.begun
    await (await remote.connect()).run_remote_workflow(*run)
    assert remote.begun == {"demo::echo": 1}


async def test_reason_is_in_the_peers_log_alone(remote: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The peer's own log says why a call was refused, and holds no token."""
    expired = remote.jwt(age_secs=95)
    with pytest.raises(UnauthenticatedError) as caught:
        await remote.invoke(remote.message("demo::echo"), [remote.bearer(expired)])
    assert "expired" in caplog.text
    assert "expired" not in str(caught.value)
    assert expired not in caplog.text


async def test_rotation(start_remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's previous token is accepted beside the current one, from either kind of bearer; a third is not."""
    new, old = "the-new-token-of-this-mesh-0123456789abcdef", "the-old-token-of-this-mesh-0123456789abcdef"
    monkeypatch.setenv("BLAZEN_PEER_TOKEN", new)
    monkeypatch.setenv("BLAZEN_PEER_TOKEN_PREVIOUS", old)
    remote = await start_remote(server={"token": None})
    monkeypatch.delenv("BLAZEN_PEER_TOKEN_PREVIOUS")
    for token in (new, old):
        client = await remote.connect(token=token)
        assert (await client.run_remote_workflow("echo", ["demo::echo"], "1")).result == 1
        assert (await remote.invoke(remote.message("demo::echo", 1), [remote.bearer(token)])).result_json == b"1"
    from_environment = await remote.connect(token=None)
    assert (await from_environment.run_remote_workflow("echo", ["demo::echo"], "1")).result == 1
    with pytest.raises(UnauthenticatedError):
        await (await remote.connect(token=OTHER)).run_remote_workflow("echo", ["demo::echo"], "1")
    assert remote.begun == {"demo::echo": 5}


async def test_injected_token(start_remote: Any) -> None:
    """A caller that can send no token gets in by an egress port that injects it, as its sidecar's node."""
    remote = await start_remote(inject=[("intake", "analyst")], token="the-shared-token-of-this-mesh-0123456789")
    assert (await remote.invoke(remote.message("demo::caller"))).result_json == b'"spiffe://mesh.test/peer/intake"'
    assert remote.begun == {"demo::caller": 1}
