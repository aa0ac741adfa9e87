"""What everybody may know of an authority: its roots, its issuing CAs and their revocation lists. Without keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blazen_certs import store
from blazen_certs.checks import check_issuing, check_root, require, trust_domain_of
from blazen_certs.errors import StoreError
from blazen_certs.pem import certificates_pem, load_certificates, load_crl, read_pem_file
from blazen_certs.profile import WHOLE_MESH, region_trust_domain
from blazen_peer.errors import ValidationError

__all__ = ["Issuer", "Root", "Trust", "crls_pem", "read_trust"]


@dataclass(frozen=True, slots=True)
class Root:
    """A trusted root.

    Attributes:
        generation: 1 for the first, one more with each ``rotate-root``.
        certificate: Its own.
        directory: Where its certificate is in the store.
    """

    generation: int
    certificate: x509.Certificate
    directory: Path


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuing CA of a region.

    Attributes:
        region: The region, or ``mesh`` where there are none.
        version: Its number in the store.
        trust_domain: The host of every identity that it may issue.
        certificate: Its own.
        crl: Its revocation list.
        generation: That of the root it comes from.
        directory: Where its files are.
    """

    region: str
    version: int
    trust_domain: str
    certificate: x509.Certificate
    crl: x509.CertificateRevocationList
    generation: int
    directory: Path

    @property
    def has_key(self) -> bool:
        """Whether its key is on this machine."""
        return (self.directory / store.CA_KEY).exists()


@dataclass(frozen=True, slots=True)
class Trust:
    """Roots, issuing CAs and lists, as they stood on disk when they were read.

    Attributes:
        trust_domain: The mesh's.
        roots: Every trusted root, by generation.
        generation: That of the root which new issuing CAs come from.
        issuers: Every issuing CA that is still kept, by region and version.
        current: For each region the version that issues.
    """

    trust_domain: str
    roots: tuple[Root, ...]
    generation: int
    issuers: tuple[Issuer, ...]
    current: dict[str, int]

    @property
    def root(self) -> Root:
        """The root that new issuing CAs come from."""
        return next(root for root in self.roots if root.generation == self.generation)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions; ``("mesh",)`` where there are none."""
        return tuple(self.current)

    @property
    def bundle_pem(self) -> bytes:
        """What a node trusts: ``bundle.crt``."""
        return certificates_pem([root.certificate for root in self.roots])

    @property
    def crl_pem(self) -> bytes:
        """One list for each issuing CA: ``crl.pem``."""
        return crls_pem(issuer.crl for issuer in self.issuers)

    @property
    def root_certificates(self) -> list[x509.Certificate]:
        """The roots' certificates."""
        return [root.certificate for root in self.roots]

    @property
    def issuer_certificates(self) -> list[x509.Certificate]:
        """The issuing CAs' certificates."""
        return [issuer.certificate for issuer in self.issuers]

    def issuer(self, region: str | None = None) -> Issuer:
        """Return the issuing CA of *region*; None takes the only one.

        Raises:
            ValidationError: There is no such region, or it is None and there are several.
        """
        if region is None:
            if len(self.current) > 1:
                raise ValidationError(f"the mesh has the regions {', '.join(self.current)}: say which, with --region NAME")
            region = next(iter(self.current))
        if region not in self.current:
            known = ", ".join(self.current) if WHOLE_MESH not in self.current else "none"
            raise ValidationError(f"there is no region {region!r} in this mesh; its regions: {known}")
        return next(item for item in self.issuers if (item.region, item.version) == (region, self.current[region]))

    def issuers_at(self, moment: datetime) -> list[Issuer]:
        """Return the issuing CAs that are valid at *moment*."""
        return [
            item
            for item in self.issuers
            if item.certificate.not_valid_before_utc <= moment <= item.certificate.not_valid_after_utc
        ]

    def issuer_of(self, certificate: x509.Certificate) -> Issuer | None:
        """Return which of the issuing CAs names itself as that of *certificate*; None where none does."""
        return next((item for item in self.issuers if item.certificate.subject == certificate.issuer), None)


def read_trust(directory: Path) -> Trust | None:
    """Return what the store at *directory* says of its authority; None where it has none, as on a node's own machine.

    Raises:
        StoreError: A part of it is missing.
        ValidationError: A file does not decode.
        CertificateError: A CA's certificate is not what it must be.
        OSError: A file cannot be read.
    """
    home = store.root_directory(directory)
    generation = store.current_version(home)
    if generation is None:
        return None
    roots = tuple(
        Root(number, _one(home / f"v{number}" / store.ROOT_CERTIFICATE), home / f"v{number}") for number in store.versions(home)
    )
    trust_domain = trust_domain_of(roots[0].certificate)
    for root in roots:
        require(check_root(root.certificate, trust_domain=trust_domain, public_key=root.certificate.public_key()))
    if generation not in [root.generation for root in roots]:
        raise StoreError(f"{home / store.CURRENT} leads nowhere: restore {home} from your backup")
    parent = store.issuing_directory(directory, "any").parent
    regions = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    issuers: list[Issuer] = []
    current: dict[str, int] = {}
    for region in regions:
        place = store.issuing_directory(directory, region)
        number = store.current_version(place)
        if number is None:
            continue
        current[region] = number
        found = (_issuer(place / f"v{version}", region, version, trust_domain, roots) for version in store.versions(place))
        own = [issuer for issuer in found if issuer is not None]
        if number not in [issuer.version for issuer in own]:
            raise StoreError(
                f"{place / store.CURRENT} leads to no issuing CA of a trusted root: restore {place} from your backup"
            )
        issuers += own
    if not current:
        raise StoreError(f"there is no issuing CA in {parent}: restore it from your backup, or name the store with --dir")
    return Trust(trust_domain, roots, generation, tuple(issuers), current)


def crls_pem(lists: Iterable[x509.CertificateRevocationList]) -> bytes:
    """Return *lists* as one PEM text, in their order."""
    return b"".join(crl.public_bytes(Encoding.PEM) for crl in lists)


def _issuer(place: Path, region: str, version: int, trust_domain: str, roots: Iterable[Root]) -> Issuer | None:
    certificate = _one(place / store.CA_CERTIFICATE)
    own = region_trust_domain(region, trust_domain)
    root = next((root for root in roots if root.certificate.subject == certificate.issuer), None)
    if root is None:  # dropped: nobody trusts what this one issued
        return None
    require(check_issuing(certificate, root.certificate, trust_domain=own, public_key=None))
    blocks = read_pem_file(place / store.CRL)
    if len(blocks) != 1:
        raise ValidationError(f"{place / store.CRL}: expected one revocation list, found {len(blocks)}")
    return Issuer(region, version, own, certificate, load_crl(blocks[0]), root.generation, place)


def _one(path: Path) -> x509.Certificate:
    certificates = load_certificates(read_pem_file(path))
    if len(certificates) != 1:
        raise ValidationError(f"{path}: expected one certificate, found {len(certificates)}")
    return certificates[0]
