"""The authority: a root and its issuing CAs in a directory, and the identities that they issue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import store
from blazen_certs.checks import check_bundle, check_leaf, check_lists, require
from blazen_certs.crl import is_revoked
from blazen_certs.errors import StoreError
from blazen_certs.facts import uris_of
from blazen_certs.issued import read_issued, record_issued
from blazen_certs.issuing import create_authority, sign_lists
from blazen_certs.keys import RootKeys, load_issuing_key
from blazen_certs.pem import certificates_pem, load_certificates, private_key_pem, split_pem
from blazen_certs.profile import DEFAULT_LEAF_LIFETIME, LeafRequest, build_leaf, check_time
from blazen_certs.publish import Material, publish_identity
from blazen_certs.trust import Trust, read_trust
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId, check_node_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

__all__ = ["Authority", "IssuedIdentity", "SignedIdentity"]


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """A certificate for a key that the authority never saw, with what its owner must trust and refuse.

    Attributes:
        peer: The name that the certificate proves.
        certificate: The leaf.
        chain_pem: The leaf and its issuing CA: ``tls.crt``.
        bundle_pem: The roots: ``bundle.crt``.
        crl_pem: One revocation list for each issuing CA: ``crl.pem``.
    """

    peer: PeerId
    certificate: x509.Certificate
    chain_pem: bytes
    bundle_pem: bytes
    crl_pem: bytes


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
        """The leaf and its issuing CA by way of the link, so that it stays right after another ``issue``."""
        return self.path / store.CURRENT / store.CERTIFICATE

    @property
    def key_path(self) -> Path:
        """The private key, by way of the link."""
        return self.path / store.CURRENT / store.KEY

    @property
    def bundle_path(self) -> Path:
        """The trusted roots, by way of the link."""
        return self.path / store.CURRENT / store.BUNDLE

    @property
    def crl_path(self) -> Path:
        """The revocation lists, by way of the link."""
        return self.path / store.CURRENT / store.CRL


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority in a directory. Make one with ``create`` or ``open``; it reads the directory afresh at each call.

    Attributes:
        directory: The store.
        trust_domain: The mesh's; a region's own is ``<region>.<trust domain>``.
        keys: Where the roots' keys are.
    """

    directory: Path
    trust_domain: str
    keys: RootKeys = field(default_factory=RootKeys)

    @classmethod
    def create(
        cls,
        directory: Path,
        trust_domain: str,
        *,
        regions: Sequence[str] = (),
        keys: RootKeys | None = None,
        now: datetime | None = None,
    ) -> Authority:
        """Make a root for *trust_domain* under *directory*, and an issuing CA for each region.

        Args:
            directory: The store; made where it is not there, and no authority may be in it yet.
            trust_domain: A lower-case DNS name.
            regions: Such as ``eu``, whose identities are then ``spiffe://eu.<trust domain>/peer/...``. None at all makes one
                issuing CA for the trust domain itself.
            keys: Where the root's key goes, and its passphrase; None: into the store, not encrypted.
            now: The moment to make it for, timezone-aware; None is the clock's.

        Raises:
            ValidationError: A name is not one, or *now* has no time zone.
            StoreError: There is an authority already.
            OSError: The disk, or the rights, do not allow it.
        """
        keys = keys or RootKeys()
        create_authority(directory, trust_domain, tuple(regions), keys, now=now or datetime.now(UTC))
        return cls(directory, trust_domain, keys)

    @classmethod
    def open(cls, directory: Path, *, keys: RootKeys | None = None) -> Authority:
        """Return the authority that ``create`` made under *directory*.

        Raises:
            StoreError: There is none, no issuing CA's key is here, or one is open to other users.
            ValidationError: Its files do not decode.
            CertificateError: A CA's certificate is not what it must be, or its key is another's.
            OSError: Its files cannot be read.
        """
        trust = read_trust(directory)
        if trust is None:
            raise _no_authority(directory)
        issuing = [trust.issuer(region) for region in trust.regions]
        if not any(issuer.has_key for issuer in issuing):
            raise StoreError(f"the CA's key is not in {issuing[0].directory}: issue on the machine that has it")
        for issuer in issuing:
            if issuer.has_key:
                load_issuing_key(issuer)
        return cls(directory, trust.trust_domain, keys or RootKeys())

    def trust(self) -> Trust:
        """Return roots, issuing CAs and lists as they are on disk now.

        Raises: as ``read_trust``; ``StoreError`` too where there is no authority any more.
        """
        trust = read_trust(self.directory)
        if trust is None:
            raise _no_authority(self.directory)
        return trust

    def fresh_trust(self, now: datetime) -> Trust:
        """Return what ``trust`` does, once the lists that are due at *now* were signed again."""
        trust = self.trust()
        return self.trust() if sign_lists(trust, now=now) else trust

    def sign(
        self,
        node_id: str,
        public_key: CertificatePublicKeyTypes,
        *,
        now: datetime | None = None,
        lifetime: timedelta = DEFAULT_LEAF_LIFETIME,
        dns_names: Sequence[str] = (),
        region: str | None = None,
    ) -> SignedIdentity:
        """Return a certificate for *node_id* and *public_key*, checked and recorded. Nothing is published.

        Args:
            node_id: The node.
            public_key: The node's, P-256; its private half stays where it was made.
            now: The moment to issue for, timezone-aware and within the issuing CA's life; None is the clock's.
            lifetime: How long after *now* it ends, at most 90 days; it ends with the issuing CA where that is sooner.
            dns_names: In place of ``<node>.<trust domain>``.
            region: Whose issuing CA; None takes the node's own, or the only one.

        Raises:
            ValidationError: A name, the key, the lifetime, the region or *now* is not usable.
            CertificateError: The finished certificate failed its checks; nobody has it.
            StoreError: The issuing CA's key is not on this machine.
            OSError: The disk, or the rights, do not allow it.
        """
        moment = check_time(now or datetime.now(UTC))
        trust = self.fresh_trust(moment)
        issuer = trust.issuer(self._region_of(check_node_id(node_id), trust, region))
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise ValidationError("the public key is not on the curve P-256, which every sidecar accepts")
        peer = PeerId(issuer.trust_domain, node_id)
        request = LeafRequest(peer, tuple(dns_names), lifetime)
        serial = x509.random_serial_number()
        builder = build_leaf(request, public_key, issuer=issuer.certificate, serial=serial, now=moment)
        leaf = builder.sign(load_issuing_key(issuer), hashes.SHA256())
        chain_pem = certificates_pem([leaf, issuer.certificate])
        # What is checked is what will be read: the very bytes that are handed out.
        chain = load_certificates(split_pem(chain_pem, store.CERTIFICATE))
        anchors = load_certificates(split_pem(trust.bundle_pem, store.BUNDLE))
        fix = "nobody has it; please report it"
        lists = [item.crl for item in trust.issuers]
        checks = check_leaf(
            chain,
            anchors,
            at=moment,
            node_id=node_id,
            trust_domain=issuer.trust_domain,
            public_key=public_key,
            fix=fix,
            lists=lists,
        )
        of_present = [item.certificate for item in trust.issuers_at(moment)]
        require(
            [
                check_bundle(anchors, must_hold=trust.root_certificates, fix=fix),
                *checks,
                check_lists(lists, of_present, at=moment, fix=fix),
            ]
        )
        record_issued(self.directory, node_id, chain[0], now=moment)
        return SignedIdentity(peer, chain[0], chain_pem, trust.bundle_pem, trust.crl_pem)

    def issue(
        self,
        node_id: str,
        *,
        now: datetime | None = None,
        lifetime: timedelta = DEFAULT_LEAF_LIFETIME,
        dns_names: Sequence[str] = (),
        region: str | None = None,
    ) -> IssuedIdentity:
        """Make a key and a certificate for *node_id*, check them, and make them the node's current ones.

        Arguments and errors are those of ``sign``. For a certificate that has expired by today, make the authority with a
        *now* in the past too.

        Raises:
            StoreError: Another process holds the node's directory.
        """
        moment = check_time(now or datetime.now(UTC))
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self.sign(node_id, key.public_key(), now=moment, lifetime=lifetime, dns_names=tuple(dns_names), region=region)
        path = store.node_directory(self.directory, node_id)
        material = Material(signed.chain_pem, private_key_pem(key), signed.bundle_pem, signed.crl_pem)
        version = publish_identity(path, material, node_id=node_id, trust_domain=signed.peer.trust_domain, now=moment)
        return IssuedIdentity(path, signed.peer, version, signed.certificate)

    def is_revoked(self, certificate: x509.Certificate) -> bool:
        """Return whether the list of the CA that issued *certificate* names it."""
        issuer = self.trust().issuer_of(certificate)
        return issuer is not None and is_revoked(certificate.serial_number, issuer.crl)

    def _region_of(self, node_id: str, trust: Trust, wanted: str | None) -> str:
        """Return the region to issue *node_id* from: the one it has, since a name belongs to one region for good."""
        own = next((_region(certificate, trust) for certificate in reversed(read_issued(self.directory, node_id))), None)
        if own is not None and wanted is not None and own != wanted:
            raise ValidationError(f"{node_id} is of region {own}: give the node of region {wanted} another name")
        return trust.issuer(wanted or own).region


def _region(certificate: x509.Certificate, trust: Trust) -> str | None:
    trust_domain = PeerId.parse(uris_of(certificate)[0]).trust_domain
    return next((item.region for item in trust.issuers if item.trust_domain == trust_domain), None)


def _no_authority(directory: Path) -> StoreError:
    if (directory / "ca" / "ca.crt").exists():
        return StoreError(f"{directory} holds a CA of version 0.1.0, without issuing CAs: make a new one, in another --dir")
    return StoreError(
        f"there is no CA in {directory}: make one with blazen-certs init --trust-domain NAME, or name it with --dir"
    )
