"""Joining: the code goes to the service that made it and to nobody else, and what comes back is checked before it is used."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import Authority, remote, store
from blazen_certs.errors import CertificateError, ServiceError
from blazen_certs.join import join
from blazen_certs.remote import ServiceAddress
from blazen_certs.service_wire import Answer, Request, read_request, write_answer
from blazen_peer.errors import ValidationError

Start = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def impostor(
    certificate: Path, answer: Callable[[Request], dict[str, Any]], heard: list[Request]
) -> AsyncIterator[ServiceAddress]:
    """A server with the certificate of that directory, that answers as it likes and notes what it hears."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await read_request(reader))
            write_answer(writer, Answer(HTTPStatus.OK, answer(heard[-1])))
            await writer.drain()
        except (EOFError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield ServiceAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


def whispered(heard: list[Request]) -> str:
    return json.dumps([request.body for request in heard])


async def test_json_is_that_of_issue(start_service: Start, tmp_path: Path, run: Any) -> None:
    """``join --json`` shows the identity with the fields of ``issue --json``, and the files that it names are there."""
    service = await start_service()
    (tmp_path / "code").write_text(service.code("analyst").text())
    arguments = ("join", str(service.address), "--code-file", "code", "--dir", "node", "--json")
    joined = json.loads((await asyncio.to_thread(run, *arguments)).out)
    issued = json.loads(run("issue", "intake", "--dir", str(service.authority.directory), "--json").out)
    assert list(joined) == list(issued)
    assert (joined["node"], joined["spiffe_id"], joined["version"]) == ("analyst", "spiffe://mesh.test/peer/analyst", 1)
    assert all((tmp_path / joined[name]).is_file() for name in ("certificate", "key", "bundle", "crl"))


async def test_another_mesh_is_refused(start_service: Start, tmp_path: Path) -> None:
    """A service of another CA, that says so: its root is not the code's."""
    service = await start_service()
    other = await start_service(authority=Authority.create(tmp_path / "other", "mesh.test"))
    code = service.code("analyst")
    with pytest.raises(ServiceError, match="its root is another") as caught:
        await join(other.address, code, tmp_path / "node")
    assert caught.value.kind == "Untrusted"
    assert not (tmp_path / "node").exists()
    assert not other.of("refused")
    assert (await join(service.address, code, tmp_path / "node")).version == 1  # it was not told to anybody


async def test_a_man_in_the_middle_with_the_right_root_is_refused(start_service: Start, tmp_path: Path) -> None:
    """Who hands out the true root, but has a certificate of a CA of his own, is not told the code."""
    service = await start_service()
    true_root = service.authority.trust().bundle_pem.decode()
    evil = Authority.create(tmp_path / "evil", "mesh.test").issue("x", dns_names=["blazen-certs.mesh.test"])
    heard: list[Request] = []
    code = service.code("analyst")
    async with impostor(evil.path / "current", lambda _: {"roots": true_root}, heard) as address:
        with pytest.raises(ServiceError, match="not the certificate service of this mesh") as caught:
            await join(address, code, tmp_path / "node")
    assert caught.value.kind == "Untrusted"
    assert [request.path for request in heard] == ["/v1/roots"]
    assert code.secret not in whispered(heard)


async def test_a_captured_node_is_refused(start_service: Start, tmp_path: Path) -> None:
    """A node of the same mesh, with a good certificate of its own, is not told the code either."""
    service = await start_service()
    node = service.authority.issue("intake")
    heard: list[Request] = []
    roots = service.authority.trust().bundle_pem.decode()
    async with impostor(node.path / "current", lambda _: {"roots": roots}, heard) as address:
        with pytest.raises(ServiceError, match="not the certificate service of this mesh"):
            await join(address, service.code("analyst"), tmp_path / "node")
    assert [request.path for request in heard] == ["/v1/roots"]


async def test_a_wrong_answer_is_not_published(start_service: Start, tmp_path: Path) -> None:
    """A certificate for another key or another name is refused, and nothing is written."""
    service = await start_service()
    own = store.node_directory(service.authority.directory, "blazen-certs.mesh.test")
    other = service.authority.issue("intake").path / "current"
    trust = service.authority.trust()
    files = {"version": "v", "bundle": trust.bundle_pem.decode(), "crl": trust.crl_pem.decode()}
    granted = {**files, "certificate": (other / "tls.crt").read_text(), "roots": files["bundle"]}
    async with impostor(own / "current", lambda _: granted, []) as address:
        with pytest.raises(CertificateError, match="name"):
            await join(address, service.code("analyst"), tmp_path / "node")
        with pytest.raises(CertificateError, match="key"):
            await join(address, service.code("intake"), tmp_path / "node")
    assert not list((tmp_path / "node").rglob("tls.crt"))


@pytest.mark.parametrize(
    "answer",
    [{}, {"roots": 5}, {"roots": ""}, {"roots": "-----BEGIN CERTIFICATE-----"}],
    ids=["none", "number", "empty", "cut"],
)
async def test_what_is_no_service(start_service: Start, tmp_path: Path, answer: dict[str, Any]) -> None:
    """Something else that speaks TLS is one error, whatever it says."""
    service = await start_service()
    evil = Authority.create(tmp_path / "evil", "mesh.test").issue("x")
    async with impostor(evil.path / "current", lambda _: answer, []) as address:
        with pytest.raises(ServiceError, match="is no certificate service"):
            await join(address, service.code("analyst"), tmp_path / "node")


async def test_nobody_there(start_service: Start, tmp_path: Path, free_port: int) -> None:
    """A closed port is said at once."""
    service = await start_service()
    with pytest.raises(ServiceError, match=f"127.0.0.1:{free_port} is not reached: Connection refused") as caught:
        await join(ServiceAddress("127.0.0.1", free_port), service.code("analyst"), tmp_path / "node")
    assert caught.value.kind == "Unreachable"


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["nothing", "something-else"])
async def test_a_server_that_speaks_no_tls(
    start_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    """Silence ends in time; another protocol is an error, too."""
    monkeypatch.setattr(remote, "CONNECT_SECS", 0.3)
    service = await start_service()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    address = ServiceAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    with pytest.raises(ServiceError, match="does not answer" if not says else "refused the connection"):
        await join(address, service.code("analyst"), tmp_path / "node")
    server.close()
    for writer in writers:
        writer.close()


async def test_joining_again_takes_the_old_identity_s_place(start_service: Start) -> None:
    """A node that was there joins with a new code into the next version."""
    service = await start_service()
    first, second = await service.join("analyst"), await service.join("analyst")
    assert (first.identity.version, second.identity.version) == (1, 2)
    assert (second.current / "tls.crt").read_bytes() != (first.identity.path / "v1" / "tls.crt").read_bytes()


ADDRESSES = [
    pytest.param("10.0.0.1:9443", ("10.0.0.1", 9443), id="ipv4"),
    pytest.param("[2001:db8::1]:9443", ("2001:db8::1", 9443), id="ipv6"),
    pytest.param("ca.mesh.example:1", ("ca.mesh.example", 1), id="name"),
]


@pytest.mark.parametrize(("text", "parts"), ADDRESSES)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    """An address is read, and written as it was."""
    address = ServiceAddress.parse(text)
    assert (address.host, address.port) == parts
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", ":9443", "10.0.0.1:0", "10.0.0.1:65536", "::1:9443", "[::1]", "a b:1", "https://x:1", "x:١"]
)
def test_what_is_no_address(text: str) -> None:
    """One line that says how it is written."""
    with pytest.raises(ValidationError, match="use HOST:PORT"):
        ServiceAddress.parse(text)
