"""The authority: makes a CA in a directory, and issues identities from it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import store
from blazen_certs.checks import check_bundle, check_leaf, check_root, require, trust_domain_of
from blazen_certs.errors import StoreError
from blazen_certs.pem import certificates_pem, load_certificates, load_private_key, private_key_pem, read_pem_file, split_pem
from blazen_certs.profile import DEFAULT_LEAF_LIFETIME, LeafRequest, build_leaf, build_root
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Authority", "IssuedIdentity", "read_authority_certificate"]


@dataclass(frozen=True, slots=True)
class IssuedIdentity:
    """What ``Authority.issue`` wrote.

    Attributes:
        path: ``nodes/<node>``: the directory that a sidecar watches, and that is mounted.
        peer: The name that the certificate proves.
        version: The number of the version that is current now.
        certificate: The leaf.
    """

    path: Path
    peer: PeerId
    version: int
    certificate: x509.Certificate

    @property
    def certificate_path(self) -> Path:
        """The leaf (and its issuing chain) by way of the link, so that it stays right after another ``issue``."""
        return self.path / store.CURRENT / store.CERTIFICATE

    @property
    def key_path(self) -> Path:
        """The private key, by way of the link."""
        return self.path / store.CURRENT / store.KEY

    @property
    def bundle_path(self) -> Path:
        """The trusted CAs, by way of the link."""
        return self.path / store.CURRENT / store.BUNDLE


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA in a directory. Make one with ``create`` or ``open``.

    Attributes:
        directory: The store.
        certificate: The CA's own.
        trust_domain: The host of every identity that it issues.
    """

    directory: Path
    certificate: x509.Certificate
    trust_domain: str
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, directory: Path, trust_domain: str, *, now: datetime | None = None) -> Authority:
        """Make a root CA for *trust_domain* under *directory*, which is made where it is not there.

        Args:
            directory: The store; ``ca/`` in it must not be there yet.
            trust_domain: A lower-case DNS name.
            now: The moment to make it for, timezone-aware; None is the clock's.

        Raises:
            ValidationError: The trust domain is not a name, or *now* has no time zone.
            StoreError: There is a CA already.
            OSError: The disk, or the rights, do not allow it.
        """
        home = store.ca_directory(directory)
        PeerId(trust_domain, "any")
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise _already_there(home)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = build_root(trust_domain, key.public_key(), serial=x509.random_serial_number(), now=now or datetime.now(UTC))
        pem = certificates_pem([builder.sign(key, hashes.SHA256())])
        certificate = load_certificates(split_pem(pem, store.CA_CERTIFICATE))[0]
        require(check_root(certificate, trust_domain=trust_domain, public_key=key.public_key()))
        try:
            store.create_directory_whole(home, {store.CA_KEY: private_key_pem(key), store.CA_CERTIFICATE: pem})
        except StoreError as error:
            raise _already_there(home) from error
        return cls(directory, certificate, trust_domain, key)

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """Return the authority that ``create`` made under *directory*.

        Raises:
            StoreError: There is none, or its key is open to other users.
            ValidationError: Its files do not decode.
            CertificateError: Its certificate is not a root for this key.
            OSError: Its files cannot be read.
        """
        home = store.ca_directory(directory)
        certificate = read_authority_certificate(directory)
        key_path = home / store.CA_KEY
        if certificate is None or not key_path.exists():
            what = "the CA's key is not in" if certificate is not None else "there is no CA in"
            raise StoreError(
                f"{what} {home}: make one with blazen-certs init --trust-domain NAME, or name the store with --dir"
            )
        mode = stat.S_IMODE(key_path.stat().st_mode)
        if mode & 0o077:
            raise StoreError(f"{key_path} has mode {mode:04o}, open to other users: run chmod 600 {key_path}")
        blocks = read_pem_file(key_path)
        key = load_private_key(blocks[0])
        if len(blocks) != 1 or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValidationError(f"{key_path}: expected one P-256 private key")
        trust_domain = trust_domain_of(certificate)
        require(check_root(certificate, trust_domain=trust_domain, public_key=key.public_key()))
        return cls(directory, certificate, trust_domain, key)

    def issue(
        self,
        node_id: str,
        *,
        now: datetime | None = None,
        lifetime: timedelta = DEFAULT_LEAF_LIFETIME,
        dns_names: Sequence[str] = (),
    ) -> IssuedIdentity:
        """Make a key and a certificate for *node_id*, check them, and make them the node's current ones.

        Args:
            node_id: The node.
            now: The moment to issue for, timezone-aware and within the CA's life; None is the clock's. For a certificate
                that has expired by today, make the CA with a *now* in the past too.
            lifetime: How long after *now* it ends, at most 90 days; it ends with the CA where that is sooner.
            dns_names: In place of ``<node>.<trust domain>``.

        Raises:
            ValidationError: A name, the lifetime or *now* is not usable.
            CertificateError: The finished certificate failed its checks; nothing was written.
            StoreError: Another process holds the node's directory.
            OSError: The disk, or the rights, do not allow it.
        """
        moment = now or datetime.now(UTC)
        request = LeafRequest(PeerId(self.trust_domain, node_id), tuple(dns_names), lifetime)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = build_leaf(request, key.public_key(), issuer=self.certificate, serial=x509.random_serial_number(), now=moment)
        chain_pem = certificates_pem([builder.sign(self._key, hashes.SHA256())])
        bundle_pem = certificates_pem([self.certificate])
        key_pem = private_key_pem(key)
        # What is checked is what will be read: the very bytes that are about to be written.
        chain = load_certificates(split_pem(chain_pem, store.CERTIFICATE))
        anchors = load_certificates(split_pem(bundle_pem, store.BUNDLE))
        public_key = load_private_key(split_pem(key_pem, store.KEY)[0]).public_key()
        fix = "nothing was written; please report it"
        checks = check_leaf(
            chain, anchors, at=moment, node_id=node_id, trust_domain=self.trust_domain, public_key=public_key, fix=fix
        )
        require([check_bundle(anchors, must_hold=self.certificate, fix=fix), *checks])
        path = store.node_directory(self.directory, node_id)
        version = store.publish_version(path, {store.CERTIFICATE: chain_pem, store.KEY: key_pem, store.BUNDLE: bundle_pem})
        return IssuedIdentity(path, request.peer, version, chain[0])


def read_authority_certificate(directory: Path) -> x509.Certificate | None:
    """Return the CA's certificate of the store at *directory*, or None where it has none.

    Raises:
        ValidationError: The file is not exactly one certificate.
        OSError: It cannot be read.
    """
    path = store.ca_directory(directory) / store.CA_CERTIFICATE
    if not path.exists():
        return None
    certificates = load_certificates(read_pem_file(path))
    if len(certificates) != 1:
        raise ValidationError(f"{path}: expected one certificate, found {len(certificates)}")
    return certificates[0]


def _already_there(home: Path) -> StoreError:
    return StoreError(
        f"{home} already holds a CA: issue from it, or name another store with --dir; "
        "every identity of it becomes worthless when it is removed"
    )
