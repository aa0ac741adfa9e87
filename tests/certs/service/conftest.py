"""A certificate service in this process, and nodes that joined it.

async def test_something(start_service):
    service = await start_service()                       # over a fresh authority of mesh.test, on a free port of loopback
    node = await service.join("analyst")                  # an identity in a directory of its own
    await node.remote().renew(node.request())
    service.events                                        # what it logged
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import Authority
from blazen_certs.authority import IssuedIdentity
from blazen_certs.codes import CodeBook, JoinCode
from blazen_certs.issuing import sign_list
from blazen_certs.join import join
from blazen_certs.pem import load_certificates, load_crl, read_pem_file
from blazen_certs.remote import RemoteService, ServiceAddress
from blazen_certs.remote_request import request_pem
from blazen_certs.service import CertificateService, ServiceSettings
from blazen_certs.service_issuer import ServiceIssuer
from blazen_peer.identity import PeerId


@dataclass
class Node:
    """A node that joined, on another machine as it were."""

    identity: IssuedIdentity
    address: ServiceAddress

    @property
    def current(self) -> Path:
        """Its current files."""
        return self.identity.path / "current"

    @property
    def peer(self) -> PeerId:
        """Who it is."""
        return self.identity.peer

    def remote(self, identity: Path | None = None) -> RemoteService:
        """The service, as this node calls it."""
        roots = load_certificates(read_pem_file(self.current / "bundle.crt"))
        crls = [load_crl(block) for block in read_pem_file(self.current / "crl.pem")]
        return RemoteService(self.address, self.peer.trust_domain, roots, identity=identity or self.current, crls=crls)

    def request(self, peer: PeerId | None = None) -> bytes:
        """A signing request of this node, for itself unless told otherwise."""
        return request_pem(peer or self.peer, ec.generate_private_key(ec.SECP256R1()))


@dataclass
class Service:
    """A service that runs."""

    authority: Authority
    address: ServiceAddress
    directory: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def code(self, node: str, **options: Any) -> JoinCode:
        """Make a code for *node*."""
        region = options.pop("region", None)
        trust = self.authority.trust()
        peer = PeerId(trust.issuer(region).trust_domain, node)
        return CodeBook.of(self.authority.directory).make(peer, trust.root.certificate, **options)

    async def join(self, node: str, **options: Any) -> Node:
        """Let *node* join, into a directory of its own."""
        identity = await join(self.address, self.code(node, **options), self.directory / node)
        return Node(identity, self.address)

    def revoke(self, node: Node) -> None:
        """Revoke the node's current certificate."""
        leaf = load_certificates(read_pem_file(node.current / "tls.crt"))[0]
        issuer = self.authority.trust().issuer_of(leaf)
        assert issuer is not None
        now = datetime.now(UTC)
        sign_list(issuer, now=now, revoke={leaf.serial_number: now})

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for an event of that name, and return the last."""
        while not self.of(event):  # noqa: ASYNC110 - the log is a plain list, which threads fill too
            await asyncio.sleep(0.01)
        return self.of(event)[-1]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of that name."""
        return [line for line in self.events if line["event"] == event]


@pytest.fixture
async def start_service(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    """A factory of services: ``await start_service(settings=..., lifetime=..., regions=..., authority=...)``."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            settings: ServiceSettings | None = None,
            lifetime: timedelta = timedelta(hours=1),
            regions: tuple[str, ...] = (),
            authority: Authority | None = None,
            port: int = 0,
        ) -> Service:
            if authority is None:
                authority = Authority.create(tmp_path / "ca", "mesh.test", regions=regions)
            events: list[dict[str, Any]] = []
            issuer = ServiceIssuer(authority, lifetime=lifetime, log=events.append)
            service = CertificateService(issuer, events.append, settings or ServiceSettings(look_secs=0.02))
            where = await stack.enter_async_context(service.serving("127.0.0.1", port))
            return Service(authority, ServiceAddress.parse(where), tmp_path, events)

        yield start
