"""Direct mutual TLS, for development and for those who run no sidecar: PEM files in, grpcio's credentials out.

Each side shows a certificate and demands one of the other's CA. Files are read again when they change: a server shows the new
ones to whoever connects from then on, a client makes a new connection. Files that do not fit together, because somebody is
half way through replacing them, leave the last good ones in force, and the log says so.

The protocol is gRPC's own choice, which grpcio gives nobody a say in: TLS 1.3, or 1.2 with an end that has no 1.3.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar, cast

import grpc

from blazen_peer.errors import ValidationError

__all__ = ["ClientTls", "ServerTls", "load_client_tls", "load_server_tls"]

T = TypeVar("T")

MAX_PEM_BYTES: Final = 1 << 20
_DNS_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", re.ASCII)
_Stamp = tuple[tuple[int, int, int] | None, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Identity:
    """What the three files hold, checked: the chain with the leaf first, its key, the CAs of the other end."""

    chain: bytes
    key: bytes = field(repr=False)
    ca: bytes


class _IdentityFiles:
    """Three PEM files, read again when one of them changes. Safe to use from any thread."""

    def __init__(self, cert: str | Path, key: str | Path, ca: str | Path) -> None:
        self._paths = (Path(cert), Path(key), Path(ca))
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._identity = _loaded(*self._paths)

    def __str__(self) -> str:
        return ", ".join(map(str, self._paths))

    def current(self) -> _Identity:
        """Return what is in force now: the same object until what the files hold has changed."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp  # taken before the files are read: what changes meanwhile is seen next time
                try:
                    identity = _loaded(*self._paths)
                except ValidationError as error:
                    logger.error("the changed TLS files are not usable, the last good ones stay: %s", error)
                else:
                    if identity != self._identity:
                        self._identity = identity
                        logger.info("the TLS files changed: %s", self)
            return self._identity

    def _stamp(self) -> _Stamp:
        return tuple(map(_stamp_of, self._paths))


class ServerTls:
    """What a server proves itself by, and whom it asks for proof. Made by :func:`load_server_tls`."""

    def __init__(self, files: _IdentityFiles) -> None:
        self._files = files

    def __repr__(self) -> str:
        return f"ServerTls({self._files})"

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one server: a client certificate is required, each handshake uses the files of its moment."""
        shown = self._files.current()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            identity = self._files.current()
            if identity is shown:
                return None
            shown = identity
            return _server_configuration(identity)

        fetch = cast(
            "Callable[[], grpc.ServerCertificateConfiguration]", changed
        )  # None says "as before", grpc's own page says
        return grpc.dynamic_ssl_server_credentials(_server_configuration(shown), fetch, require_client_authentication=True)


class ClientTls:
    """What a client proves itself by, and which server it believes. Made by :func:`load_client_tls`.

    Attributes:
        server_name: The DNS name that the server's certificate must hold; None: the address's own host.
    """

    def __init__(self, files: _IdentityFiles, server_name: str | None) -> None:
        self._files, self.server_name = files, server_name
        self._lock = threading.Lock()
        self._identity = files.current()
        self._credentials = _channel_credentials(self._identity)

    def __repr__(self) -> str:
        return f"ClientTls({self._files}, server_name={self.server_name!r})"

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials in force: the same object until the files change, as gRPC shares connections by it."""
        identity = self._files.current()
        if identity is not self._identity:
            with self._lock:
                if identity is not self._identity:
                    self._identity, self._credentials = identity, _channel_credentials(identity)
        return self._credentials


def load_server_tls(cert: str | Path, key: str | Path, ca: str | Path) -> ServerTls:
    """Load what :meth:`PeerServer.serve` takes as ``tls=``: who this server is, and whose certificates it admits.

    Args:
        cert: PEM file with the server's certificate, and the certificates between it and its CA.
        key: PEM file with its private key, not encrypted.
        ca: PEM file with the CAs that clients' certificates must come from.

    Raises:
        ValidationError: A file cannot be read or is not such PEM, or the key is another certificate's; it names the file.
    """
    return ServerTls(_IdentityFiles(cert, key, ca))


def load_client_tls(cert: str | Path, key: str | Path, ca: str | Path, *, server_name: str | None = None) -> ClientTls:
    """Load what :meth:`PeerClient.connect` takes as ``tls=``: who this client is, and which server it believes.

    gRPC compares a server's certificate with a DNS name (or an IP address), never with a SPIFFE URI. ``blazen-certs`` gives
    each node the DNS name ``<node>.<trust domain>`` for this: pass it as *server_name*, and no other node can answer.

    Args:
        cert: PEM file with the client's certificate, and the certificates between it and its CA.
        key: PEM file with its private key, not encrypted.
        ca: PEM file with the CAs that the server's certificate must come from.
        server_name: The DNS name that the server's certificate must hold; None: the host of the address.

    Raises:
        ValidationError: As for :func:`load_server_tls`, or *server_name* is no DNS name.
    """
    if server_name is not None and not _DNS_NAME.fullmatch(server_name):
        raise ValidationError(
            f"server_name {server_name[:200]!r} is no DNS name, and gRPC can compare nothing else: "
            "for spiffe://mesh.example/peer/analyst give analyst.mesh.example"
        )
    return ClientTls(_IdentityFiles(cert, key, ca), server_name)


def _server_configuration(identity: _Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)], identity.ca)


def _channel_credentials(identity: _Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(identity.ca, identity.key, identity.chain)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # what is wrong with it, reading it will say
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _loaded(cert: Path, key: Path, ca: Path) -> _Identity:
    """Return what the files hold, once it is certain that gRPC can use it: what it cannot, it says too late or not at all."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    chain_pem, key_pem, ca_pem = _read(cert), _read(key), _read(ca)
    chain = _parsed(cert, "certificate", lambda: load_pem_x509_certificates(chain_pem))
    private_key = _parsed(key, "private key without a password", lambda: load_pem_private_key(key_pem, None))
    _parsed(ca, "CA certificate", lambda: load_pem_x509_certificates(ca_pem))
    if _parsed(cert, "certificate", chain[0].public_key) != private_key.public_key():
        raise ValidationError(f"the key in {key} is not that of the certificate in {cert}: give the two that belong together")
    return _Identity(chain_pem, key_pem, ca_pem)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ValidationError(f"cannot read the TLS file {path}: {error.strerror or type(error).__name__}") from None
    if len(data) > MAX_PEM_BYTES:
        raise ValidationError(f"the TLS file {path} is over {MAX_PEM_BYTES} bytes")
    return data


def _parsed(path: Path, what: str, parse: Callable[[], T]) -> T:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parse()
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the parser's own words may quote what the file holds
        raise ValidationError(f"{path} holds no {what} in PEM") from None
