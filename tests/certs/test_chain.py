"""The path from a leaf to a root: one wrong thing at a time, and the same verdict as OpenSSL's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from blazen_certs.chain import ChainError, find_chain
from blazen_certs.pem import certificates_pem

NODE = "spiffe://eu.mesh.test/peer/analyst"


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@dataclass(frozen=True)
class Case:
    """How a chain of root, issuing CA and leaf differs from a right one."""

    permitted: Sequence[x509.GeneralName] = (uri("eu.mesh.test"),)
    excluded: Sequence[x509.GeneralName] | None = None
    constraint_critical: bool = True
    names: Sequence[x509.GeneralName] = (uri(NODE), x509.DNSName("analyst.eu.mesh.test"))
    issuing_is_ca: bool = True
    issuing_may_sign: bool = True
    root_path_length: int | None = 1
    issuing_ended: bool = False
    unknown_critical: bool = False
    another_issuing_key: bool = False
    send_issuing: bool = True
    below: bool = False  # another CA between the issuing CA and the leaf


CASES = [
    pytest.param(Case(), None, id="right"),
    pytest.param(Case(names=[uri("spiffe://us.mesh.test/peer/analyst")]), "outside what", id="other-region"),
    pytest.param(Case(names=[uri("spiffe://mesh.test/peer/analyst")]), "outside what", id="parent"),
    pytest.param(Case(names=[uri("spiffe://x.eu.mesh.test/peer/analyst")]), "outside what", id="child"),
    pytest.param(Case(names=[uri(NODE), uri("spiffe://us.mesh.test/peer/a")]), "outside what", id="a-second-name"),
    pytest.param(Case(names=[uri("spiffe://EU.mesh.test/peer/analyst")]), None, id="case-of-the-host"),
    pytest.param(Case(names=[x509.DNSName("a.us.mesh.test")]), None, id="dns-is-not-constrained"),
    pytest.param(Case(constraint_critical=False, names=[uri("spiffe://us.mesh.test/peer/a")]), "outside", id="not-critical"),
    pytest.param(Case(permitted=[uri(".mesh.test")]), None, id="below-a-dot"),
    pytest.param(Case(excluded=[uri("eu.mesh.test")]), "outside what", id="excluded"),
    pytest.param(Case(permitted=[x509.DNSName("eu.mesh.test")]), None, id="dns-constraint-admits"),
    pytest.param(Case(permitted=[x509.DNSName("us.mesh.test")]), "outside what", id="dns-constraint-refuses"),
    pytest.param(Case(issuing_is_ca=False), "is not a CA", id="issuing-is-a-leaf"),
    pytest.param(Case(issuing_may_sign=False), "is not a CA", id="issuing-may-not-sign"),
    pytest.param(Case(root_path_length=0), "allows 0 CAs below it", id="path-length"),
    pytest.param(Case(below=True), "allows 0 CAs below it", id="a-ca-below-the-issuing-ca"),
    pytest.param(Case(issuing_ended=True), "is valid from", id="issuing-ca-ended"),
    pytest.param(Case(unknown_critical=True), "critical extension that is not known", id="unknown-critical"),
    pytest.param(Case(another_issuing_key=True), "the signature is not that CA's", id="forged-by-another-key"),
    pytest.param(Case(send_issuing=False), "which is not in the bundle", id="issuing-ca-not-sent"),
]


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def build(case: Case, now: datetime) -> tuple[x509.Certificate, list[x509.Certificate], x509.Certificate]:
    """Return leaf, what is sent with it, and the root."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]
    hour = timedelta(hours=1)

    def make(place: int, subject: str, issuer: str, signer: int, *extensions: tuple[Any, bool], ended: bool = False) -> Any:
        builder = x509.CertificateBuilder().subject_name(name(subject) if subject else x509.Name([])).issuer_name(name(issuer))
        builder = builder.public_key(keys[place].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - 2 * hour).not_valid_after(now - hour if ended else now + hour)
        key_ids = [
            (x509.SubjectKeyIdentifier.from_public_key(keys[place].public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[signer].public_key()), False),
        ]
        for value, critical in [*key_ids, *extensions]:
            builder = builder.add_extension(value, critical)
        return builder.sign(keys[signer], hashes.SHA256())

    def usage(cert_sign: bool) -> tuple[Any, bool]:
        return x509.KeyUsage(not cert_sign, False, False, False, False, cert_sign, cert_sign, False, False), True

    root = make(0, "root", "root", 0, (x509.BasicConstraints(True, case.root_path_length), True), usage(True))
    basic = x509.BasicConstraints(True, 0) if case.issuing_is_ca else x509.BasicConstraints(False, None)
    constraint = x509.NameConstraints(case.permitted, case.excluded), case.constraint_critical
    between = [make(1, "issuing", "root", 0, (basic, True), usage(case.issuing_may_sign), constraint, ended=case.issuing_ended)]
    if case.below:
        between.insert(0, make(2, "below", "issuing", 1, (x509.BasicConstraints(True, None), True), usage(True)))
    more = [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)] if case.unknown_critical else []
    signer = 4 if case.another_issuing_key else 2 if case.below else 1
    leaf = make(
        3,
        "",
        "below" if case.below else "issuing",
        signer,
        (x509.SubjectAlternativeName(case.names), True),
        usage(False),
        *more,
    )
    return leaf, between if case.send_issuing else [], root


@pytest.mark.parametrize(("case", "reason"), CASES)
def test_one_wrong_thing_breaks_the_chain(case: Case, reason: str | None, now: datetime) -> None:
    """Each fault is refused with its reason; what is right is found whole."""
    leaf, between, root = build(case, now)
    if reason is None:
        assert find_chain(leaf, between, [root], at=now) == [leaf, *between, root]
    else:
        with pytest.raises(ChainError, match=reason):
            find_chain(leaf, between, [root], at=now)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
@pytest.mark.parametrize(("case", "reason"), CASES)
def test_openssl_says_the_same(case: Case, reason: str | None, now: datetime, tmp_path: Path) -> None:
    """OpenSSL's verifier accepts what is accepted here, and refuses what is refused."""
    leaf, between, root = build(case, now)
    for file, certificates in (("leaf", [leaf]), ("between", between), ("root", [root])):
        (tmp_path / file).write_bytes(certificates_pem(certificates))
    command = ["openssl", "verify", "-attime", str(int(now.timestamp())), "-CAfile", "root"]
    command += [*(["-untrusted", "between"] if between else []), "leaf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode == 0) is (reason is None), done.stderr


def test_root_comes_with_the_chain(now: datetime) -> None:
    """A root that is sent along changes nothing, and is not trusted for being sent."""
    leaf, between, root = build(Case(), now)
    assert find_chain(leaf, [*between, root], [root], at=now) == [leaf, *between, root]
    other = build(Case(), now)[2]
    with pytest.raises(ChainError):
        find_chain(leaf, [*between, root], [other], at=now)


def test_issuing_ca_in_the_bundle_is_an_anchor(now: datetime) -> None:
    """Who trusts an issuing CA itself needs no root; its name constraint holds all the same."""
    leaf, between, _ = build(Case(), now)
    assert find_chain(leaf, [], between, at=now) == [leaf, *between]
    foreign, cas, _ = build(Case(names=[uri("spiffe://us.mesh.test/peer/a")]), now)
    with pytest.raises(ChainError, match="outside what"):
        find_chain(foreign, [], cas, at=now)
