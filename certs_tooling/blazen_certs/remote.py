"""The certificate service, as a node calls it: who it must prove to be, and its four answers as values.

The service is the node ``blazen-certs.<trust domain>`` of the caller's own trust domain. Nobody else gets that name:
neither a code nor a renewal gives it away. So a captured node cannot hand out a bundle with a root of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blazen_certs import store
from blazen_certs.crl import is_revoked
from blazen_certs.errors import ServiceError
from blazen_certs.facts import uris_of
from blazen_certs.pem import certificates_pem, load_certificate, load_certificates, split_pem
from blazen_certs.service_wire import (
    MAX_ANSWER_BYTES,
    MAX_HEAD_BYTES,
    Answer,
    MalformedError,
    Request,
    close,
    read_answer,
    text_field,
    write_request,
)
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Granted", "RemoteService", "ServiceAddress", "TrustFiles", "fetch_roots", "files_version", "service_peer"]

CONNECT_SECS = 3.0
ANSWER_SECS = 15.0
NEWS_SECS = 5.0  # on top of the wait for them: a connection that died in silence is noticed this late
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})", re.ASCII)


def service_peer(trust_domain: str) -> PeerId:
    """Return who the certificate service of *trust_domain* is. Its node id is its DNS name too, and no two regions share it.

    Raises:
        ValidationError: The trust domain is too long for one.
    """
    return PeerId(trust_domain, f"blazen-certs.{trust_domain}")


def files_version(bundle_pem: bytes, crl_pem: bytes) -> str:
    """Return a short text that stands for what a mesh trusts: equal for equal files."""
    return hashlib.sha256(bundle_pem + b"\0" + crl_pem).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where a certificate service listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, free_port: bool = False) -> ServiceAddress:
        """Return the address that *text* holds: ``HOST:PORT``, an IPv6 host in brackets. *free_port* admits port 0.

        Raises:
            ValidationError: It holds none.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or not (0 if free_port else 1) <= int(match[3]) < 65536:
            raise ValidationError(f"{text[:200]!r} is no address: use HOST:PORT, such as 10.0.0.1:9443")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """What a mesh trusts at a moment.

    Attributes:
        version: Equal for equal contents.
        bundle: The roots, PEM.
        crl: One revocation list for each issuing CA, PEM.
        renew: Whether the service wants the asking node to renew now, before its time.
    """

    version: str
    bundle: bytes
    crl: bytes
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Granted:
    """A certificate that the service issued, PEM (the leaf, then its issuing CA), and what the mesh trusts."""

    certificate: bytes
    trust: TrustFiles


class RemoteService:
    """The service at an address, proven to be the mesh's own before anything is said to it.

    Args:
        address: Where it is.
        trust_domain: The caller's; the service must have its name in it.
        roots: The CAs of which one must have vouched for it.
        identity: A directory with ``tls.crt`` and ``tls.key`` to show; None shows none, which is good for ``join`` alone.
        crls: Revocation lists on which the service's certificate must not be.
    """

    def __init__(
        self,
        address: ServiceAddress,
        trust_domain: str,
        roots: Sequence[x509.Certificate],
        *,
        identity: Path | None = None,
        crls: Sequence[x509.CertificateRevocationList] = (),
    ) -> None:
        self.address = address
        self._peer = service_peer(trust_domain)
        self._roots, self._identity, self._crls = roots, identity, crls

    async def join(self, code_id: str, secret: str, request_pem: bytes) -> Granted:
        """Show a code; the service answers with a certificate, once.

        Raises:
            ServiceError: No answer, not the service of this mesh, or a refusal.
        """
        return _granted(await self._ask("/v1/join", {"id": code_id, "secret": secret, "request": request_pem.decode()}))

    async def renew(self, request_pem: bytes) -> Granted:
        """Ask for a new certificate in the caller's own name.

        Raises:
            ServiceError, OSError: As ``join``; or the identity's files cannot be read.
        """
        return _granted(await self._ask("/v1/renew", {"request": request_pem.decode()}))

    async def trust(self, known: str, *, wait_secs: float) -> TrustFiles | None:
        """Return what the mesh trusts, as soon as its version is not *known*; None where *wait_secs* bring no news.

        Raises:
            ServiceError, OSError: As ``renew``.
        """
        body = await self._ask("/v1/trust", {"known": known, "wait_secs": wait_secs}, wait_secs + NEWS_SECS)
        return None if body.get("version") == known and not body.get("renew") else _trust(body)

    async def _ask(self, path: str, body: dict[str, Any], secs: float = ANSWER_SECS) -> dict[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=certificates_pem(self._roots).decode())
        if self._identity is not None:
            context.load_cert_chain(self._identity / store.CERTIFICATE, self._identity / store.KEY)
        answer = await _exchange(self.address, context, self._peer.node_id, Request(path, body), self._check, secs)
        if answer.status is HTTPStatus.OK:
            return answer.body
        error = answer.body.get("error")
        told = error if isinstance(error, dict) else {}
        message = str(told.get("message", answer.status.phrase))[:500]
        raise ServiceError(
            f"the certificate service at {self.address} refused: {message}", str(told.get("kind", "Refused"))[:40]
        )

    def _check(self, certificate: x509.Certificate) -> None:
        if uris_of(certificate) != [str(self._peer)]:
            raise ServiceError(
                f"{self.address} is not the certificate service: it is {', '.join(uris_of(certificate))}", "Untrusted"
            )
        if any(crl.issuer == certificate.issuer and is_revoked(certificate.serial_number, crl) for crl in self._crls):
            raise ServiceError(f"{self.address}: the certificate service's own certificate is revoked", "Untrusted")


async def fetch_roots(address: ServiceAddress) -> list[x509.Certificate]:
    """Return the certificates that whoever is at *address* calls the mesh's roots. Nothing of it is proven, nothing is told.

    Raises:
        ServiceError: No answer, or none of ours.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    answer = await _exchange(address, context, None, Request("/v1/roots", {}), lambda _: None, ANSWER_SECS)
    try:
        return load_certificates(split_pem(text_field(answer.body, "roots", max_chars=MAX_ANSWER_BYTES).encode(), "the roots"))
    except (ValidationError, MalformedError) as error:
        raise ServiceError(f"{address} is no certificate service: {error}", "Untrusted") from error


async def _exchange(
    address: ServiceAddress, context: ssl.SSLContext, name: str | None, request: Request, check: Any, secs: float
) -> Answer:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_SECS):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=name or "", limit=MAX_HEAD_BYTES
            )
        async with asyncio.timeout(secs):
            check(_certificate_of(writer))
            write_request(writer, str(address), request)
            await writer.drain()
            return await read_answer(reader)
    except ssl.SSLCertVerificationError as error:
        raise ServiceError(
            f"{address} is not the certificate service of this mesh: {error.verify_message}; nothing was told to it",
            "Untrusted",
        ) from error
    except ssl.SSLError as error:
        said = (error.reason or str(error)).lower().replace("_", " ")
        raise ServiceError(f"{address} refused the connection: {said}", "Handshake") from error
    except EOFError as error:
        raise ServiceError(
            f"{address} hung up without an answer: it ends, is busy, or is no certificate service", "Unreachable"
        ) from error
    except MalformedError as error:
        raise ServiceError(f"{address} gave no answer of a certificate service: {error}", "Malformed") from error
    except TimeoutError as error:
        raise ServiceError(f"{address} does not answer", "Unreachable") from error
    except OSError as error:
        # asyncio's own text repeats the address and leaves the reason out.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ServiceError(f"{address} is not reached: {why}", "Unreachable") from error
    finally:
        if writer is not None:
            await close(writer)


def _certificate_of(writer: asyncio.StreamWriter) -> x509.Certificate:
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return load_certificate(split_pem(ssl.DER_cert_to_PEM_cert(der).encode(), "the service's certificate")[0])


def _granted(body: dict[str, Any]) -> Granted:
    trust = _trust(body)
    return Granted(_text(body, "certificate"), trust)


def _trust(body: dict[str, Any]) -> TrustFiles:
    return TrustFiles(_text(body, "version").decode(), _text(body, "bundle"), _text(body, "crl"), body.get("renew") is True)


def _text(body: dict[str, Any], name: str) -> bytes:
    try:
        return text_field(body, name, max_chars=MAX_ANSWER_BYTES).encode()
    except MalformedError as error:
        raise ServiceError(f"the certificate service's answer is incomplete: {error}", "Malformed") from error
