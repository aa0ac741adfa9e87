"""Nobody can hold the service up: bounds of time, of size and of number, over real connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from blazen_certs.errors import ServiceError
from blazen_certs.join import join
from blazen_certs.remote import ServiceAddress
from blazen_certs.service import CertificateService, ServiceSettings
from blazen_certs.service_issuer import ServiceIssuer

Start = Callable[..., Awaitable[Any]]
QUICK = ServiceSettings(look_secs=0.02, handshake_secs=0.5, request_secs=0.5)


async def test_plain_text_and_old_tls_are_not_spoken(start_service: Start) -> None:
    """TLS 1.3 or nothing."""
    service = await start_service(settings=QUICK)
    reader, writer = await asyncio.open_connection(service.address.host, service.address.port)
    writer.write(b"POST /v1/roots HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
    async with asyncio.timeout(30):
        assert b"HTTP" not in await _rest(reader)
    writer.close()
    context = unchecked()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await asyncio.open_connection(service.address.host, service.address.port, ssl=context)


@pytest.mark.parametrize("sent", [None, b"", b"POST /v1/roots HTTP/1.1\r\n"], ids=["no-handshake", "silent", "half-a-request"])
async def test_who_is_slow_is_cut_off(start_service: Start, sent: bytes | None) -> None:
    """A caller that never ends its handshake or its request is cut off, and others are served meanwhile."""
    service = await start_service(settings=QUICK)
    context = None if sent is None else unchecked()
    reader, writer = await asyncio.open_connection(service.address.host, service.address.port, ssl=context)
    writer.write(sent or b"")
    node = await service.join("analyst")
    await node.remote().renew(node.request())
    async with asyncio.timeout(30):
        assert await _rest(reader) == b""
    writer.close()


async def test_connections_are_bounded(start_service: Start) -> None:
    """One address opens so many connections and no more; when they are gone, it may again."""
    settings = replace(QUICK, max_connections_each=3, request_secs=120)
    service = await start_service(settings=settings)
    held = [await asyncio.open_connection(service.address.host, service.address.port, ssl=unchecked()) for _ in range(3)]
    for _, writer in held:
        writer.write(b"P")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(service.address.host, service.address.port, ssl=unchecked())
        assert await _rest(reader) == b""
        writer.close()
        for _, other in held:
            other.close()
        while True:
            try:
                await service.join("analyst")
                break
            except ServiceError:
                await asyncio.sleep(0.05)


BOUNDS = [
    pytest.param({"max_handshakes_each": 3}, ["127.0.0.1"] * 3, "127.0.0.1", id="of-one-address"),
    pytest.param({"max_handshakes": 3}, ["127.0.0.2"] * 2 + ["127.0.0.3"], "127.0.0.1", id="of-all"),
]


@pytest.mark.parametrize(("bound", "held_from", "one_more"), BOUNDS)
async def test_handshakes_are_bounded(start_service: Start, bound: dict[str, int], held_from: list[str], one_more: str) -> None:
    """So many connections without a handshake and no more, which is logged; when they are gone, nodes join again."""
    service = await start_service(settings=replace(QUICK, handshake_secs=120, **bound))
    address = (service.address.host, service.address.port)
    done = await asyncio.open_connection(*address, ssl=unchecked())  # its handshake is over, and it does not count
    held = [await asyncio.open_connection(*address, local_addr=(local, 0)) for local in held_from]
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*address, local_addr=(one_more, 0))
        assert await _rest(reader) == b""
        writer.close()
        told = await service.logged("refused")
        assert (told["from"], told["kind"], told["why"]) == (one_more, "Busy", "too many handshakes at once")
        for _, other in held:
            other.close()
        while True:
            try:
                await service.join("analyst")
                break
            except ServiceError:
                await asyncio.sleep(0.05)
    done[1].close()


async def test_leaving_ends_handshakes(start_service: Start) -> None:
    """A service ends at once, though a handshake may take two minutes."""
    service = await start_service()
    issuer = ServiceIssuer(service.authority, lifetime=timedelta(hours=1), log=lambda _: None)
    settings = replace(QUICK, handshake_secs=120)
    async with asyncio.timeout(30):
        async with CertificateService(issuer, lambda _: None, settings).serving("127.0.0.1", 0) as where:
            address = ServiceAddress.parse(where)
            held = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
        for reader, writer in held:
            assert await _rest(reader) == b""
            writer.close()


async def test_questions_are_bounded(start_service: Start) -> None:
    """Who asks for codes again and again is told to wait, and how long."""
    service = await start_service()
    wrong = replace(service.code("analyst"), secret="A" * 27)
    kinds = []
    for _ in range(11):
        with pytest.raises(ServiceError) as caught:
            await join(service.address, wrong, service.directory / "analyst")
        kinds.append(caught.value.kind)
    assert kinds == ["Code"] * 10 + ["Busy"]
    assert "wait" in str(caught.value)


async def test_unknown_paths_and_large_bodies(start_service: Start) -> None:
    """Each gets its status, and a line in the log."""
    service = await start_service()
    assert (await ask(service.address, "/v1/keys", b"{}"))[0] == 404
    assert (await ask(service.address, "/v1/join", b"{}"))[0] == 400
    assert (await ask(service.address, "/v1/join", b" " * 70_000))[0] == 413
    assert [line["kind"] for line in service.of("refused")] == ["NotFound", "Malformed", "Malformed"]


def unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def ask(address: ServiceAddress, path: str, body: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=unchecked())
    writer.write(f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await _rest(reader)
    writer.close()
    return int(answer.split()[1]), answer


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except OSError:
        return b""
