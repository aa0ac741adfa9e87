"""A node's identity kept alive from a certificate service: renewed at two thirds of its life, bundle and lists ever new.

One loop, one question at a time. It asks for news and the service answers as soon as there is any, so that a revocation is here
within a second. Where the service is silent, the node lives on with what it has, for as long as that is good, and says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import store
from blazen_certs.crl import crl_number, lists_gone_back, revoked_serials
from blazen_certs.errors import ServiceError, StoreError
from blazen_certs.facts import name_text, time_text, uris_of
from blazen_certs.pem import load_certificates, load_crl, private_key_pem, split_pem
from blazen_certs.publish import Material, publish_identity, read_material
from blazen_certs.remote import RemoteService, ServiceAddress, files_version
from blazen_certs.remote_request import request_pem
from blazen_certs.renewal import renewal_time
from blazen_certs.sidecar import look_at_sidecar, wait_until_served
from blazen_peer.errors import BlazenError, ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["RemoteWatch"]

WAIT_SECS = 10.0  # for news
FIRST_RETRY_SECS, LAST_RETRY_SECS = 0.25, 5.0
REFUSED_RETRY_SECS = 10.0
SERVED_SECS = 10.0
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class _Held:
    """The identity as it is on disk now."""

    material: Material
    leaf: x509.Certificate
    peer: PeerId
    lists: list[x509.CertificateRevocationList]

    @property
    def version(self) -> str:
        return files_version(self.material.bundle_pem, self.material.crl_pem)

    @property
    def good_until(self) -> datetime:
        """The end of the leaf, or of the list that ends first: with an ended list, a sidecar refuses everybody."""
        ends = [crl.next_update_utc for crl in self.lists if crl.next_update_utc is not None]
        return min([self.leaf.not_valid_after_utc, *ends])


class RemoteWatch:
    """Keeps one node's identity from a service.

    Args:
        address: The service.
        directory: The node's: ``nodes/<node>``, in which ``join`` put its first identity.
        sidecar: The admin socket of its sidecar, which is asked after each publication whether it serves that; None: nobody is.
        log: Takes what happened: ``time``, ``event`` (``reached``, ``renewed``, ``trust``, ``trust-went-back``, ``not-served``,
            ``problem``; the same problem comes again only when half of the time that was left is gone), ``node``, and what that
            event has.
    """

    def __init__(
        self,
        address: ServiceAddress,
        directory: Path,
        *,
        log: Callable[[dict[str, Any]], None],
        sidecar: Path | None = None,
    ) -> None:
        self._address, self._directory, self._log, self._sidecar = address, directory, log, sidecar
        self._anew = False
        self._problem: str | None = ""  # None: none; empty: nothing was said yet
        self._failures = self._told_left = 0

    async def run(self) -> None:
        """Go on until cancelled.

        Raises:
            StoreError, ValidationError, OSError: At the start: there is no identity, or it does not decode.
        """
        self._read()
        while True:
            try:
                await self._turn()
            except (BlazenError, OSError) as error:
                await asyncio.sleep(self._failed(error))
            else:
                self._succeeded()

    async def _turn(self) -> None:
        """Renew where it is time, otherwise ask for news. One question."""
        held, now = self._read(), datetime.now(UTC)
        if now >= held.leaf.not_valid_after_utc:
            ended = time_text(held.leaf.not_valid_after_utc)
            raise ServiceError(f"the certificate ended {ended}: join again, with a new code", "Ended")
        service = self._service(held)
        due = renewal_time(held.leaf)
        if now >= due or self._anew:
            await self._renew(service, held)
            return
        # The first answer, also after trouble, comes without waiting: it says that the service is there.
        wait_secs = min(WAIT_SECS, (due - now).total_seconds()) if self._problem is None else 0
        news = await service.trust(held.version, wait_secs=wait_secs)
        held = self._read()  # again: meanwhile a ``join`` may have put another certificate there
        if news is not None and files_version(news.bundle, news.crl) != held.version:
            await self._publish(held.material.beside(bundle_pem=news.bundle, crl_pem=news.crl), held.peer)
            self._tell("trust", version=news.version)
        if news is not None and news.renew:
            await self._renew(self._service(self._read()), held)

    async def _renew(self, service: RemoteService, held: _Held) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        granted = await service.renew(request_pem(held.peer, key))
        material = Material(granted.certificate, private_key_pem(key), granted.trust.bundle, granted.trust.crl)
        await self._publish(material, held.peer)
        leaf = self._read().leaf
        self._tell("renewed", serial=f"{leaf.serial_number:x}", not_after=time_text(leaf.not_valid_after_utc))

    def _read(self) -> _Held:
        if store.current_version(self._directory) is None:
            raise StoreError(f"{self._directory} holds no identity: blazen-certs join ADDRESS makes the first one, with a code")
        material = read_material(self._directory)
        leaf = load_certificates(split_pem(material.chain_pem, str(self._directory / store.CURRENT / store.CERTIFICATE)))[0]
        uris = uris_of(leaf)
        if len(uris) != 1:
            raise ValidationError(f"{self._directory}: the certificate must carry one URI name, found {len(uris)}")
        return _Held(material, leaf, PeerId.parse(uris[0]), _lists(material))

    def _service(self, held: _Held) -> RemoteService:
        roots = load_certificates(split_pem(held.material.bundle_pem, store.BUNDLE))
        identity = self._directory / f"v{store.current_version(self._directory)}"
        return RemoteService(self._address, held.peer.trust_domain, roots, identity=identity, crls=held.lists)

    async def _publish(self, material: Material, peer: PeerId) -> None:
        """Publish what was checked, and ask the sidecar. After what it refuses comes a new certificate, never the old one."""
        before = None if self._sidecar is None else await asyncio.to_thread(look_at_sidecar, self._sidecar)
        now, held = datetime.now(UTC), self._read().lists
        publish_identity(self._directory, material, node_id=peer.node_id, trust_domain=peer.trust_domain, now=now)
        self._anew = False
        # Accepted: it is signed by the CA, and a service that was restored from a backup must be able to go on.
        for crl, old in lists_gone_back(_lists(material), held):
            forgotten = len(revoked_serials(old).keys() - revoked_serials(crl).keys())
            numbers = {"number": crl_number(crl), "before": crl_number(old)}
            self._tell("trust-went-back", ca=name_text(crl.issuer), **numbers, forgotten=forgotten)
        if self._sidecar is None or before is None:
            return
        roots = load_certificates(split_pem(material.bundle_pem, store.BUNDLE))
        serial = self._read().leaf.serial_number
        served = partial(wait_until_served, self._sidecar, serial, roots, before=before, secs=SERVED_SECS)
        if (problem := await asyncio.to_thread(served)) is not None:
            after = await asyncio.to_thread(look_at_sidecar, self._sidecar)
            self._anew = before.problem is None and after.problem is None and after.refused > before.refused
            self._tell("not-served", problem=problem)

    def _succeeded(self) -> None:
        if self._problem is not None:
            self._tell("reached", service=str(self._address))
        self._problem, self._failures = None, 0

    def _failed(self, error: BlazenError | OSError) -> float:
        """Say what is wrong, once, and how long the node lives on; return how many seconds to wait."""
        left = self._left()
        seconds_left = max(0, left.get("seconds_left", 0))
        if self._problem != str(error) or seconds_left < self._told_left / 2:
            self._problem, self._told_left = str(error), seconds_left
            kind = error.kind if isinstance(error, BlazenError) else "Store"
            self._tell("problem", kind=kind, problem=str(error), **left)
        self._failures += 1
        if isinstance(error, ServiceError) and error.kind == "Unreachable":
            secs = min(LAST_RETRY_SECS, FIRST_RETRY_SECS * 2.0 ** min(self._failures - 1, 10))
        else:
            secs = REFUSED_RETRY_SECS
        return secs * (1 - _JITTER * random.random())  # noqa: S311 - nobody gains by guessing it

    def _tell(self, event: str, **facts: Any) -> None:
        self._log({"time": time_text(datetime.now(UTC)), "event": event, "node": self._directory.name, **facts})

    def _left(self) -> dict[str, Any]:
        """Return until when the node lives on as it is."""
        try:
            held = self._read()
        except (BlazenError, OSError):
            return {}
        left = held.good_until - datetime.now(UTC)
        return {"good_until": time_text(held.good_until), "seconds_left": int(left.total_seconds())}


def _lists(material: Material) -> list[x509.CertificateRevocationList]:
    return [load_crl(block) for block in split_pem(material.crl_pem, store.CRL)] if material.crl_pem else []
