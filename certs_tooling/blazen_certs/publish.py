"""The one door to a node's directory: what goes through it was read back from the very bytes, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from blazen_certs import store
from blazen_certs.checks import check_bundle, check_leaf, check_lists, require
from blazen_certs.pem import load_certificates, load_crl, load_private_key, split_pem
from blazen_certs.profile import check_time

__all__ = ["Material", "publish_identity", "read_material"]


@dataclass(frozen=True, slots=True)
class Material:
    """The files of an identity, as bytes: leaf and issuing CA, key, roots, and revocation lists (empty: there are none)."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    bundle_pem: bytes
    crl_pem: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """The files by name; ``crl.pem`` only where there are lists."""
        files = {store.CERTIFICATE: self.chain_pem, store.KEY: self.key_pem, store.BUNDLE: self.bundle_pem}
        return {**files, store.CRL: self.crl_pem} if self.crl_pem else files

    def beside(self, *, bundle_pem: bytes, crl_pem: bytes) -> Material:
        """Return the same certificate and key beside another bundle and other lists."""
        return replace(self, bundle_pem=bundle_pem, crl_pem=crl_pem)


def publish_identity(
    directory: Path,
    material: Material,
    *,
    node_id: str,
    trust_domain: str | None,
    now: datetime,
    roots: Sequence[x509.Certificate] = (),
    issuers: Sequence[x509.Certificate] = (),
    even_revoked: bool = False,
) -> int:
    """Check *material* and make it the current identity in *directory*, all files in one step; return the version's number.

    Args:
        directory: The one that a sidecar watches.
        material: The files.
        node_id, trust_domain: Whose name must be in the certificate; None takes any trust domain.
        now: Current time, timezone-aware.
        roots: What the bundle must hold.
        issuers: The issuing CAs of which there must be good lists; where there are any lists, the leaf's own is asked for too.
        even_revoked: For new lists that take the place of old ones beside a certificate that one of them revokes.

    Raises:
        ValidationError: A file does not decode.
        CertificateError: A check failed; nothing was written.
        StoreError: Another process holds the directory.
        OSError: The disk, or the rights, do not allow it; what was current still is.
    """
    now = check_time(now)
    fix = "nothing was written"
    chain = load_certificates(split_pem(material.chain_pem, store.CERTIFICATE))
    anchors = load_certificates(split_pem(material.bundle_pem, store.BUNDLE))
    lists = [load_crl(block) for block in split_pem(material.crl_pem, store.CRL)] if material.crl_pem else None
    checks = [
        check_bundle(anchors, must_hold=roots, fix=fix),
        *check_leaf(
            chain,
            anchors,
            at=now,
            node_id=node_id,
            trust_domain=trust_domain,
            public_key=load_private_key(split_pem(material.key_pem, store.KEY)[0]).public_key(),
            fix=fix,
            lists=None if even_revoked else lists,
        ),
    ]
    if lists is not None:
        own = [ca for ca in (*chain[1:], *anchors) if ca.subject == chain[0].issuer and ca not in issuers]
        checks.append(check_lists(lists, [*issuers, *own], at=now, fix=fix))
    require(checks)
    return store.publish_version(directory, material.files)


def read_material(directory: Path) -> Material:
    """Return the files of the current identity in *directory*, unchecked.

    Raises:
        OSError: One cannot be read.
    """
    home = directory / f"v{store.current_version(directory)}"  # looked up once: all from one version
    crl = home / store.CRL
    return Material(
        (home / store.CERTIFICATE).read_bytes(),
        (home / store.KEY).read_bytes(),
        (home / store.BUNDLE).read_bytes(),
        crl.read_bytes() if crl.exists() else b"",
    )
