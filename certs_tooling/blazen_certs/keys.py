"""The authority's own keys: where they are, that nobody else can read them, and the passphrase of the root's."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from blazen_certs import store
from blazen_certs.checks import Check, require
from blazen_certs.errors import StoreError
from blazen_certs.facts import public_key_sha256
from blazen_certs.pem import is_encrypted, load_encrypted_key, load_private_key, private_key_pem, read_pem_file
from blazen_certs.profile import key_mark
from blazen_certs.trust import Issuer, Root
from blazen_peer.errors import ValidationError

__all__ = ["RootKeys", "load_issuing_key"]


@dataclass(frozen=True, slots=True)
class RootKeys:
    """Where the roots' keys are.

    Attributes:
        directory: A directory outside the store, with one folder for each root; None: in the store, beside their certificates.
        passphrase: What they are encrypted with; None: they are not.
    """

    directory: Path | None = None
    passphrase: bytes | None = field(default=None, repr=False)

    def keep(self, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> dict[str, bytes]:
        """Put a new root's key where keys are kept; return the files that the store itself has to hold of that root.

        Raises:
            OSError: The disk, or the rights, do not allow it.
        """
        files = {store.ROOT_KEY: private_key_pem(key, self.passphrase), store.ROOT_CERTIFICATE: certificate_pem}
        if self.directory is None:
            return files
        store.create_directory_whole(self.directory / f"root-{key_mark(key.public_key())}", files)
        return {store.ROOT_CERTIFICATE: certificate_pem}

    def path(self, root: Root) -> Path:
        """Return where the key of *root* must be."""
        if self.directory is None:
            return root.directory / store.ROOT_KEY
        public_key = root.certificate.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)  # noqa: S101 - read_trust let no other pass
        return self.directory / f"root-{key_mark(public_key)}" / store.ROOT_KEY

    def load(self, root: Root) -> ec.EllipticCurvePrivateKey:
        """Return the key of *root*.

        Raises:
            StoreError: It is not there, or open to other users, or its passphrase was not given.
            ValidationError: It does not decode, or the passphrase is not its own.
            CertificateError: It is another root's.
            OSError: It cannot be read.
        """
        path = self.path(root)
        if not path.exists():
            where = "it is kept elsewhere: bring it, and name that directory with --root-dir DIR"
            raise StoreError(f"this needs the key of the root, and {path} is not there; {where}")
        return _load(path, root.certificate, self.passphrase)


def load_issuing_key(issuer: Issuer) -> ec.EllipticCurvePrivateKey:
    """Return the key of *issuer*.

    Raises:
        StoreError: It is not on this machine, or open to other users.
        ValidationError: It does not decode.
        CertificateError: It is another CA's.
        OSError: It cannot be read.
    """
    path = issuer.directory / store.CA_KEY
    if not path.exists():
        raise StoreError(f"the CA's key is not in {issuer.directory}: issue on the machine that has it")
    return _load(path, issuer.certificate, None)


def _load(path: Path, certificate: x509.Certificate, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise StoreError(f"{path} has mode {mode:04o}, open to other users: run chmod 600 {path}")
    blocks = read_pem_file(path)
    if is_encrypted(blocks[0]):
        if passphrase is None:
            raise StoreError(f"{path} is encrypted: give its passphrase with --passphrase-file FILE")
        key = load_encrypted_key(blocks[0], passphrase)
    else:
        key = load_private_key(blocks[0])
    if len(blocks) != 1 or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValidationError(f"{path}: expected one P-256 private key")
    own = public_key_sha256(key.public_key()) == public_key_sha256(certificate.public_key())
    require([Check("key", own, f"the private key is another's: {path}", "restore it from your backup")])
    return key
