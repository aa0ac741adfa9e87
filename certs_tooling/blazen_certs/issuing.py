"""The issuing CAs of a store: made from the root, their lists signed again, the ended ones removed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from blazen_certs import store
from blazen_certs.checks import check_issuing, check_lists, check_root, require
from blazen_certs.crl import build_crl, crl_is_due, crl_number, revoked_serials
from blazen_certs.errors import StoreError
from blazen_certs.keys import RootKeys, load_issuing_key
from blazen_certs.pem import certificates_pem, load_certificates, load_crl, private_key_pem, read_pem_file, split_pem
from blazen_certs.profile import WHOLE_MESH, build_issuing, build_root, check_region, region_trust_domain
from blazen_certs.trust import Issuer, Trust
from blazen_peer.identity import PeerId

__all__ = ["create_authority", "new_issuing_files", "new_root", "remove_ended", "sign_list", "sign_lists"]


def create_authority(directory: Path, trust_domain: str, regions: tuple[str, ...], keys: RootKeys, *, now: datetime) -> None:
    """Make a root and an issuing CA for each of *regions* in the store at *directory*, all or nothing.

    Raises:
        ValidationError: A name is not one, or *now* has no time zone.
        StoreError: There is an authority already.
        OSError: The disk, or the rights, do not allow it.
    """
    places = _places(trust_domain, regions)
    key, certificate = new_root(trust_domain, now=now)
    files = {region: new_issuing_files(region, certificate, key, trust_domain, now=now) for region in places}
    there = directory.exists()
    home, issuing = store.root_directory(directory), store.issuing_directory(directory, "any").parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with store.locked(directory):
        if store.current_version(home) is not None or (directory / "ca").exists():
            raise StoreError(
                f"{directory} already holds a CA: issue from it, or name another store with --dir; "
                "every identity of it becomes worthless when it is removed"
            )
        for rest in (home, issuing):  # of a process that died before the root was there
            shutil.rmtree(rest, ignore_errors=True)
        try:
            for region, content in files.items():
                store.publish_version(store.issuing_directory(directory, region), content)
            # Last, in one step: a store without a current root holds no authority.
            store.publish_version(home, keys.keep(key, certificates_pem([certificate])))
        except BaseException:
            for rest in (home, issuing):
                shutil.rmtree(rest, ignore_errors=True)
            if not there:
                directory.rmdir()
            raise


def new_root(trust_domain: str, *, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return a new root and its key, checked; nothing is written.

    Raises:
        ValidationError: The trust domain is not a name, or *now* has no time zone.
        CertificateError: The finished certificate failed its checks.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = build_root(trust_domain, key.public_key(), serial=x509.random_serial_number(), now=now)
    pem = certificates_pem([builder.sign(key, hashes.SHA256())])
    certificate = load_certificates(split_pem(pem, store.ROOT_CERTIFICATE))[0]
    require(check_root(certificate, trust_domain=trust_domain, public_key=key.public_key()))
    return key, certificate


def new_issuing_files(
    region: str, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, trust_domain: str, *, now: datetime
) -> dict[str, bytes]:
    """Return the files of a new issuing CA of *region* with an empty list, checked; nothing is written.

    Raises:
        ValidationError: The root is not valid at *now*.
        CertificateError: The finished certificate or its list failed its checks.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    builder = build_issuing(region, key.public_key(), root=root, trust_domain=trust_domain, serial=serial, now=now)
    pem = certificates_pem([builder.sign(root_key, hashes.SHA256())])
    certificate = load_certificates(split_pem(pem, store.CA_CERTIFICATE))[0]
    own = region_trust_domain(region, trust_domain)
    require(check_issuing(certificate, root, trust_domain=own, public_key=key.public_key()))
    return {
        store.CA_CERTIFICATE: pem,
        store.CA_KEY: private_key_pem(key),
        store.CRL: _signed(certificate, key, {}, number=1, now=now),
    }


def sign_list(issuer: Issuer, *, now: datetime, revoke: Mapping[int, datetime] | None = None) -> None:
    """Sign the list of *issuer* again, with *revoke* (serial numbers, and since when) added, and put it in the old one's place.

    Raises:
        StoreError: Its key is not on this machine, or another process is at it.
        CertificateError: The finished list failed its checks; the old one stands.
        OSError: The disk, or the rights, do not allow it.
    """
    key = load_issuing_key(issuer)
    path = issuer.directory / store.CRL
    with store.locked(issuer.directory):
        crl = load_crl(read_pem_file(path)[0])  # again, under the lock: another process may have revoked meanwhile
        revoked = {**(revoke or {}), **revoked_serials(crl)}
        store.replace_file(path, _signed(issuer.certificate, key, revoked, number=crl_number(crl) + 1, now=now))


def sign_lists(trust: Trust, *, now: datetime, force: bool = False) -> list[Issuer]:
    """Sign again each list that is due at *now*, or all of them; return whose were signed.

    Lists of CAs whose key is on another machine are left alone, and so are those of CAs that are not of the present.

    Raises: as ``sign_list``.
    """
    signed = []
    for issuer in trust.issuers:
        of_the_present = issuer.certificate.not_valid_before_utc <= now <= issuer.certificate.not_valid_after_utc
        if issuer.has_key and of_the_present and (force or crl_is_due(issuer.crl, now=now)):
            sign_list(issuer, now=now)
            signed.append(issuer)
    return signed


def remove_ended(trust: Trust, *, now: datetime) -> None:
    """Remove issuing CAs that ended and issue no more, with their lists: nothing of theirs is valid."""
    for issuer in trust.issuers:
        if issuer.certificate.not_valid_after_utc < now and issuer.version < trust.current[issuer.region]:
            store.remove_version(issuer.directory.parent, issuer.version)


def _places(trust_domain: str, regions: tuple[str, ...]) -> tuple[str, ...]:
    PeerId(trust_domain, "any")
    places = tuple(dict.fromkeys(check_region(region) for region in regions)) or (WHOLE_MESH,)
    for region in places:
        PeerId(region_trust_domain(region, trust_domain), "any")
    return places


def _signed(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Mapping[int, datetime],
    *,
    number: int,
    now: datetime,
) -> bytes:
    crl = build_crl(certificate, revoked, number=number, now=now).sign(key, hashes.SHA256())
    pem = crl.public_bytes(Encoding.PEM)
    read = load_crl(split_pem(pem, store.CRL)[0])
    require([check_lists([read], [certificate], at=now, fix="nothing was written; please report it")])
    return pem
