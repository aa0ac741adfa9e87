"""The way to another sidecar, by this node's own certificate: names looked up, TCP, TLS 1.3, and what the other end says of us.

Every wait is bounded. Nothing is sent but the beginning of HTTP/2, which makes the other end speak.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from blazen_mesh.address import Address, TcpAddress, UnixAddress

__all__ = ["CLOSED", "SILENT", "Handshake", "connect", "look_up", "shake_hands"]

CLOSED, SILENT = "closed", "no answer in time"
"""The failures of a connection that the other end closed without a word, and of one on which it said nothing."""

# RFC 9113, 3.4: the client's preface and empty settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass(frozen=True, slots=True)
class Handshake:
    """How one handshake went.

    Attributes:
        local: This end, as the other end's log writes it.
        connect_secs: How long the TCP connection took to open.
        version, alpn: What was agreed on; None where nothing was.
        leaf: The other end's certificate, where it came.
        verify_code, verify_message: Why OpenSSL does not trust it (``X509_V_ERR_``); 0 and empty where it does.
        failure: OpenSSL's reason for the end of the connection, such as ``TLSV1_ALERT_UNKNOWN_CA``; None where it held.
    """

    local: str
    connect_secs: float
    version: str | None = None
    alpn: str | None = None
    leaf: x509.Certificate | None = None
    verify_code: int = 0
    verify_message: str = ""
    failure: str | None = None


async def look_up(address: TcpAddress, timeout_secs: float) -> list[str]:
    """Return the IP addresses of *address* that a sidecar would dial: those of version 4, where there are any.

    Raises:
        OSError: The name does not resolve, or not in time; the text says how.
    """
    async with asyncio.timeout(timeout_secs):
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    ips = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return [ip for ip in ips if ":" not in ip] or ips


def connect(address: Address, timeout_secs: float) -> float:
    """Open a connection to *address* and close it; return how many seconds it took.

    Raises:
        OSError: Nobody listens there, or does not answer in time.
    """
    begun = time.monotonic()
    _connected(address, timeout_secs).close()
    return time.monotonic() - begun


def shake_hands(address: TcpAddress, current: Path, timeout_secs: float) -> Handshake:
    """Do a TLS handshake with *address* as the node whose identity is in *current*, and hear what the other end says of it.

    Raises:
        OSError: The connection cannot be opened.
        ssl.SSLError: The node's own files cannot be used.
    """
    done = _shake(address, _context(current, verify=True), timeout_secs)
    if (code := done.verify_code) != 0:
        # Once more without verification, to see the certificate that was refused, and what the other end thinks of ours.
        again = _shake(address, _context(current, verify=False), timeout_secs)
        done = replace(again, verify_code=code, verify_message=done.verify_message)
    if done.failure == CLOSED and done.leaf is not None:
        # What we sent crossed the other end's alert, and the reset that it drew took that away: now we only listen.
        again = _shake(address, _context(current, verify=False), timeout_secs, speak=False)
        done = done if again.failure in (None, CLOSED, SILENT) else replace(done, local=again.local, failure=again.failure)
    return done


def _context(current: Path, *, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are URIs, which OpenSSL does not compare; our caller does
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(current / "tls.crt", current / "tls.key")
    if not verify:
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(current / "bundle.crt")
    if (current / "crl.pem").exists():
        context.load_verify_locations(current / "crl.pem")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _shake(address: TcpAddress, context: ssl.SSLContext, timeout_secs: float, *, speak: bool = True) -> Handshake:
    begun = time.monotonic()
    with _connected(address, timeout_secs) as plain:
        done = Handshake(_text(plain.getsockname()), time.monotonic() - begun)
        try:
            with context.wrap_socket(plain) as secure:
                der = secure.getpeercert(binary_form=True)
                done = replace(
                    done,
                    version=secure.version(),
                    alpn=secure.selected_alpn_protocol(),
                    leaf=x509.load_der_x509_certificate(der) if der else None,
                )
                # The client's part of a TLS 1.3 handshake ends before the server has looked at its certificate.
                if speak:
                    secure.sendall(_PREFACE)
                return done if secure.recv(1) else replace(done, failure=CLOSED)
        except ssl.SSLCertVerificationError as error:
            return replace(done, verify_code=error.verify_code, verify_message=error.verify_message)
        except TimeoutError:
            return replace(done, failure=SILENT)
        except ValueError as error:
            return replace(done, failure=f"a certificate that cannot be read: {error}")
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            return replace(done, failure=CLOSED)
        except ssl.SSLError as error:
            return replace(done, failure=error.reason or str(error))


def _connected(address: Address, timeout_secs: float) -> socket.socket:
    if isinstance(address, TcpAddress):
        return socket.create_connection((address.host, address.port), timeout_secs)
    assert isinstance(address, UnixAddress)  # noqa: S101 - there are two kinds
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(timeout_secs)
        found.connect(address.path)
    except OSError:
        found.close()
        raise
    return found


def _text(name: tuple[object, ...]) -> str:
    return str(TcpAddress(str(name[0]), int(str(name[1]))))
