"""A node's watch: renews in time, publishes news at once, outlives its service, and says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blazen_certs import remote_watch
from blazen_certs.errors import StoreError
from blazen_certs.pem import load_certificates, read_pem_file
from blazen_certs.publish import publish_identity, read_material
from blazen_certs.remote import ServiceAddress
from blazen_certs.remote_watch import RemoteWatch
from blazen_certs.rotation import advance_rotation
from blazen_certs.store import replace_file
from blazen_certs.verify import verify_identity

Start = Callable[..., Awaitable[Any]]
WAIT_SECS = 30


class Events(list[dict[str, Any]]):
    """What a watch told, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def tell(self, event: dict[str, Any]) -> None:
        self.append(event)
        self._more.set()

    async def wait(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait until *count* events of that name came, and return the last of them."""
        async with asyncio.timeout(WAIT_SECS):
            while len(found := [event for event in self if event["event"] == name]) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]


@asynccontextmanager
async def watching(node: Any, **options: Any) -> AsyncIterator[Events]:
    """Run a watch of *node* while entered."""
    events = Events()
    task = asyncio.create_task(RemoteWatch(node.address, node.identity.path, log=events.tell, **options).run())
    try:
        yield events
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def serial(node: Any) -> str:
    return f"{load_certificates(read_pem_file(node.current / 'tls.crt'))[0].serial_number:x}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits."""
    monkeypatch.setattr(remote_watch, "REFUSED_RETRY_SECS", 0.2)
    monkeypatch.setattr(remote_watch, "WAIT_SECS", 5.0)


async def test_renews_at_two_thirds_of_life(start_service: Start) -> None:
    """A leaf of 3 s is renewed after 1.8 to 2 s, again and again, with a new key each time; it is valid at every moment."""
    service = await start_service(lifetime=timedelta(seconds=3))
    node = await service.join("analyst")
    keys, ends = {(node.current / "tls.key").read_bytes()}, node.identity.certificate.not_valid_after_utc
    async with watching(node) as events:
        for count in (1, 2):
            told = await events.wait("renewed", count)
            assert datetime.now(UTC) < ends
            assert told["serial"] == serial(node)
            keys.add((node.current / "tls.key").read_bytes())
            ends = load_certificates(read_pem_file(node.current / "tls.crt"))[0].not_valid_after_utc
    assert len(keys) == 3
    assert verify_identity(node.identity.path, at=datetime.now(UTC), node_id="analyst").ok


async def test_a_revocation_arrives_at_once(start_service: Start) -> None:
    """Another node's revocation stands in this node's list within 2 s, beside the same certificate and key."""
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    before = serial(node)
    async with watching(node) as events:
        await events.wait("reached")
        loop = asyncio.get_running_loop()
        began = loop.time()
        service.revoke(other)
        await events.wait("trust")
        took = loop.time() - began
    assert took < 2
    assert serial(node) == before
    assert verify_identity(node.identity.path, at=datetime.now(UTC)).ok
    assert node.identity.path.joinpath("current").readlink() == Path("v2")


async def test_older_lists_are_taken_and_said(start_service: Start) -> None:
    """From a store that was restored from a backup the node takes the older list, and says what it lost; the next is newer."""
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    issuer = service.authority.trust().issuer()
    backup = (issuer.directory / "crl.pem").read_bytes()
    async with watching(node) as events:
        await events.wait("reached")
        service.revoke(other)
        await events.wait("trust")
        assert not [event for event in events if event["event"] == "trust-went-back"]
        replace_file(issuer.directory / "crl.pem", backup)
        told = await events.wait("trust-went-back")
        assert {name: told[name] for name in ("ca", "number", "before", "forgotten")} == {
            "ca": issuer.certificate.subject.rfc4514_string(),
            "number": 1,
            "before": 2,
            "forgotten": 1,
        }
        await events.wait("trust", 2)
        assert (node.current / "crl.pem").read_bytes() == backup
        service.revoke(other)
        await events.wait("trust", 3)
    assert len([event for event in events if event["event"] == "trust-went-back"]) == 1


async def test_a_sidecar_that_does_not_serve_it_is_said(start_service: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a publication the sidecar is asked; one that does not answer is no reason to issue anew, nor to stop."""
    monkeypatch.setattr(remote_watch, "SERVED_SECS", 0.2)
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    async with watching(node, sidecar=node.identity.path / "no.sock") as events:
        await events.wait("reached")
        service.revoke(other)
        told = await events.wait("not-served")
        assert "does not answer" in told["problem"]
        await events.wait("trust")
        assert not [event for event in events if event["event"] == "renewed"]


async def test_follows_when_the_root_is_replaced(start_service: Start) -> None:
    """It takes the new root when it is told, renews at once when the new root issues, and so lets each phase begin."""
    service = await start_service()
    node = await service.join("analyst")

    async def until(phase: str) -> None:
        async with asyncio.timeout(WAIT_SECS):
            while (await asyncio.to_thread(advance_rotation, service.authority, now=datetime.now(UTC))).after.phase != phase:
                pass  # as an operator who tries again

    async with watching(node) as events:
        await events.wait("reached")
        old = (node.current / "bundle.crt").read_bytes()
        await until("trust-both")
        await events.wait("trust")
        await until("issue-new")
        assert (await events.wait("renewed"))["serial"] == serial(node)
        await until("none")
        for count in range(2, 10):
            if old not in (node.current / "bundle.crt").read_bytes():
                break
            await events.wait("trust", count)
        assert old not in (node.current / "bundle.crt").read_bytes()
    assert verify_identity(node.identity.path, at=datetime.now(UTC), node_id="analyst").ok
    assert [event["event"] for event in events if event["event"] in ("problem", "not-served")] == []


async def test_a_join_meanwhile_is_not_undone(start_service: Start) -> None:
    """News that come after the node joined again are put beside the new certificate, not the one from before."""
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    async with watching(node) as events:
        await events.wait("reached")
        again = await service.join("analyst")
        service.revoke(other)
        await events.wait("trust")
        assert serial(node) == f"{again.identity.certificate.serial_number:x}"


async def test_outlives_its_service(start_service: Start) -> None:
    """While the service is away the node says so once, with the end of what it has; when it is back, news come again."""
    service = await start_service()
    node, other = await service.join("analyst"), await service.join("intake")
    relay = Relay(service.address)
    await relay.open()
    node.address = relay.address
    async with watching(node) as events:
        await events.wait("reached")
        await relay.close()
        problem = await events.wait("problem")
        assert problem["kind"] in ("Unreachable", "Malformed")
        assert problem["good_until"] == f"{node.identity.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        assert 0 < problem["seconds_left"] <= 3600
        service.revoke(other)
        await relay.open()
        await events.wait("reached", 2)
        await events.wait("trust")
        assert len([event for event in events if event["event"] == "problem"]) <= 2
    await relay.close()


async def test_a_revoked_node_says_so_and_keeps_what_it_has(start_service: Start) -> None:
    """It is told Revoked and goes on asking; a new code brings it back without a restart."""
    service = await start_service()
    node = await service.join("analyst")
    async with watching(node) as events:
        await events.wait("reached")
        service.revoke(node)
        told = await events.wait("problem")
        assert told["kind"] == "Revoked"
        assert serial(node) == f"{node.identity.certificate.serial_number:x}"
        again = await service.join("analyst", now=datetime.now(UTC) + timedelta(seconds=2))
        await events.wait("reached", 2)
        assert serial(node) == f"{again.identity.certificate.serial_number:x}"


async def test_an_ended_certificate_is_said(start_service: Start) -> None:
    """A node that was away for too long asks for a new code, and goes on when it was given one."""
    service = await start_service()
    node = await service.join("analyst")
    past = datetime.now(UTC) - timedelta(seconds=30)
    ended = service.authority.issue("analyst", now=past, lifetime=timedelta(seconds=10))
    material = replace(read_material(ended.path), crl_pem=b"")
    publish_identity(node.identity.path, material, node_id="analyst", trust_domain="mesh.test", now=past)
    async with watching(node) as events:
        told = await events.wait("problem")
        assert (told["kind"], told["seconds_left"] <= 0) == ("Ended", True)
        assert "join again" in told["problem"]
        with pytest.raises(TimeoutError):  # it was told, and is not told with every try
            async with asyncio.timeout(1):
                await events.wait("problem", 2)
        await service.join("analyst")
        await events.wait("reached")


async def test_without_an_identity_there_is_nothing_to_watch(tmp_path: Path) -> None:
    """The first identity comes by joining."""
    with pytest.raises(StoreError, match="blazen-certs join"):
        await RemoteWatch(ServiceAddress("127.0.0.1", 1), tmp_path / "nodes" / "analyst", log=print).run()


class Relay:
    """A TCP relay on one port that can be closed, with every connection through it, and opened again."""

    def __init__(self, target: ServiceAddress) -> None:
        self._target, self._port = target, 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> ServiceAddress:
        return ServiceAddress("127.0.0.1", self._port)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        writers = [writer]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        with suppress(asyncio.CancelledError, OSError, ExceptionGroup):
            far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(pump(reader, far_writer))
                pumps.create_task(pump(far_reader, writer))
        for each in writers:
            each.transport.abort()
            with suppress(OSError):
                await each.wait_closed()
