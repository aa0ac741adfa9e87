"""Traps 5, 6, 7 and 9: files that Envoy does not see, or keeps though they are gone, or serves though they are over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from blazen_certs import store
from blazen_certs.crl import build_crl
from blazen_certs.keys import load_issuing_key
from blazen_certs.upkeep import revoke_node
from blazen_mesh.admin import AdminError

pytestmark = pytest.mark.envoy
WAIT_SECS = 30.0
GARBAGE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Poll *condition* until it holds."""
    async with asyncio.timeout(WAIT_SECS):
        while not await condition():  # noqa: ASYNC110 - the other end has to be asked
            await asyncio.sleep(0.02)


def files(directory: Path) -> dict[str, bytes]:
    """The files of the identity that is current in *directory*."""
    return {path.name: path.read_bytes() for path in (directory / "current").iterdir()}


def publish(directory: Path, content: Mapping[str, bytes]) -> None:
    """Make *content* current, unchecked, as blazen-certs never does."""
    store.publish_version(directory, dict(content))


async def passes(mesh: Any, channel: grpc.aio.Channel) -> bool:
    """Make a call on *channel*, which has no connection yet, close it, and say whether the call was answered."""
    async with channel:
        try:
            await mesh.call("intake", "analyst", channel=channel, timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


async def test_trap_05_only_an_atomic_move_is_seen(mesh: Any, certificates: Any) -> None:
    """Files that are written over in place are not taken up, not within a second; the same ones, swapped whole, at once."""
    directory, admin = mesh.identities["analyst"], mesh.sidecars["analyst"].admin
    old = files(directory)
    (before,) = await admin.serials()
    fresh = certificates.issue("analyst").certificate.serial_number
    new = files(directory)

    async def served(serial: int) -> bool:
        return bool(await admin.serials() == {serial})

    await until(lambda: served(fresh))
    publish(directory, old)  # bytes of before are no trap as long as nothing was refused
    await until(lambda: served(before))
    for name, content in new.items():
        (directory / "current" / name).write_bytes(content)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert await served(before)
        await asyncio.sleep(0.05)
    publish(directory, new)
    begun = time.monotonic()
    await until(lambda: served(fresh))
    assert time.monotonic() - begun < 2


async def test_trap_06_putting_the_old_files_back_disables_revocation(
    mesh: Any, certificates: Any, direct: Callable[..., grpc.aio.Channel]
) -> None:
    """After a broken key, the good files of before look unchanged to Envoy: the broken one stays, and with it no revocation
    list is taken any more. Calls of a revoked caller pass, on the old certificate; only the count of failures tells."""
    directory, admin = mesh.identities["analyst"], mesh.sidecars["analyst"].admin
    good, before = files(directory), await admin.serials()
    other = files(certificates.issue("bystander").path)
    publish(directory, {**good, "tls.key": other["tls.key"]})
    await until(admin.refused_secrets)
    publish(directory, good)
    failures = await admin.refused_secrets()
    revoke_node(certificates, "intake", now=datetime.now(UTC))
    assert files(directory)["crl.pem"] != good["crl.pem"]
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert await passes(mesh, direct(mesh, "intake", "analyst"))
        await asyncio.sleep(0.2)
    assert await admin.serials() == before
    assert await admin.refused_secrets() > failures
    assert await admin.unready() is None


@pytest.mark.parametrize("part", ["tls.key", "bundle.crt", "crl.pem"])
async def test_trap_06_a_broken_rotation_is_told_and_healed(
    start_mesh: Any, certificates: Any, direct: Callable[..., grpc.aio.Channel], part: str
) -> None:
    """Under a supervisor a broken file is told at once; issued anew, the identity is in force within seconds, with its
    revocations, though Envoy had to be replaced for it; no honest call fails."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst", "--drain-secs", "1")
    directory = mesh.identities["analyst"]
    assert await mesh.call("intake", "analyst") == b"hello"
    publish(directory, {**files(directory), part: GARBAGE})
    status = await analyst.until(lambda status: status["degraded"])
    assert status["ready"]
    assert any(part in line and "Envoy goes on with the one before: issue another" in line for line in status["degraded"])
    fresh = certificates.issue("analyst").certificate.serial_number
    await analyst.until(lambda status: status["ready"] and not status["degraded"] and int(status["serial"], 16) == fresh)

    async def taken() -> bool:
        with contextlib.suppress(AdminError):  # while one Envoy takes over from another
            return bool(await analyst.admin.serials() == {fresh})
        return False

    await until(taken)
    assert await mesh.call("intake", "analyst") == b"hello"
    revoke_node(certificates, "intake", now=datetime.now(UTC))

    async def bites() -> bool:
        return not await passes(mesh, direct(mesh, "intake", "analyst"))

    await until(bites)


async def test_trap_07_live_without_a_certificate(start_mesh: Any, certificates: Any) -> None:
    """Envoy's /ready says LIVE without any certificate; for us the sidecar is not ready."""
    empty = certificates.directory / "nodes" / "analyst"
    empty.mkdir(parents=True)
    mesh = await start_mesh(identities={"analyst": empty}, sidecars=["intake"])
    admin = (await mesh.start_sidecar("analyst", ready=False)).admin

    async def live() -> bool:
        try:
            return "LIVE" in await admin.get("/ready")
        except AdminError:  # its socket is not there yet, or nobody listens on it yet
            return False

    await until(live)
    assert await admin.unready() == "it has no certificate"


async def test_trap_07_live_with_an_expired_certificate(start_mesh: Any, certificates: Any) -> None:
    """Envoy's /ready says LIVE with a certificate that has ended; for us, and for the supervisor, the sidecar is not ready."""
    yesterday = datetime.now(UTC) - timedelta(hours=23)
    expired = certificates.issue("analyst", now=yesterday, lifetime=timedelta(hours=1)).path
    mesh = await start_mesh(identities={"analyst": expired}, sidecars=["intake"])
    admin = (await mesh.start_sidecar("analyst", ready=False)).admin

    async def told() -> bool:
        return "its certificate expired at" in (await admin.unready() or "")

    await until(told)
    assert "LIVE" in await admin.get("/ready")
    await mesh.sidecars["analyst"].stop()
    analyst = await mesh.supervise("analyst", ready=False)
    status = await analyst.until(lambda status: status["state"] == "waiting")
    assert status["why_not"].startswith("tls.crt expired at ")
    certificates.issue("analyst")
    await analyst.until(lambda status: status["ready"])


def signed_list(certificates: Any, now: datetime) -> bytes:
    """A list of the mesh's issuing CA, made at *now*, that revokes nobody."""
    issuer = certificates.trust().issuer()
    crl = build_crl(issuer.certificate, {}, number=1000, now=now).sign(load_issuing_key(issuer), hashes.SHA256())
    return crl.public_bytes(Encoding.PEM)


async def test_trap_09_an_expired_list_refuses_everybody(
    mesh: Any, certificates: Any, direct: Callable[..., grpc.aio.Channel]
) -> None:
    """A list past its end refuses every new connection, and the ingress's log says so; a new one lets all in again."""
    directory = mesh.identities["analyst"]
    assert await passes(mesh, direct(mesh, "intake", "analyst"))
    publish(directory, {**files(directory), "crl.pem": signed_list(certificates, datetime.now(UTC) - timedelta(days=2))})

    async def nobody() -> bool:
        return not await passes(mesh, direct(mesh, "intake", "analyst"))

    await until(nobody)
    await mesh.said("analyst", "CRL_has_expired")
    publish(directory, {**files(directory), "crl.pem": signed_list(certificates, datetime.now(UTC))})

    async def again() -> bool:
        return await passes(mesh, direct(mesh, "intake", "analyst"))

    await until(again)


async def test_trap_09_a_list_for_every_authority_of_the_chain(start_mesh: Any, walk: Callable[[Any], Any]) -> None:
    """Only leaves are looked up: were the root to have a list too, everybody would be refused, since it is offline."""
    mesh = await start_mesh(sidecars=["intake"])

    def look_up_all(documents: Mapping[str, Any]) -> None:
        for found in walk(documents):
            found.pop("only_verify_leaf_cert_crl", None)

    await mesh.start_sidecar("analyst", alter=look_up_all)
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.call("intake", "analyst")
    await mesh.said("analyst", "CRL")
    await mesh.sidecars["analyst"].stop()
    await mesh.start_sidecar("analyst")
    assert await mesh.call("intake", "analyst") == b"hello"
