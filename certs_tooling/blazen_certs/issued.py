"""The record of what was issued to each node, and of what a node that lives elsewhere last showed. No keys.

A certificate is recorded before anybody can have it, so that ``revoke NODE`` finds each one that is still good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from blazen_certs import store
from blazen_certs.facts import sha256, time_text
from blazen_certs.pem import certificates_pem, load_certificates, load_crl, read_pem_file, split_pem
from blazen_peer.errors import ValidationError
from blazen_peer.identity import check_node_id

__all__ = ["Shown", "known_nodes", "note_shown", "read_issued", "read_shown", "record_issued", "record_locked"]

_SHOWN = "shown.json"
_KEPT_AFTER_END = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node that fetches its identity from here last showed.

    Attributes:
        at: When.
        serial: That of the certificate it showed itself by.
        roots: SHA-256 of each root in its bundle.
        lists: The issuer, in RFC 4514's form, of each of its revocation lists.
    """

    at: datetime
    serial: int
    roots: frozenset[str]
    lists: frozenset[str]


def record_issued(directory: Path, node_id: str, certificate: x509.Certificate, *, now: datetime) -> None:
    """Write *certificate* into the record of *node_id*, and forget those of it that ended more than a day ago.

    Raises:
        OSError: The disk, or the rights, do not allow it.
    """
    home = store.issued_directory(directory, node_id)
    store.replace_file(home / f"{certificate.serial_number:x}.crt", certificates_pem([certificate]))
    for path, old in _records(home):
        if old.not_valid_after_utc + _KEPT_AFTER_END < now:
            path.unlink(missing_ok=True)


@contextmanager
def record_locked(directory: Path, node_id: str) -> Iterator[None]:
    """Hold the lock of the node's record, which is made where it is not there.

    Who gives a node a certificate holds it from the look at whether it may have one until the certificate is recorded; who
    revokes, from the look at what is recorded until it is on the list. So no revocation misses what was just given.

    Raises:
        StoreError: Another process has held it for 10 seconds.
        OSError: The disk, or the rights, do not allow it.
    """
    home = store.issued_directory(directory, node_id)
    for made in (home.parent, home):
        made.mkdir(mode=0o700, exist_ok=True)
    with store.locked(home):
        yield


def read_issued(directory: Path, node_id: str) -> list[x509.Certificate]:
    """Return what the record holds of *node_id*, in the order in which they were issued; the last is the newest.

    Raises:
        ValidationError: A file does not decode.
        OSError: A file cannot be read.
    """
    found = [certificate for _, certificate in _records(store.issued_directory(directory, node_id))]
    return sorted(found, key=lambda certificate: (certificate.not_valid_before_utc, certificate.not_valid_after_utc))


def known_nodes(directory: Path) -> list[str]:
    """Return every node that has something issued, or an identity here, by name."""
    names: set[str] = set()
    for parent in (store.node_directory(directory, "any").parent, store.issued_directory(directory, "any").parent):
        if parent.is_dir():
            # An empty record is that of a node to which something is just being issued, or was not in the end.
            found = (path for path in parent.iterdir() if path.is_dir() and _is_node(path.name) and any(path.iterdir()))
            names |= {path.name for path in found}
    return sorted(names)


def note_shown(
    directory: Path, node_id: str, certificate: x509.Certificate, bundle_pem: bytes, crl_pem: bytes, *, now: datetime
) -> None:
    """Note what a node elsewhere showed: its certificate, and the bundle and lists that it says it has.

    ``rotate-root`` goes by this for nodes that have no directory here.

    Raises:
        ValidationError: Bundle or lists do not decode.
        OSError: The disk, or the rights, do not allow it.
    """
    roots = load_certificates(split_pem(bundle_pem, f"the bundle of {node_id}"))
    lists = [load_crl(block) for block in split_pem(crl_pem, f"the lists of {node_id}")] if crl_pem else []
    value = {
        "at": time_text(now),
        "serial": f"{certificate.serial_number:x}",
        "roots": sorted(sha256(root) for root in roots),
        "lists": sorted(crl.issuer.rfc4514_string() for crl in lists),
    }
    path = store.issued_directory(directory, node_id) / _SHOWN
    store.replace_file(path, json.dumps(value, indent=2).encode() + b"\n")


def read_shown(directory: Path, node_id: str) -> Shown | None:
    """Return what the node last showed, None where it never did.

    Raises:
        ValidationError: The file is damaged.
        OSError: It cannot be read.
    """
    path = store.issued_directory(directory, node_id) / _SHOWN
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        return Shown(
            datetime.fromisoformat(value["at"]), int(value["serial"], 16), frozenset(value["roots"]), frozenset(value["lists"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValidationError(f"{path} is damaged: remove it; it is written again when the node next asks") from error


def _records(home: Path) -> Sequence[tuple[Path, x509.Certificate]]:
    return [(path, load_certificates(read_pem_file(path))[0]) for path in sorted(home.glob("*.crt"))]


def _is_node(name: str) -> bool:
    try:
        return check_node_id(name) == name
    except ValidationError:
        return False
