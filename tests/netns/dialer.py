"""Opens connections to a sidecar again and again: ``dialer.py HOST PORT INTERVAL_SECS IDENTITY``, with that directory's files.

A line for each change: ``shows SERIAL``, the certificate of the sidecar; ``taken SECS`` or ``refused SECS``, what became of
ours, with the machine's monotonic clock.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from pathlib import Path

from cryptography import x509

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # and an empty SETTINGS frame (RFC 9113, 3.4)


def dial(host: str, port: int, identity: Path) -> tuple[str, bool]:
    """Return the serial that the sidecar shows, and whether it takes ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    version = identity.resolve()  # certificate and key of one version
    context.load_verify_locations(version / "bundle.crt")
    context.load_cert_chain(version / "tls.crt", version / "tls.key")
    with socket.create_connection((host, port), timeout=20) as raw, context.wrap_socket(raw) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        serial = f"{x509.load_der_x509_certificate(der).serial_number:x}"
        try:
            connection.sendall(PREFACE)
            return serial, bool(connection.recv(9))  # in TLS 1.3 the verdict comes after the handshake
        except OSError:
            return serial, False


def main(host: str, port: int, interval_secs: float, identity: Path) -> None:
    before: tuple[str, bool] = ("", False)
    while True:
        serial, taken = dial(host, port, identity)
        now = time.monotonic()
        if serial != before[0]:
            sys.stdout.write(f"shows {serial}\n")
        if before[0] == "" or taken != before[1]:
            sys.stdout.write(f"{'taken' if taken else 'refused'} {now}\n")
        sys.stdout.flush()
        before = (serial, taken)
        time.sleep(interval_secs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
