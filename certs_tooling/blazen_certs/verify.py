"""Is the identity on this disk one that a sidecar can use? Reads the files, then asks ``checks``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from blazen_certs import store
from blazen_certs.checks import Check, check_bundle, check_leaf, check_lists
from blazen_certs.facts import key_type_text
from blazen_certs.pem import PemBlock, load_certificates, load_crl, load_private_key, read_pem_file
from blazen_certs.trust import Trust
from blazen_peer.errors import ValidationError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = ["Report", "node_named_by", "verify_identity"]

_VERSION_NAME = re.compile(r"current|v[0-9]+", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Report:
    """What ``verify_identity`` found.

    Attributes:
        directory: Where the files are.
        checks: In the order in which they were made. Where a file does not decode, the checks that need it are not there.
    """

    directory: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)


def node_named_by(directory: Path) -> str | None:
    """Return the node that a path of the store's layout names (``nodes/<node>``, or a version in it), otherwise None."""
    path = Path(os.path.abspath(directory))  # noqa: PTH100  # resolve() would replace the name ``current`` by its target's
    if _VERSION_NAME.fullmatch(path.name) and path.parent.parent.name == "nodes":
        path = path.parent
    return path.name if path.parent.name == "nodes" else None


def verify_identity(
    directory: Path,
    *,
    at: datetime,
    node_id: str | None = None,
    trust: Trust | None = None,
    reissue: str = "blazen-certs issue NODE",
    resign: str = "blazen-certs crl",
) -> Report:
    """Check the identity in *directory*.

    Args:
        directory: Holds ``tls.crt``, ``tls.key``, ``bundle.crt`` and ``crl.pem``, itself or under ``current``. Without
            ``crl.pem`` revocation is not looked at, unless *trust* is given.
        at: The moment to check for, timezone-aware.
        node_id: Whose it must be; None takes any node.
        trust: The authority whose roots must be in the bundle, whose lists must be there, and whose regions the name must be
            of; None takes any.
        reissue, resign: The commands that make a new identity and new lists, for the fixes.
    """
    if (directory / store.CURRENT).is_symlink():
        directory = directory / store.CURRENT
    fix = f"issue it anew: {reissue}"
    checks: list[Check] = []

    def read(name: str, load: Callable[[list[PemBlock]], _T], describe: Callable[[_T], str]) -> _T | None:
        try:
            value = load(read_pem_file(directory / name))
        except ValidationError as error:
            checks.append(Check(name, False, str(error), fix))
        except OSError as error:
            checks.append(Check(name, False, f"{directory / name}: {error.strerror}", fix))
        else:
            checks.append(Check(name, True, describe(value)))
            return value
        return None

    chain = read(store.CERTIFICATE, load_certificates, lambda found: _count(len(found), "certificate"))
    key = read(store.KEY, _only_key, lambda key: f"{key_type_text(key.public_key())} private key")
    anchors = read(store.BUNDLE, load_certificates, lambda found: _count(len(found), "certificate"))
    wanted = trust is not None or (directory / store.CRL).exists()
    lists = read(store.CRL, _lists, lambda found: _count(len(found), "revocation list")) if wanted else None
    checks.append(_modes(directory))
    if anchors is not None:
        checks.append(check_bundle(anchors, must_hold=[] if trust is None else trust.root_certificates, fix=fix))
    if chain is not None:
        checks += check_leaf(
            chain,
            anchors or [],
            at=at,
            node_id=node_id,
            trust_domain=None,
            public_key=None if key is None else key.public_key(),
            fix=fix,
            lists=lists,
        )
    if lists is not None:
        own = [ca for ca in (chain or [])[1:] if chain is not None and ca.subject == chain[0].issuer]
        of_the_store = [] if trust is None else [issuer.certificate for issuer in trust.issuers_at(at)]
        issuers = [*of_the_store, *(ca for ca in own if ca not in of_the_store)]
        checks.append(check_lists(lists, issuers, at=at, fix=fix if trust is None else resign))
    return Report(directory, tuple(checks))


def _modes(directory: Path) -> Check:
    """Nobody but the owner may read the key, nor change any of it."""
    wrong, fixes = [], []
    for path in (directory, *(directory / name for name in (store.CERTIFICATE, store.KEY, store.BUNDLE, store.CRL))):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # that it is missing is said already
        if mode & (0o077 if path.name == store.KEY else 0o022):
            wrong.append(f"{path.name} has mode {mode:04o}")
            fixes.append(f"chmod {'600' if path.name == store.KEY else 'go-w'} {path}")
    if wrong:
        return Check("modes", False, ", ".join(wrong), "; ".join(fixes))
    return Check("modes", True, "the key is the owner's alone, nobody else may write")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _lists(blocks: Sequence[PemBlock]) -> list[x509.CertificateRevocationList]:
    return [load_crl(block) for block in blocks]


def _only_key(blocks: Sequence[PemBlock]) -> PrivateKeyTypes:
    keys = [load_private_key(block) for block in blocks if block.label != "EC PARAMETERS"]
    if len(keys) != 1:
        raise ValidationError(f"{blocks[0].where}: expected one private key, found {len(keys)}")
    return keys[0]
