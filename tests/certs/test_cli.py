"""The command line: exit codes, one line on standard error, and output that scripts can read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from blazen_certs import Authority
from blazen_certs.pem import load_certificate, load_private_key, read_pem_file

Run = Callable[..., Any]
NODE = ".mesh/certs/nodes/analyst"


@pytest.fixture
def mesh(run: Run) -> Run:
    """The command, in a directory with a CA and the identity of ``analyst``."""
    assert run("init", "--trust-domain", "mesh.test").code == 0
    assert run("issue", "analyst").code == 0
    return run


def test_init_and_issue_say_what_they_made(run: Run, tmp_path: Path) -> None:
    """People see the trust domain, the files, the end of validity and the next command."""
    first = run("init", "--trust-domain", "mesh.test")
    assert (first.code, first.err) == (0, "")
    for text in (
        "made the CA of mesh.test",
        ".mesh/certs/root/v1/root.crt",
        ".mesh/certs/root/v1/root.key",
        ".mesh/certs/issuing/mesh/v1",
        "next: blazen-certs issue NODE",
    ):
        assert text in first.out
    second = run("issue", "analyst")
    assert (second.code, second.err) == (0, "")
    for text in ("spiffe://mesh.test/peer/analyst", f"{NODE}/current -> v1", "(24 h 0 min)"):
        assert text in second.out
    assert (tmp_path / NODE / "current" / "tls.crt").exists()


def test_json_of_init_and_issue(run: Run) -> None:
    """Scripts get one object with the paths, the end and the fingerprint."""
    made = json.loads(run("init", "--trust-domain", "mesh.test", "--json").out)
    assert made["trust_domain"] == "mesh.test"
    assert set(made) == {"trust_domain", "certificate", "key", "encrypted", "not_after", "sha256", "issuing"}
    assert [(ca["region"], ca["trust_domain"]) for ca in made["issuing"]] == [(None, "mesh.test")]
    issued = json.loads(run("issue", "analyst", "--dns", "a.test", "--dns", "b.test", "--json").out)
    assert issued["spiffe_id"] == "spiffe://mesh.test/peer/analyst"
    assert (issued["directory"], issued["version"], issued["key"]) == (NODE, 1, f"{NODE}/current/tls.key")
    shown = json.loads(run("inspect", "analyst", "--json").out)["objects"]
    assert [item["dns_names"] for item in shown] == [["a.test", "b.test"], []]
    assert (shown[0]["serial"], shown[0]["sha256"]) == (issued["serial"], issued["sha256"])


WRONG: list[Any] = [
    pytest.param(["init"], "Missing option '--trust-domain'", id="init-without-trust-domain"),
    pytest.param(["init", "--trust-domain", "Mesh"], "trust domain 'Mesh' is not valid", id="bad-trust-domain"),
    pytest.param(["init", "--trust-domain", "mesh.test"], "already holds a CA", id="init-again"),
    pytest.param(["issue"], "Missing argument 'NODE'", id="issue-without-node"),
    pytest.param(["issue", "../ca"], "node id '../ca' is not valid", id="node-is-a-path"),
    pytest.param(["issue", "a", "--dns", "*.x"], "'*.x' is not a DNS name", id="wildcard"),
    pytest.param(["issue", "a", "--lifetime-hours", "0"], "--lifetime-hours 0 is not allowed", id="lifetime-zero"),
    pytest.param(["issue", "a", "--lifetime-hours", "nan"], "--lifetime-hours nan is not allowed", id="lifetime-nan"),
    pytest.param(["issue", "a", "--lifetime-hours", "2161"], "at most 2160", id="lifetime-too-long"),
    pytest.param(["issue", "a", "--lifetime-hours", "day"], "Invalid value for '--lifetime-hours'", id="lifetime-a-word"),
    pytest.param(["issue", "a", "--dir", "nowhere"], "there is no CA in nowhere", id="no-store"),
    pytest.param(["inspect"], "Missing argument", id="inspect-nothing"),
    pytest.param(["inspect", "nobody"], "nobody is neither a file nor a node", id="inspect-nobody"),
    pytest.param(["inspect", "garbage.pem"], "no PEM in it", id="inspect-garbage"),
    pytest.param(["inspect", ".mesh"], ".mesh is a directory", id="inspect-directory"),
    pytest.param(["verify", "nobody"], "nobody is neither a node", id="verify-nobody"),
    pytest.param(["verify", "analyst", "--at", "soon"], "--at 'soon' is no time", id="at-a-word"),
    pytest.param(["verify", "analyst", "--frob"], "No such option", id="unknown-option"),
    pytest.param(
        ["init", "--trust-domain", "x.test", "--region", "EU", "--dir", "n"], "region 'EU' is not valid", id="bad-region"
    ),
    pytest.param(
        ["init", "--trust-domain", "x.test", "--region", "mesh", "--dir", "n"], "'mesh' is not valid", id="region-mesh"
    ),
    pytest.param(["issue", "a", "--region", "eu"], "there is no region 'eu' in this mesh; its regions: none", id="no-regions"),
    pytest.param(["renew", "--dir", "nowhere"], "there is no CA in nowhere", id="renew-no-store"),
    pytest.param(["renew", "analyst", "--issuing"], "--issuing takes neither nodes", id="renew-issuing-a-node"),
    pytest.param(["renew", "--sidecar", "b=x"], "--sidecar b=x: b is none of analyst", id="sidecar-of-nobody"),
    pytest.param(["needs-renewal", "nobody"], "nobody has no identity in", id="needs-renewal-nobody"),
    pytest.param(["revoke"], "say what to revoke", id="revoke-nothing"),
    pytest.param(["revoke", "a", "--serial", "1"], "say what to revoke", id="revoke-two-things"),
    pytest.param(["revoke", "nobody"], "nothing was ever issued to nobody", id="revoke-nobody"),
    pytest.param(["revoke", "--serial", "xyz"], "--serial 'xyz' is no serial number", id="serial-no-number"),
    pytest.param(["rotate-root", "back"], "Invalid value for '[next|status]'", id="rotate-backwards"),
    pytest.param(["frob"], "No such command 'frob'", id="unknown-command"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_wrong_use_is_one_line_and_exit_2(mesh: Run, tmp_path: Path, argv: list[str], message: str) -> None:
    """What the user got wrong is said in one line on standard error, without a traceback, and nothing on standard output."""
    (tmp_path / "garbage.pem").write_bytes(b"\x00\x01 garbage")
    outcome = mesh(*argv)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("blazen-certs: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_wrong_use_as_json(mesh: Run) -> None:
    """With --json a script finds the kind and the message on standard output as well."""
    outcome = mesh("verify", "nobody", "--json")
    assert outcome.code == 2
    assert json.loads(outcome.out)["error"]["kind"] == "Store"


def test_unreadable_directory_is_one_line(mesh: Run, tmp_path: Path) -> None:
    """A store that is a file, not a directory, is an expected error too."""
    (tmp_path / "file").write_text("")
    outcome = mesh("init", "--trust-domain", "mesh.test", "--dir", "file/certs")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(mesh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not expected is not made into a friendly line."""
    monkeypatch.setattr(Authority, "open", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mesh("issue", "analyst")


COMMANDS = [
    "init", "issue", "renew", "needs-renewal", "watch", "revoke", "crl", "rotate-root", "status", "inspect", "verify",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(run: Run, command: str) -> None:
    """Each command's help holds a line that can be copied."""
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert f"blazen-certs {command} " in outcome.out.split("Example")[1]


def test_no_arguments_shows_the_help(run: Run) -> None:
    """Alone, the command shows what it can do, and says that nothing was done."""
    outcome = run()
    assert outcome.code == 2
    for command in COMMANDS:
        assert command in outcome.out


def test_inspect_shows_what_the_certificate_says(mesh: Run, tmp_path: Path) -> None:
    """Name, DNS name, serial, dates, purposes and the fingerprint that Envoy writes as Hash=."""
    certificate = load_certificate(read_pem_file(tmp_path / NODE / "current/tls.crt")[0])
    shown = mesh("inspect", "analyst").out
    for text in (
        "spiffe://mesh.test/peer/analyst",
        "analyst.mesh.test",
        f"{certificate.serial_number:x}",
        f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "digitalSignature, serverAuth, clientAuth",
        "P-256",
        certificate.fingerprint(hashes.SHA256()).hex(),
        "23 h 59 min",
    ):
        assert text in shown


def test_inspect_tells_ca_from_leaf_and_joins_key_to_certificate(mesh: Run) -> None:
    """Several files in one call; a key's hash equals that of its certificate."""
    objects = json.loads(mesh("inspect", "analyst", f"{NODE}/current/tls.key", f"{NODE}/current/bundle.crt", "--json").out)[
        "objects"
    ]
    leaf, issuing, key, root = objects
    assert [item["kind"] for item in objects] == ["certificate", "certificate", "private-key", "certificate"]
    assert (leaf["ca"], issuing["ca"], root["ca"]) == (False, True, True)
    assert leaf["public_key_sha256"] == key["public_key_sha256"] != root["public_key_sha256"]
    assert issuing["spiffe_id"] == root["spiffe_id"] == "spiffe://mesh.test"


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_never_shows_a_key(mesh: Run, tmp_path: Path, as_json: bool) -> None:
    """Of a private key its kind and the public half's hash are shown, nothing of the key."""
    path = tmp_path / NODE / "current/tls.key"
    key = load_private_key(read_pem_file(path)[0])
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    shown = mesh("inspect", str(path), *(["--json"] if as_json else [])).out
    assert "P-256" in shown
    secret = key.private_numbers().private_value
    for text in (*path.read_text().splitlines()[1:-1], f"{secret:x}", str(secret)):
        assert text not in shown


def test_inspect_reads_every_kind(mesh: Run, tmp_path: Path) -> None:
    """A CRL, a request, a public key, an encrypted key and openssl's EC parameters in one file are all understood."""
    key = load_private_key(read_pem_file(tmp_path / ".mesh/certs/root/v1/root.key")[0])
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    ca = load_certificate(read_pem_file(tmp_path / ".mesh/certs/root/v1/root.crt")[0])
    start = ca.not_valid_before_utc
    revoked = x509.RevokedCertificateBuilder().serial_number(0xABCDEF).revocation_date(start).build()
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(start)
        .next_update(ca.not_valid_after_utc)
        .add_extension(x509.CRLNumber(5), critical=False)
        .add_revoked_certificate(revoked)
        .sign(key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh.test/peer/new")])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    parts = [
        crl.public_bytes(Encoding.PEM),
        request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n",
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    ]
    (tmp_path / "all.pem").write_bytes(b"".join(parts))
    objects = json.loads(mesh("inspect", "all.pem", "--json").out)["objects"]
    assert [item["kind"] for item in objects] == ["crl", "request", "public-key", "private-key", "private-key"]
    assert objects[0]["number"] == 5
    assert objects[0]["revoked"] == [{"serial": "abcdef", "since": f"{start:%Y-%m-%dT%H:%M:%SZ}"}]
    assert objects[1]["spiffe_id"] == "spiffe://mesh.test/peer/new"
    assert [item["encrypted"] for item in objects[3:]] == [True, False]
    people = mesh("inspect", "all.pem").out
    for text in ("revocation list", "abcdef since", "signing request", "public key", "a sidecar cannot read it"):
        assert text in people


def test_inspect_does_not_let_a_name_steer_the_terminal(mesh: Run, tmp_path: Path) -> None:
    """Control characters in a stranger's certificate are shown as escapes, and markup as text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "\x1b[31m[red]evil")])
    ca = load_certificate(read_pem_file(tmp_path / ".mesh/certs/root/v1/root.crt")[0])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, ca.not_valid_before_utc, ca.not_valid_after_utc)
    (tmp_path / "evil.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    shown = mesh("inspect", "evil.pem").out
    assert "\x1b" not in shown
    assert "\\x1b[31m[red]evil" in shown


def test_file_and_node_of_one_name(mesh: Run, tmp_path: Path) -> None:
    """A bare name is the node where there is one; ./NAME is always the file."""
    (tmp_path / "analyst").write_bytes((tmp_path / ".mesh/certs/root/v1/root.crt").read_bytes())
    assert json.loads(mesh("inspect", "analyst", "--json").out)["objects"][0]["ca"] is False
    assert json.loads(mesh("inspect", "./analyst", "--json").out)["objects"][0]["ca"] is True


def test_inspect_shows_what_a_ca_may_name(mesh: Run) -> None:
    """Of a CA: how many CAs it may make below it, and which names it may give."""
    issuing, root = ".mesh/certs/issuing/mesh/v1/ca.crt", ".mesh/certs/root/v1/root.crt"
    found = json.loads(mesh("inspect", issuing, root, "--json").out)["objects"]
    assert (found[0]["path_length"], found[0]["may_name"], found[0]["names_critical"]) == (0, ["mesh.test"], True)
    assert (found[1]["path_length"], "may_name" in found[1]) == (1, False)
    shown = mesh("inspect", issuing).out
    assert "CAs below it  none" in shown
    assert "may name      mesh.test" in shown
