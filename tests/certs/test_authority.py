"""The authority: what it refuses, what it issues, and that TLS itself accepts it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from blazen_certs import Authority, CertificateError, IssuedIdentity, RootKeys, StoreError
from blazen_certs.pem import certificates_pem
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

ISSUING = "issuing/mesh/v1"


def test_created_and_opened_are_the_same(store: Path, now: datetime) -> None:
    """What ``open`` reads is what ``create`` made, trust domain included."""
    created = Authority.create(store, "mesh.test", now=now)
    opened = Authority.open(store)
    assert (opened.trust(), opened.trust_domain) == (created.trust(), "mesh.test")


def test_second_creation_is_refused(authority: Authority, now: datetime) -> None:
    """A CA is never overwritten, not even by one for another trust domain."""
    before = (authority.directory / "root/v1/root.key").read_bytes()
    with pytest.raises(StoreError, match="already holds a CA"):
        Authority.create(authority.directory, "other.test", now=now)
    assert (authority.directory / "root/v1/root.key").read_bytes() == before


@pytest.mark.parametrize(
    "trust_domain",
    [
        pytest.param("", id="empty"),
        pytest.param("Mesh.Test", id="upper-case"),
        pytest.param("mesh test", id="space"),
        pytest.param("mesh..test", id="empty-label"),
        pytest.param("spiffe://mesh.test", id="a-uri"),
        pytest.param("mesh.test\n", id="newline"),
        pytest.param("a" * 64, id="label-too-long"),
    ],
)
def test_trust_domain_is_refused(store: Path, now: datetime, trust_domain: str) -> None:
    """A text that is no trust domain makes no CA, and no directory."""
    with pytest.raises(ValidationError):
        Authority.create(store, trust_domain, now=now)
    assert not store.exists()


def test_nothing_to_open(store: Path) -> None:
    """Where there is no CA, the error says how to make one."""
    with pytest.raises(StoreError, match=r"there is no CA in .*blazen-certs init"):
        Authority.open(store)


def test_store_of_the_first_version(store: Path) -> None:
    """A CA without issuing CAs, as version 0.1.0 made it, is named as such; it is neither used nor overwritten."""
    (store / "ca").mkdir(parents=True)
    (store / "ca" / "ca.crt").write_text("what it was")
    with pytest.raises(StoreError, match=r"holds a CA of version 0\.1\.0"):
        Authority.open(store)
    with pytest.raises(StoreError, match="already holds a CA"):
        Authority.create(store, "mesh.test")
    assert (store / "ca" / "ca.crt").read_text() == "what it was"


def test_certificate_without_key_cannot_issue(authority: Authority) -> None:
    """On a machine that has only the CA's certificate, the error says that the key is what is missing."""
    (authority.directory / ISSUING / "ca.key").unlink()
    with pytest.raises(StoreError, match="key is not in"):
        Authority.open(authority.directory)


def test_key_open_to_others_is_refused(authority: Authority) -> None:
    """As ssh does: a CA key that others may read is not used."""
    (authority.directory / ISSUING / "ca.key").chmod(0o640)
    with pytest.raises(StoreError, match="0640, open to other users: run chmod 600"):
        Authority.open(authority.directory)


def test_key_of_another_ca_is_refused(authority: Authority, now: datetime, tmp_path: Path) -> None:
    """A CA's certificate beside another's key issues nothing."""
    other = Authority.create(tmp_path / "other", "mesh.test", now=now)
    shutil.copy(other.directory / ISSUING / "ca.key", authority.directory / ISSUING / "ca.key")
    with pytest.raises(CertificateError, match="key: the private key is another's"):
        Authority.open(authority.directory)


def test_leaf_as_ca_is_refused(authority: Authority, now: datetime) -> None:
    """A node's certificate and key put in the CA's place issue nothing: it names a node, not a trust domain."""
    node = authority.issue("analyst", now=now)
    (authority.directory / ISSUING / "ca.crt").write_bytes(certificates_pem([node.certificate]))
    shutil.copy(node.key_path, authority.directory / ISSUING / "ca.key")
    with pytest.raises(StoreError, match="no issuing CA of a trusted root"):
        Authority.open(authority.directory)


def test_two_certificates_in_the_ca_file(authority: Authority) -> None:
    """``ca.crt`` holds one certificate, so that nobody wonders which one issues."""
    (authority.directory / ISSUING / "ca.crt").write_bytes(certificates_pem(authority.trust().issuer_certificates * 2))
    with pytest.raises(ValidationError, match="expected one certificate, found 2"):
        Authority.open(authority.directory)


def test_key_is_not_in_the_repr(authority: Authority) -> None:
    """An authority in a log line shows no key and no passphrase."""
    shown = repr(Authority.open(authority.directory, keys=RootKeys(passphrase=b"open sesame")))
    assert "sesame" not in shown
    assert "PrivateKey" not in shown


@pytest.mark.parametrize("node_id", ["", "../ca", "a/b", "-a", ".hidden", "a\n"])
def test_node_id_that_is_none_writes_nothing(authority: Authority, now: datetime, node_id: str) -> None:
    """A node id is a name, never a path."""
    with pytest.raises(ValidationError):
        authority.issue(node_id, now=now)
    assert not (authority.directory / "nodes").exists()


def test_issued_identity(authority: Authority, now: datetime) -> None:
    """``issue`` says where the files are; the paths stay right when a new version comes."""
    first = authority.issue("analyst", now=now, lifetime=timedelta(hours=2), dns_names=["a.mesh.test", "b.mesh.test"])
    assert first.path == authority.directory / "nodes" / "analyst"
    assert (first.peer, first.version) == (PeerId("mesh.test", "analyst"), 1)
    assert first.certificate.not_valid_after_utc == now + timedelta(hours=2)
    issuing, roots = authority.trust().issuer_certificates, authority.trust().root_certificates
    assert first.certificate_path.read_bytes() == certificates_pem([first.certificate, *issuing])
    assert first.bundle_path.read_bytes() == certificates_pem(roots)
    assert first.crl_path.read_bytes() == authority.trust().crl_pem
    second = authority.issue("analyst", now=now)
    assert first.certificate_path.read_bytes() == certificates_pem([second.certificate, *issuing])
    assert second.certificate.serial_number != first.certificate.serial_number
    assert second.certificate.public_key() != first.certificate.public_key()


def test_checks_stand_in_front_of_the_disk(authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished certificate that is not right is not written: here, one whose builder forgot a purpose."""
    monkeypatch.setattr("blazen_certs.profile.LEAF_PURPOSES", (ExtendedKeyUsageOID.SERVER_AUTH,))
    with pytest.raises(CertificateError, match="purpose"):
        authority.issue("analyst", now=now)
    assert not (authority.directory / "nodes").exists()


def handshake(server: IssuedIdentity, client: IssuedIdentity) -> str:
    """Return the protocol of a mutual handshake between two identities, in memory."""
    contexts = []
    for identity, purpose in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(identity.certificate_path, identity.key_path)
        context.load_verify_locations(identity.bundle_path)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        contexts.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = contexts[0].wrap_bio(to_server, to_client, server_side=True)
    calling = contexts[1].wrap_bio(to_client, to_server, server_hostname=f"{server.peer.node_id}.{server.peer.trust_domain}")
    pending = [calling, serving]
    for _ in range(20):
        for end in list(pending):
            try:
                end.do_handshake()
                pending.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not pending:
            return str(serving.version())
    raise AssertionError("the handshake does not end")


def test_tls_accepts_two_identities(store: Path) -> None:
    """Two nodes of one CA complete a mutual TLS 1.3 handshake; OpenSSL checks chain and name, strictly."""
    authority = Authority.create(store, "mesh.test")
    assert handshake(authority.issue("analyst"), authority.issue("intake")) == "TLSv1.3"


def test_tls_refuses_another_ca(store: Path, tmp_path: Path) -> None:
    """A node of a second CA for the same trust domain is refused."""
    analyst = Authority.create(store, "mesh.test").issue("analyst")
    intake = Authority.create(tmp_path / "other", "mesh.test").issue("intake")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(analyst, intake)


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        pytest.param(timedelta(days=-2), "certificate has expired", id="expired"),
        pytest.param(timedelta(days=2), "certificate is not yet valid", id="not-yet-valid"),
    ],
)
def test_tls_refuses_other_times(store: Path, offset: timedelta, reason: str) -> None:
    """An identity that was issued for another time is refused today: what other tests need is easily made."""
    today = datetime.now(UTC)
    authority = Authority.create(store, "mesh.test", now=today - timedelta(days=3))
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        handshake(authority.issue("analyst", now=today + offset), authority.issue("intake"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_verifies_the_chain(store: Path, purpose: str) -> None:
    """The openssl command, in its strict mode, accepts the files for both ends."""
    identity = Authority.create(store, "mesh.test").issue("analyst")
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
    command += [
        "-CAfile",
        str(identity.bundle_path),
        "-untrusted",
        str(identity.certificate_path),
        str(identity.certificate_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
