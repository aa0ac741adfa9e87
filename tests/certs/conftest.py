"""Identities for the tests: an authority at a fixed time, and a forge for certificates that no authority of ours would make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from blazen_certs import Authority
from blazen_certs.cli import main
from blazen_certs.keys import load_issuing_key

NOW = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)
URI = "spiffe://mesh.test/peer/analyst"
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Outcome:
    """What one run of the command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def now() -> datetime:
    """The time at which the authority and its leaves are made."""
    return NOW


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory for a store, not there yet."""
    return tmp_path / "certs"


@pytest.fixture
def authority(store: Path) -> Authority:
    """The CA of ``mesh.test``, made at ``now``."""
    return Authority.create(store, "mesh.test", now=NOW)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*argv: str) -> Outcome:
        code = main(argv)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def forge(authority: Authority) -> Callable[..., tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]:
    """Sign a leaf by the issuing CA's own key, right in all but what the arguments change. Returns it with its key."""
    issuer = authority.trust().issuer()
    issuer_key = load_issuing_key(issuer)

    def make(
        *,
        uris: Sequence[str] = (URI,),
        dns_names: Sequence[str] = ("analyst.mesh.test",),
        san_critical: bool = True,
        subject: str = "",
        ca: bool = False,
        digital_signature: bool = True,
        usage_critical: bool = True,
        cert_sign: bool = False,
        purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        start: datetime = NOW - timedelta(minutes=2),
        end: datetime = NOW + DAY,
        curve: ec.EllipticCurve | None = None,
        signer: CertificateIssuerPrivateKeyTypes = issuer_key,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns_names]
        usage = x509.KeyUsage(digital_signature, False, False, False, False, cert_sign, False, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name.from_rfc4514_string(subject) if subject else x509.Name([]))
            .issuer_name(issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=usage_critical)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=san_critical)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return builder.sign(signer, hashes.SHA256()), key

    return make
