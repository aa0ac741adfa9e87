"""The certificate service over real TLS: who gets what, who is refused, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority, store
from blazen_certs.errors import ServiceError
from blazen_certs.facts import dns_names_of, public_key_sha256, uris_of
from blazen_certs.issued import read_shown
from blazen_certs.issuing_renewal import coming_issuer
from blazen_certs.join import join
from blazen_certs.pem import load_certificates, load_crl, read_pem_file, split_pem
from blazen_certs.publish import publish_identity, read_material
from blazen_certs.remote import RemoteService, ServiceAddress, files_version
from blazen_certs.remote_request import request_pem
from blazen_certs.service import ServiceSettings
from blazen_certs.upkeep import revoke_node
from blazen_certs.verify import verify_identity
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

Start = Callable[..., Awaitable[Any]]


def leaf_of(pem: bytes) -> Any:
    return load_certificates(split_pem(pem, "the answer"))[0]


def version_of(node: Any) -> str:
    return files_version((node.current / "bundle.crt").read_bytes(), (node.current / "crl.pem").read_bytes())


async def test_join_makes_an_identity_that_verifies(start_service: Start) -> None:
    """The node's files hold all checks; the certificate carries the code's names."""
    service = await start_service()
    node = await service.join("analyst", dns_names=["a.test"])
    report = verify_identity(node.identity.path, at=datetime.now(UTC), node_id="analyst")
    assert report.ok, report.checks
    assert uris_of(node.identity.certificate) == ["spiffe://mesh.test/peer/analyst"]
    assert dns_names_of(node.identity.certificate) == ["a.test"]
    assert (node.current / "tls.key").stat().st_mode & 0o777 == 0o600


async def test_the_key_stays_on_its_node(start_service: Start) -> None:
    """No file of the CA's machine holds the node's key, and none of the node's machine a CA's."""
    service = await start_service()
    node = await service.join("analyst")
    key = (node.current / "tls.key").read_text().splitlines()[1]
    for path in service.authority.directory.rglob("*"):
        assert not path.is_file() or key not in path.read_text()
    assert sorted(path.name for path in (service.directory / "analyst").rglob("*.key")) == ["tls.key"]


async def test_each_certificate_has_an_audit_line(start_service: Start) -> None:
    """One line of JSON on disk for each certificate, in order, with who, when, how and from where."""
    service = await start_service()
    code = service.code("analyst")
    node = await service.join("analyst")
    renewed = await node.remote().renew(node.request())
    path = service.authority.directory / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["how"] for line in lines] == ["service", "join", "renew"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert lines[1]["serial"] == lines[2]["caller_serial"] == f"{node.identity.certificate.serial_number:x}"
    assert lines[2]["serial"] == f"{leaf_of(renewed.certificate).serial_number:x}"
    assert {line["spiffe_id"] for line in lines[1:]} == {"spiffe://mesh.test/peer/analyst"}
    assert lines[1]["from"] == "127.0.0.1"
    assert code.secret not in path.read_text()
    assert [line for line in service.events if line["event"] == "issued"] == lines


async def test_renewal_keeps_the_name(start_service: Start) -> None:
    """A new key and a new serial, the same URI and DNS names, whatever the caller would like."""
    service = await start_service()
    node = await service.join("analyst", dns_names=["a.test"])
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = leaf_of((await node.remote().renew(request_pem(node.peer, key))).certificate)
    assert (uris_of(leaf), dns_names_of(leaf)) == ([str(node.peer)], ["a.test"])
    assert public_key_sha256(leaf.public_key()) == public_key_sha256(key.public_key())
    assert leaf.serial_number != node.identity.certificate.serial_number


@pytest.mark.parametrize(
    "other",
    [
        PeerId("mesh.test", "intake"),
        PeerId("eu.mesh.test", "analyst"),
        PeerId("mesh.test", "blazen-certs.mesh.test"),
    ],
    ids=["node", "trust-domain", "service"],
)
async def test_renewal_of_another_name_is_refused(start_service: Start, other: PeerId) -> None:
    """Nobody renews anyone but itself, and the log says who tried."""
    service = await start_service()
    node = await service.join("analyst")
    await service.join("intake")
    with pytest.raises(ServiceError, match="may renew its own name only") as caught:
        await node.remote().renew(node.request(other))
    assert caught.value.kind == "Denied"
    assert service.of("refused")[-1]["caller"] == str(node.peer)
    assert len(service.of("issued")) == 3


async def test_a_stranger_gets_roots_and_nothing_else(start_service: Start) -> None:
    """Without a certificate neither renewal nor news."""
    service = await start_service()
    node = await service.join("analyst")
    roots = service.authority.trust().root_certificates
    stranger = RemoteService(service.address, "mesh.test", roots)
    for ask in (stranger.renew(node.request()), stranger.trust("", wait_secs=0)):
        with pytest.raises(ServiceError, match="show a certificate of this mesh"):
            await ask


async def test_a_certificate_of_another_mesh_is_refused(start_service: Start, tmp_path: Path) -> None:
    """The same name from another CA does not pass the handshake."""
    service = await start_service()
    node = await service.join("analyst")
    foreign = Authority.create(tmp_path / "foreign", "mesh.test").issue("analyst")
    with pytest.raises(ServiceError, match="refused the connection") as caught:
        await node.remote(foreign.path / "current").renew(node.request())
    assert caught.value.kind == "Handshake"


async def test_an_ended_certificate_is_refused(start_service: Start) -> None:
    """Who let its certificate end does not renew; it joins again."""
    service = await start_service()
    node = await service.join("analyst")
    past = datetime.now(UTC) - timedelta(seconds=30)
    ended = service.authority.issue("analyst", now=past, lifetime=timedelta(seconds=10))
    with pytest.raises(ServiceError, match="certificate expired"):
        await node.remote(ended.path / "current").renew(node.request())


async def test_a_revoked_node_gets_nothing(start_service: Start) -> None:
    """From the moment of its revocation, without any delay, a node is neither renewed nor told news."""
    service = await start_service(settings=ServiceSettings(look_secs=0.02))
    node = await service.join("analyst")
    service.revoke(node)
    with pytest.raises(ServiceError, match="is revoked") as caught:
        await node.remote().renew(node.request())
    assert caught.value.kind == "Revoked"
    async with asyncio.timeout(30):
        while True:  # the service looks at its store every 20 ms
            try:
                await node.remote().trust("", wait_secs=0)
            except ServiceError as error:
                assert error.kind == "Revoked"  # noqa: PT017
                break


async def test_a_code_from_before_a_revocation_does_not_bring_the_node_back(start_service: Start) -> None:
    """A code that was made before is worthless after; one that is made then is good."""
    service = await start_service()
    node = await service.join("analyst")
    early = service.code("analyst", now=datetime.now(UTC) - timedelta(seconds=2))
    service.revoke(node)
    with pytest.raises(ServiceError, match="was revoked after the code was made"):
        await join(service.address, early, service.directory / "again")
    later = service.code("analyst", now=datetime.now(UTC) + timedelta(seconds=2))
    assert (await join(service.address, later, service.directory / "again")).peer == node.peer


async def test_news_come_when_there_are_some(start_service: Start) -> None:
    """A node that waits for news hears of a revocation at once, long before its wait is over; without news it hears nothing."""
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    known = version_of(node)
    assert await node.remote().trust(known, wait_secs=0.1) is None
    waiting = asyncio.create_task(node.remote().trust(known, wait_secs=30))
    async with asyncio.timeout(20):
        await asyncio.sleep(0)
        service.revoke(other)
        news = await waiting
    assert news is not None
    assert f"{other.identity.certificate.serial_number:x}" in _revoked(news.crl)
    assert news.version == files_version(news.bundle, news.crl) != known


async def test_the_service_notes_what_each_node_has(start_service: Start) -> None:
    """When a node says that it has the newest, the store knows: rotating the root waits for it."""
    service = await start_service()
    node = await service.join("analyst")
    assert read_shown(service.authority.directory, "analyst") is None
    await node.remote().trust(version_of(node), wait_secs=0)
    shown = read_shown(service.authority.directory, "analyst")
    assert shown is not None
    assert shown.serial == node.identity.certificate.serial_number


async def test_regions_have_a_service_each(start_service: Start) -> None:
    """Each node meets the service under its own region's name, and gets its own region's certificate."""
    service = await start_service(regions=("eu", "us"))
    for region in ("eu", "us"):
        node = await service.join(f"{region}-node", region=region)
        assert node.peer.trust_domain == f"{region}.mesh.test"
        renewed = await node.remote().renew(node.request())
        assert uris_of(leaf_of(renewed.certificate)) == [str(node.peer)]


async def test_another_node_cannot_pass_for_the_service(start_service: Start, tmp_path: Path) -> None:
    """A server with a good certificate of the same mesh, but another name, is not told anything."""
    service = await start_service()
    node, captured = await service.join("analyst"), service.authority.issue("intake")
    heard: list[bytes] = []
    async with serving_tls(captured.path / "current", heard) as address:
        node.address = address
        with pytest.raises(ServiceError, match="not the certificate service of this mesh") as caught:
            await node.remote().renew(node.request())
    assert caught.value.kind == "Untrusted"
    assert heard in ([], [b""])


async def test_nobody_gets_the_service_s_name(start_service: Start) -> None:
    """Neither a code for it, nor the service's own certificate in other hands, brings another certificate of that name."""
    service = await start_service()
    with pytest.raises(ServiceError, match="is not to be had here"):
        await service.join("blazen-certs.mesh.test")
    node = await service.join("analyst")
    own = store.node_directory(service.authority.directory, "blazen-certs.mesh.test")
    with pytest.raises(ServiceError, match="is not to be had here") as caught:
        await node.remote(own / "current").renew(node.request(PeerId("mesh.test", "blazen-certs.mesh.test")))
    assert caught.value.kind == "Denied"


async def test_the_service_name_is_the_uri_too(start_service: Start) -> None:
    """A certificate with the service's DNS name, but another's URI, is not enough."""
    service = await start_service()
    node = await service.join("analyst")
    captured = service.authority.issue("intake", dns_names=["blazen-certs.mesh.test"])
    heard: list[bytes] = []
    async with serving_tls(captured.path / "current", heard) as address:
        node.address = address
        with pytest.raises(ServiceError, match=r"is not the certificate service: it is spiffe://mesh\.test/peer/intake"):
            await node.remote().renew(node.request())
    assert heard in ([], [b""])


async def test_a_stolen_certificate_of_the_service_is_replaced(start_service: Start) -> None:
    """``revoke`` of the service's own name: it makes itself a new one, and who shows the old one is told nothing."""
    service = await start_service(settings=ServiceSettings(look_secs=0.02, tend_secs=0.05))
    node = await service.join("analyst")
    own = store.node_directory(service.authority.directory, "blazen-certs.mesh.test")
    stolen = shutil.copytree(own / "v1", service.directory / "stolen")
    revoke_node(service.authority, "blazen-certs.mesh.test", now=datetime.now(UTC))
    async with asyncio.timeout(30):
        while (news := await node.remote().trust(version_of(node), wait_secs=1)) is None:
            pass
        publish_identity(
            node.identity.path,
            read_material(node.identity.path).beside(bundle_pem=news.bundle, crl_pem=news.crl),
            node_id="analyst",
            trust_domain="mesh.test",
            now=datetime.now(UTC),
        )
        while await asyncio.to_thread(service_serial, service.address) == str(
            leaf_of((stolen / "tls.crt").read_bytes()).serial_number
        ):
            pass
    await node.remote().renew(node.request())
    heard: list[bytes] = []
    async with serving_tls(stolen, heard) as address:
        node.address = address
        with pytest.raises(ServiceError, match="own certificate is revoked"):
            await node.remote().renew(node.request())
    assert heard in ([], [b""])


async def test_the_service_renews_its_own_certificate(start_service: Start) -> None:
    """The service's certificate of a few seconds is replaced in time, and the next caller sees the new one."""
    service = await start_service(lifetime=timedelta(seconds=3), settings=ServiceSettings(look_secs=0.02, tend_secs=0.05))
    first = await asyncio.to_thread(service_serial, service.address)
    async with asyncio.timeout(30):
        while await asyncio.to_thread(service_serial, service.address) == first:
            pass
    assert [line["how"] for line in service.of("issued")][:2] == ["service", "service"]


async def test_the_service_renews_issuing_cas(start_service: Start, tmp_path: Path) -> None:
    """An issuing CA that is due gets a successor, whose list the nodes are told of, with nothing else beside the service."""
    authority = Authority.create(tmp_path / "ca", "mesh.test", now=datetime.now(UTC) - timedelta(days=70))
    service = await start_service(authority=authority)
    node = await service.join("analyst")
    coming = coming_issuer(authority.trust(), "mesh")
    assert coming is not None
    assert coming.certificate.subject in [load_crl(block).issuer for block in read_pem_file(node.current / "crl.pem")]
    assert [event["region"] for event in service.of("issuing-prepared") + service.of("issuing-activated")] == ["mesh"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(Path.unlink, "run blazen-certs renew --issuing, before", id="missed"),
        pytest.param(lambda path: path.write_bytes(b"damaged"), "root.key", id="damaged"),
    ],
)
async def test_a_root_key_that_is_no_use_is_said(start_service: Start, tmp_path: Path, damage: Any, said: str) -> None:
    """Where a due issuing CA cannot be renewed, the log says once why, and the service starts and goes on."""
    authority = Authority.create(tmp_path / "ca", "mesh.test", now=datetime.now(UTC) - timedelta(days=70))
    damage(authority.directory / "root" / "v1" / "root.key")
    service = await start_service(authority=authority, settings=ServiceSettings(look_secs=0.02, tend_secs=0.02))
    await service.join("analyst")
    await service.join("gpu")
    (event,) = service.of("issuing-failed")
    assert said in event["detail"]


async def test_a_store_that_breaks_is_said_and_survived(start_service: Start) -> None:
    """While a list cannot be read the service says so once, and serves what it read last; afterwards it goes on."""
    service = await start_service()
    node = await service.join("analyst")
    path = next(service.authority.directory.glob("issuing/mesh/v*/crl.pem"))
    good = path.read_bytes()
    store.replace_file(path, b"broken")
    async with asyncio.timeout(30):
        await service.logged("problem")
    assert await node.remote().trust("", wait_secs=0) is not None
    with pytest.raises(ServiceError, match="its log says why"):
        await node.remote().renew(node.request())
    store.replace_file(path, good)
    await node.remote().renew(node.request())
    assert len([line for line in service.of("problem") if "path" not in line]) == 1


async def test_an_address_in_use_is_said(start_service: Start) -> None:
    """One line names the address."""
    service = await start_service()
    with pytest.raises(
        ValidationError, match=f"cannot listen on 127.0.0.1 port {service.address.port}: Address already in use"
    ):
        await start_service(authority=service.authority, port=service.address.port)


async def test_leaving_ends_everything(start_service: Start, tmp_path: Path) -> None:
    """A service that ends does not wait for a node that waits for news; started anew, on the same port, it goes on."""
    from blazen_certs.service import CertificateService
    from blazen_certs.service_issuer import ServiceIssuer

    authority = Authority.create(tmp_path / "ca", "mesh.test")
    issuer = ServiceIssuer(authority, lifetime=timedelta(hours=1), log=lambda _: None)
    async with asyncio.timeout(20):
        async with CertificateService(issuer, lambda _: None).serving("127.0.0.1", 0) as where:
            first = await start_service(authority=authority, port=0)
            node = await first.join("analyst")
            node.address = ServiceAddress.parse(where)
            waiting = asyncio.create_task(node.remote().trust(version_of(node), wait_secs=30))
            await asyncio.sleep(0.2)
        with pytest.raises(ServiceError):
            await waiting
    again = await start_service(authority=authority, port=ServiceAddress.parse(where).port)
    node.address = again.address
    await node.remote().renew(node.request())


def serving_tls(identity: Path, heard: list[bytes]) -> Any:
    """Serve TLS with *identity*, and note what each caller says first."""
    from contextlib import asynccontextmanager

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity / "tls.crt", identity / "tls.key")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    @asynccontextmanager
    async def serving() -> Any:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        try:
            yield ServiceAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()

    return serving()


def service_serial(address: ServiceAddress) -> str:
    return str(
        load_certificates(split_pem(ssl.get_server_certificate((address.host, address.port)).encode(), "it"))[0].serial_number
    )


def _revoked(crl_pem: bytes) -> list[str]:
    from cryptography import x509

    return [f"{entry.serial_number:x}" for entry in x509.load_pem_x509_crl(crl_pem)]
