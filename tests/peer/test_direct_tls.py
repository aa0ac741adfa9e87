"""Direct mutual TLS with real certificates: who is let in, as whom, and that certificates change without a failed call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority, IssuedIdentity
from blazen_certs.keys import load_issuing_key
from blazen_certs.pem import certificates_pem, private_key_pem
from blazen_peer import (
    ClientTls,
    Context,
    PeerClient,
    PeerServer,
    PermissionDeniedError,
    ServerTls,
    StartEvent,
    StopEvent,
    TlsError,
    TransportError,
    UnauthenticatedError,
    ValidationError,
    load_client_tls,
    load_server_tls,
)
from blazen_peer.auth.tokens import TokenKeys, mint
from blazen_peer.runtime.registry import Registry
from blazen_peer.transport.proto import control_pb2, peer_pb2
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

pytestmark = pytest.mark.usefixtures("way")  # each test by both ways of carrying a call

TOKEN, PROOF = "t0ken-" * 8, "pr00f-" * 8
SERVER_NAME = "node-b.mesh.test"
DENIED = "the call was refused: this caller is not allowed"
Paths = tuple[Path, Path, Path]


def paths(identity: IssuedIdentity) -> Paths:
    return identity.certificate_path, identity.key_path, identity.bundle_path


def client_tls(identity: IssuedIdentity, server_name: str | None = SERVER_NAME) -> ClientTls:
    return load_client_tls(*paths(identity), server_name=server_name)


@dataclass
class Mesh:
    """A CA with the identities of a server and a client, and another CA that calls itself the same."""

    ca: Authority
    other_ca: Authority
    server: IssuedIdentity
    client: IssuedIdentity

    @property
    def server_tls(self) -> ServerTls:
        """What node-b serves with."""
        return load_server_tls(*paths(self.server))

    def leaf(self, folder: Path, names: list[x509.GeneralName]) -> Paths:
        """Write a certificate of the CA's that ``blazen-certs`` would never issue: with these names."""
        folder.mkdir()
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        issuer = self.ca.trust().issuer()
        builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer.certificate.subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        leaf = builder.sign(load_issuing_key(issuer), hashes.SHA256())
        (folder / "cert.pem").write_bytes(certificates_pem([leaf, issuer.certificate]))
        (folder / "key.pem").write_bytes(private_key_pem(key))
        return folder / "cert.pem", folder / "key.pem", self.client.bundle_path


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    """The identities; the CAs were made a month ago, so that there can be expired ones."""
    month_ago = datetime.now(UTC) - timedelta(days=30)
    ca = Authority.create(tmp_path / "ca", "mesh.test", now=month_ago)
    other_ca = Authority.create(tmp_path / "other", "mesh.test", now=month_ago)
    return Mesh(ca, other_ca, ca.issue("node-b"), ca.issue("node-a"))


@pytest.fixture(autouse=True)
def steps(registry: Registry) -> None:
    """A step that says who called, and one that leaves a session ref."""

    @registry.step("tells")
    async def tells(event: StartEvent, ctx: Context) -> StopEvent:
        return StopEvent(result=str(ctx.caller))

    @registry.step("puts")
    async def puts(event: StartEvent, ctx: Context) -> StopEvent:
        ctx.put_ref(b"x" * 300_000, type_tag="t", serializer=bytes, lifetime="explicit_drop")
        return StopEvent(result="put")


@pytest.fixture
async def serve_tls(registry: Registry) -> Any:
    """A factory: a server of the test's registry that speaks TLS; drained at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(tls: ServerTls, address: str = "127.0.0.1:0", **options: Any) -> PeerServer:
            return await stack.enter_async_context(PeerServer("node-b", registry=registry, **options).serving(address, tls=tls))

        yield serve


async def who(client: PeerClient) -> str:
    return str((await client.run_remote_workflow("w", ["tells"], "null", 10)).result)


async def test_the_caller_is_who_its_certificate_says(mesh: Mesh, serve_tls: Any) -> None:
    """A call over mutual TLS runs, and its step sees the full SPIFFE id, whatever the client calls itself."""
    server = await serve_tls(mesh.server_tls)
    assert server.address.startswith("https://127.0.0.1:")
    async with await PeerClient.connect_async(server.address, "another", tls=client_tls(mesh.client)) as client:
        assert await who(client) == "spiffe://mesh.test/peer/node-a"
        assert (await client.describe()).node_id == "node-b"


async def test_from_a_thread(mesh: Mesh, serve_tls: Any) -> None:
    """The blocking client speaks TLS too."""
    server = await serve_tls(mesh.server_tls)

    def call() -> object:
        with PeerClient.connect(server.address, "node-a", tls=client_tls(mesh.client)) as client:
            return client.run_remote_workflow_blocking("w", ["tells"], "null", 10).result

    assert await asyncio.to_thread(call) == "spiffe://mesh.test/peer/node-a"


async def test_serve_blocking(mesh: Mesh, registry: Registry) -> None:
    """``serve_blocking`` and ``serve`` hand TLS on."""
    server = PeerServer("node-b", registry=registry)
    thread = threading.Thread(target=server.serve_blocking, args=("127.0.0.1:0",), kwargs={"tls": mesh.server_tls}, daemon=True)
    thread.start()
    address = ""
    async with asyncio.timeout(10):
        while not address:
            with contextlib.suppress(ValidationError):
                address = server.address
            await asyncio.sleep(0.01)
    async with await PeerClient.connect_async(address, "node-a", tls=client_tls(mesh.client)) as client:
        assert await who(client) == "spiffe://mesh.test/peer/node-a"


async def refused_at_connect(address: str, tls: ClientTls) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await PeerClient.connect_async(address, "node-a", tls=tls)
    assert caught.value.may_have_run is False
    assert "\n" not in str(caught.value)
    return caught.value


LONG_AGO = datetime.now(UTC) - timedelta(days=10)
CLIENTS: list[Any] = [
    pytest.param(lambda mesh: client_tls(mesh.other_ca.issue("node-a")), "CERTIFICATE_VERIFY_FAILED", id="both-of-another-ca"),
    pytest.param(
        lambda mesh: load_client_tls(
            *paths(mesh.other_ca.issue("node-a"))[:2], mesh.client.bundle_path, server_name=SERVER_NAME
        ),
        "does not accept this client's certificate",
        id="client-of-another-ca",
    ),
    pytest.param(
        lambda mesh: client_tls(mesh.ca.issue("node-a", now=LONG_AGO)), "does not accept this client's", id="client-expired"
    ),
    pytest.param(lambda mesh: client_tls(mesh.client, "node-c.mesh.test"), "Hostname Verification", id="another-server-name"),
    pytest.param(lambda mesh: client_tls(mesh.client, None), "Hostname Verification", id="no-server-name-and-an-ip-address"),
]


@pytest.mark.parametrize(("tls", "words"), CLIENTS)
async def test_handshake_refused(mesh: Mesh, serve_tls: Any, tls: Callable[[Mesh], ClientTls], words: str) -> None:
    """Whose certificate the other end does not believe gets a TlsError at connect, and nothing has run."""
    error = await refused_at_connect((await serve_tls(mesh.server_tls)).address, tls(mesh))
    assert isinstance(error, TlsError)
    assert words in str(error)


async def test_expired_server(mesh: Mesh, serve_tls: Any) -> None:
    """A server whose certificate has expired is not believed."""
    server = await serve_tls(load_server_tls(*paths(mesh.ca.issue("node-b", now=LONG_AGO))))
    error = await refused_at_connect(server.address, client_tls(mesh.client))
    assert isinstance(error, TlsError)
    assert "certificate has expired" in str(error)


async def test_tls_to_a_plain_server(mesh: Mesh, serve: Callable[..., Awaitable[PeerServer]]) -> None:
    """A client with tls= never falls back to plain text."""
    server = await serve()
    assert isinstance(await refused_at_connect(server.address.replace("http", "https"), client_tls(mesh.client)), TlsError)


async def test_without_a_certificate(mesh: Mesh, serve_tls: Any) -> None:
    """A client certificate is demanded: a client that trusts the server and shows none is not served; nor is a plain one."""
    server = await serve_tls(mesh.server_tls)
    target = server.address.removeprefix("https://")
    credentials = grpc.ssl_channel_credentials(mesh.client.bundle_path.read_bytes())
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))
    channels = [
        grpc.aio.secure_channel(target, credentials, options=options),
        grpc.aio.insecure_channel(target, options=options[1:]),
    ]
    for channel in channels:
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client)) as client:
        assert await who(client)  # it serves on


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        pytest.param(ssl.TLSVersion.TLSv1_3, "TLSv1.3", id="1.3"),
        pytest.param(ssl.TLSVersion.TLSv1_2, "TLSv1.2", id="1.2"),
        pytest.param(ssl.TLSVersion.TLSv1_1, None, id="not-1.1"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_protocol(mesh: Mesh, serve_tls: Any, version: ssl.TLSVersion, spoken: str | None) -> None:
    """TLS 1.3 is spoken with who has it, 1.2 with who has not, and nothing older."""
    host, _, port = (await serve_tls(mesh.server_tls)).address.removeprefix("https://").rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.load_verify_locations(mesh.client.bundle_path)
    context.load_cert_chain(mesh.client.certificate_path, mesh.client.key_path)
    context.set_alpn_protocols(["h2"])
    context.minimum_version, context.maximum_version = min(version, ssl.TLSVersion.TLSv1_2), version

    def shake() -> str | None:
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as wrapped,
        ):
            return wrapped.version()

    if spoken is None:
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shake)
    else:
        assert await asyncio.to_thread(shake) == spoken


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


NAMES: list[Any] = [
    pytest.param([], "holds 0 URIs", id="no-names"),
    pytest.param([x509.DNSName("node-a.mesh.test")], "holds 0 URIs", id="a-dns-name-alone"),
    pytest.param([x509.DNSName("spiffe://mesh.test/peer/node-a")], "holds 0 URIs", id="a-dns-name-that-looks-like-it"),
    pytest.param(
        [uri("spiffe://mesh.test/peer/node-a"), uri("spiffe://mesh.test/peer/node-b")], "holds 2 URIs", id="two-peers"
    ),
    pytest.param([uri("spiffe://mesh.test/peer/node-a"), uri("https://mesh.test/")], "holds 2 URIs", id="another-uri-beside"),
    pytest.param([uri("https://mesh.test/peer/node-a")], "names something else", id="no-spiffe"),
    pytest.param([uri("spiffe://mesh.test/node-a")], "names something else", id="no-peer"),
    pytest.param([uri("spiffe://mesh.test/peer/..")], "names something else", id="dot-dot"),
]


@pytest.mark.parametrize(("names", "reason"), NAMES)
async def test_certificate_that_names_no_peer(
    mesh: Mesh, serve_tls: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[x509.GeneralName], reason: str
) -> None:
    """A certificate of the right CA without exactly one SPIFFE id of a peer is nobody: PERMISSION_DENIED, why in the log."""
    tls = load_client_tls(*mesh.leaf(tmp_path / "leaf", names), server_name=SERVER_NAME)
    server = await serve_tls(mesh.server_tls)
    async with await PeerClient.connect_async(server.address, "node-a", tls=tls) as client:
        with pytest.raises(PermissionDeniedError, match=DENIED):
            await who(client)
    assert any(reason in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("node_id", ["node-a", "node-c"])
async def test_token_and_certificate(mesh: Mesh, serve_tls: Any, caplog: pytest.LogCaptureFixture, node_id: str) -> None:
    """Under require_identity a token and the certificate suffice; the token's node must be the certificate's."""
    server = await serve_tls(mesh.server_tls, token=TOKEN, require_identity=True)
    async with await PeerClient.connect_async(server.address, node_id, token=TOKEN, tls=client_tls(mesh.client)) as client:
        if node_id == "node-a":
            assert await who(client) == "spiffe://mesh.test/peer/node-a"
        else:
            with pytest.raises(PermissionDeniedError):
                await who(client)
            assert "the token is of node node-c, the certificate of spiffe://mesh.test/peer/node-a" in caplog.text


async def test_certificate_without_the_token(mesh: Mesh, serve_tls: Any) -> None:
    """A certificate does not replace the token where there is one."""
    server = await serve_tls(mesh.server_tls, token=TOKEN)
    async with await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client)) as client:
        with pytest.raises(UnauthenticatedError):
            await who(client)


FORGED: list[Any] = [
    pytest.param([("x-forwarded-client-cert", "URI=spiffe://mesh.test/peer/node-z")], id="identity"),
    pytest.param(
        [("x-forwarded-client-cert", "URI=spiffe://mesh.test/peer/node-z"), ("x-blazen-sidecar-proof", PROOF)], id="with-proof"
    ),
    pytest.param([("x-blazen-sidecar-proof", "wrong"), ("x-forwarded-client-cert", "garbage")] * 2, id="garbage-twice"),
]


def raw_channel(mesh: Mesh, server: PeerServer, files: Paths | None = None) -> grpc.Channel:
    cert, key, ca = (file.read_bytes() for file in files or paths(mesh.client))
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_http_proxy", 0))
    return grpc.secure_channel(
        server.address.removeprefix("https://"), grpc.ssl_channel_credentials(ca, key, cert), options=options
    )


@pytest.mark.parametrize("metadata", FORGED)
async def test_forged_headers(mesh: Mesh, serve_tls: Any, metadata: list[tuple[str, str]]) -> None:
    """What a TLS client sends as a sidecar's header or proof makes it nobody else."""
    server = await serve_tls(mesh.server_tls)
    envelope = SubWorkflowRequest("w", ("tells",), b"null").encode()
    message = peer_pb2.PostcardRequest(postcard_payload=envelope).SerializeToString()

    def call() -> bytes:
        with raw_channel(mesh, server) as channel:
            method = channel.unary_unary("/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow")
            return bytes(method(message, metadata=metadata, timeout=10))

    answer = SubWorkflowResponse.decode(peer_pb2.PostcardResponse.FromString(await asyncio.to_thread(call)).postcard_payload)
    assert answer.result_json == b'"spiffe://mesh.test/peer/node-a"'


METHODS = [
    *(
        f"/{service.full_name}/{method.name}"
        for file in (peer_pb2, control_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ),
    "/blazen.peer.v1.BlazenPeer/NoSuchMethod",
    "/no.such.Service/NoSuchMethod",
    "/grpc.health.v1.Health.NotQuite/Check",
    "/",
]
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


def called(channel: grpc.Channel, method: str, kind: str, metadata: list[tuple[str, str]]) -> tuple[grpc.StatusCode, str]:
    """Call with garbage, and with requests that do not end before the answer where *kind* streams them."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"garbage"
        over.wait(10)

    multi_callable: Any = getattr(channel, kind)(method)
    start = multi_callable.future if kind.endswith("unary") else multi_callable
    call = start(requests() if kind.startswith("stream") else b"garbage", timeout=5, metadata=metadata)
    try:
        return call.code(), call.details()
    finally:
        over.set()


async def test_every_method_and_kind(mesh: Mesh, serve_tls: Any, tmp_path: Path) -> None:
    """No method, known or not, called in any of the four ways, does anything for a caller whose certificate names no peer, or
    whose token is another node's, or who has none: each call is refused before its message is decoded."""
    nobody = mesh.leaf(tmp_path / "leaf", [x509.DNSName("node-a.mesh.test")])
    server = await serve_tls(mesh.server_tls, token=TOKEN)
    raw, borrowed = f"Bearer {TOKEN}", mint(TokenKeys.from_tokens(TOKEN), "node-c", now=time.time(), jti="j")
    needed = "the call was refused: a valid token is needed"
    callers: list[tuple[Paths, list[tuple[str, str]], tuple[grpc.StatusCode, str]]] = [
        (nobody, [("authorization", raw)], (grpc.StatusCode.PERMISSION_DENIED, DENIED)),
        (paths(mesh.client), [("authorization", f"Bearer {borrowed}")], (grpc.StatusCode.PERMISSION_DENIED, DENIED)),
        (paths(mesh.client), [], (grpc.StatusCode.UNAUTHENTICATED, needed)),
    ]

    def all_of_them() -> list[tuple[str, str, object]]:
        wrong: list[tuple[str, str, object]] = []
        for files, metadata, expected in callers:
            with raw_channel(mesh, server, files) as channel:
                ways = [(method, kind) for method in METHODS for kind in KINDS]
                wrong += [(*way, got) for way in ways if (got := called(channel, *way, metadata)) != expected]
        return wrong

    assert len(METHODS) > 10
    assert await asyncio.to_thread(all_of_them) == []


async def test_admitted_to_what_is_not_there(mesh: Mesh, serve_tls: Any) -> None:
    """Who is admitted gets to know that a method is not there."""
    server = await serve_tls(mesh.server_tls)

    def call() -> tuple[grpc.StatusCode, str]:
        with raw_channel(mesh, server) as channel:
            return called(channel, "/blazen.peer.v1.BlazenPeer/NoSuchMethod", "unary_unary", [])

    assert await asyncio.to_thread(call) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


async def test_rotation_under_load(
    mesh: Mesh, serve_tls: Any, registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates of both ends change while calls go on: none fails, the new ones are used, and a call in flight ends on the
    connection that it began on."""
    caplog.set_level(logging.INFO)
    entered, go = asyncio.Event(), asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        entered.set()
        await go.wait()
        return StopEvent(result="waited")

    server = await serve_tls(mesh.server_tls)
    done, stop = 0, False
    async with await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client)) as client:
        long = asyncio.create_task(client.run_remote_workflow("w", ["waits"], "null", 60))

        async def load() -> None:
            nonlocal done
            while not stop:
                assert await who(client) == "spiffe://mesh.test/peer/node-a"
                done += 1

        async def more_calls() -> None:
            until = done + 20
            while done < until and not any(task.done() for task in loads):  # noqa: ASYNC110 - polls, inside a deadline
                await asyncio.sleep(0.001)

        async with asyncio.timeout(60):
            await entered.wait()
            first = client._channels.here()
            loads = [asyncio.create_task(load()) for _ in range(4)]
            for _ in range(3):
                await more_calls()
                renewed = await asyncio.to_thread(mesh.ca.issue, "node-b")
                await more_calls()
                await asyncio.to_thread(mesh.ca.issue, "node-a")
                await more_calls()
                assert await served_serial(server, mesh) == renewed.certificate.serial_number
            stop = True
            await asyncio.gather(*loads)
            assert client._channels.here() is not first
            go.set()
            assert (await long).result == "waited"
    assert caplog.text.count("the TLS files changed") >= 6


async def served_serial(server: PeerServer, mesh: Mesh) -> int:
    """Return the serial number of the certificate that the server shows now."""
    host, _, port = server.address.removeprefix("https://").rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(mesh.client.bundle_path)
    context.load_cert_chain(mesh.client.certificate_path, mesh.client.key_path)
    context.set_alpn_protocols(["h2"])

    def shake() -> int:
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as wrapped,
        ):
            shown = wrapped.getpeercert(binary_form=True)
            assert shown is not None
            return x509.load_der_x509_certificate(shown).serial_number

    return await asyncio.to_thread(shake)


async def test_a_server_shows_what_its_files_hold(mesh: Mesh, serve_tls: Any) -> None:
    """Whoever connects after a change is shown the new certificate; without a restart."""
    server = await serve_tls(mesh.server_tls)
    assert await served_serial(server, mesh) == mesh.server.certificate.serial_number
    for _ in range(2):
        renewed = mesh.ca.issue("node-b")
        assert await served_serial(server, mesh) == renewed.certificate.serial_number


async def test_a_client_becomes_who_its_files_say(mesh: Mesh, serve_tls: Any, tmp_path: Path) -> None:
    """The next call after a change is made with the new certificate, on a new connection; the client object stays."""
    files = tuple(tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert, key, ca = files

    def be(identity: IssuedIdentity) -> None:
        for file, source in zip(files, paths(identity), strict=True):
            file.write_bytes(source.read_bytes())

    be(mesh.client)
    server = await serve_tls(mesh.server_tls)
    tls = load_client_tls(cert, key, ca, server_name=SERVER_NAME)
    async with await PeerClient.connect_async(server.address, "node-a", tls=tls) as client:
        assert await who(client) == "spiffe://mesh.test/peer/node-a"
        be(mesh.ca.issue("node-c"))
        assert await who(client) == "spiffe://mesh.test/peer/node-c"


async def test_half_replaced_files(mesh: Mesh, serve_tls: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the files do not fit together, or are gone, the last good ones stay, and the log says so once each time."""
    files = tuple(tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert, key, ca = files
    for file, source in zip(files, paths(mesh.client), strict=True):
        file.write_bytes(source.read_bytes())
    other = mesh.ca.issue("node-c")
    server = await serve_tls(mesh.server_tls)
    async with await PeerClient.connect_async(
        server.address, "node-a", tls=load_client_tls(cert, key, ca, server_name=SERVER_NAME)
    ) as client:
        cert.write_bytes(other.certificate_path.read_bytes())
        for _ in range(2):
            assert await who(client) == "spiffe://mesh.test/peer/node-a"
        key.unlink()
        for _ in range(2):
            assert await who(client) == "spiffe://mesh.test/peer/node-a"
        key.write_bytes(other.key_path.read_bytes())
        assert await who(client) == "spiffe://mesh.test/peer/node-c"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "is not that of the certificate in" in errors[0]
    assert f"cannot read the TLS file {key}: No such file or directory" in errors[1]


async def test_close_ends_calls_of_retired_connections(mesh: Mesh, serve_tls: Any, registry: Registry) -> None:
    """Closing a client also ends what it began before its certificate changed."""
    entered, go = asyncio.Event(), asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        entered.set()
        await go.wait()
        return StopEvent()

    server = await serve_tls(mesh.server_tls)
    client = await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client))
    call = asyncio.create_task(client.run_remote_workflow("w", ["waits"], "null", 30))
    async with asyncio.timeout(10):
        await entered.wait()
        mesh.ca.issue("node-a")
        assert await who(client)
        await client.aclose()
        with pytest.raises(TransportError, match="closed"):
            await call
    go.set()


async def test_calls_outlast_retired_connections(
    mesh: Mesh, serve_tls: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that takes longer than a connection is kept for after its certificate changed goes on all the same."""
    monkeypatch.setattr("blazen_peer.transport.channels.RETIRED_SECS", 0.1)
    entered, go = asyncio.Event(), asyncio.Event()

    @registry.step("waits")
    async def waits(event: StartEvent) -> StopEvent:
        entered.set()
        await go.wait()
        return StopEvent(result=1)

    server = await serve_tls(mesh.server_tls)
    async with await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client)) as client:
        call = asyncio.create_task(client.run_remote_workflow("w", ["waits"], "null", 30))
        async with asyncio.timeout(20):
            await entered.wait()
            mesh.ca.issue("node-a")
            assert await who(client)
            while client._channels._retired:  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.01)
            go.set()
            assert (await call).result == 1


GARBAGE = b"not PEM at all\n"
UNUSABLE: list[Any] = [
    pytest.param(0, GARBAGE, "holds no certificate in PEM", id="certificate-garbage"),
    pytest.param(1, GARBAGE, "holds no private key without a password in PEM", id="key-garbage"),
    pytest.param(2, GARBAGE, "holds no CA certificate in PEM", id="ca-garbage"),
    pytest.param(0, b"", "holds no certificate in PEM", id="certificate-empty"),
    pytest.param(
        2, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no CA certificate", id="ca-of-no-der"
    ),
    pytest.param(
        1, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key", id="key-of-no-der"
    ),
    pytest.param(0, b"\xff\x00" * 100, "holds no certificate", id="certificate-binary"),
    pytest.param(2, b"x" * ((1 << 20) + 1), "is over 1048576 bytes", id="ca-too-large"),
    pytest.param(0, None, "No such file or directory", id="certificate-missing"),
    pytest.param(1, None, "No such file or directory", id="key-missing"),
    pytest.param(2, None, "No such file or directory", id="ca-missing"),
]


@pytest.mark.parametrize("load", [load_server_tls, load_client_tls])
@pytest.mark.parametrize(("which", "content", "words"), UNUSABLE)
def test_refused_at_load(
    mesh: Mesh, tmp_path: Path, load: Callable[..., object], which: int, content: bytes | None, words: str
) -> None:
    """What is not there, or not such PEM, is refused when it is loaded, in one line that names the file and quotes nothing."""
    files = list(paths(mesh.client))
    files[which] = tmp_path / "wrong.pem"
    if content is not None:
        files[which].write_bytes(content)
    with pytest.raises(ValidationError) as caught:
        load(*files)
    assert words in str(caught.value)
    assert str(files[which]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("load", [load_server_tls, load_client_tls])
def test_key_of_another_certificate(mesh: Mesh, load: Callable[..., object]) -> None:
    """A key that is not the certificate's is refused when it is loaded; both files are named."""
    cert, key = mesh.client.certificate_path, mesh.server.key_path
    with pytest.raises(ValidationError) as caught:
        load(cert, key, mesh.client.bundle_path)
    assert str(caught.value) == (
        f"the key in {key} is not that of the certificate in {cert}: give the two that belong together"
    )


def test_no_key_in_a_repr(mesh: Mesh) -> None:
    """Neither value shows what its files hold."""
    shown = f"{mesh.server_tls!r} {client_tls(mesh.client)!r}"
    assert "BEGIN" not in shown
    assert str(mesh.server.key_path) in shown


@pytest.mark.parametrize("name", ["", "spiffe://mesh.test/peer/node-b", "a..b", "node b", "https://node-b", "x" * 254, "b\n"])
def test_not_a_server_name(mesh: Mesh, name: str) -> None:
    """A server name that gRPC cannot compare is refused, and the line says what to give."""
    with pytest.raises(ValidationError, match=r"give analyst\.mesh\.example"):
        client_tls(mesh.client, name)


async def test_addresses(mesh: Mesh, serve_tls: Any) -> None:
    """https:// without tls= and tls= with anything else are refused before anything is sent."""
    server = await serve_tls(mesh.server_tls)
    with pytest.raises(ValidationError, match=r"give tls=load_client_tls\(...\)"):
        await PeerClient.connect_async(server.address, "node-a")
    for address in (server.address.replace("https", "http"), server.address.removeprefix("https://"), "unix:/run/p.sock"):
        with pytest.raises(ValidationError, match="tls= needs an https:// address"):
            await PeerClient.connect_async(address, "node-a", tls=client_tls(mesh.client))


async def test_what_a_server_refuses(mesh: Mesh, serve_tls: Any, tmp_path: Path) -> None:
    """TLS and the sidecar's proof exclude each other, a Unix socket has no TLS, and identity needs one of them."""
    (tmp_path / "proof").write_text(PROOF)
    with pytest.raises(ValidationError, match="no sidecar vouches"):
        await serve_tls(mesh.server_tls, sidecar_proof_file=tmp_path / "proof")
    with pytest.raises(ValidationError, match="tls= needs host:port"):
        await serve_tls(mesh.server_tls, f"unix:{tmp_path}/s")
    with pytest.raises(ValidationError, match="require_identity demands the sidecar's proof or direct TLS"):
        await serve_tls(None, token=TOKEN, require_identity=True)


async def test_beyond_loopback(mesh: Mesh, serve_tls: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Certificates suffice to listen beyond loopback without a token; the log says who may call."""
    await serve_tls(mesh.server_tls, "0.0.0.0:0")
    assert "node-b has no token: whoever has a certificate of the CA may call it" in caplog.text


async def test_every_kind_of_answer(mesh: Mesh, serve_tls: Any) -> None:
    """Refs, their chunks, their list and their release, and streams go over direct TLS as over plain text."""
    server = await serve_tls(mesh.server_tls)
    async with (
        await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.client)) as client,
        await PeerClient.connect_async(server.address, "node-a", tls=client_tls(mesh.ca.issue("node-c"))) as other,
    ):
        result = await client.run_remote_workflow("w", ["puts"], "null", 10)
        [ref] = result.remote_refs.values()
        assert [held.ref.uuid for held in await client.list_refs()] == [ref.uuid]
        assert await other.list_refs() == ()
        assert b"".join([chunk async for chunk in client.deref_chunks(ref)]) == b"x" * 300_000
        stream = client.stream_remote_workflow("w", ["tells"], "null", 10)
        assert [event.event_type async for event in stream] == ["blazen::StopEvent"]
        assert stream.result.result == "spiffe://mesh.test/peer/node-a"
        assert await client.release(ref) is True
