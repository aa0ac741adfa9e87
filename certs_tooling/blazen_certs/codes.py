"""One-time codes by which a node joins: made where the CA is, carried by a person, good for one node, once, for minutes.

    bjc1:<trust domain>:<node>:<id>:<secret>:<pin>

The pin is the SHA-256 of the mesh's root, so that who holds a code knows the right certificate service from a wrong one before
it says anything. Of the secret (160 random bits, too many to guess or to search) only the hash is kept, in ``codes/<id>.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

from blazen_certs import store
from blazen_certs.errors import CodeError, StoreError
from blazen_certs.facts import time_text
from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["DEFAULT_CODE_LIFETIME", "MAX_CODE_LIFETIME", "CodeBook", "CodeRecord", "JoinCode"]

DEFAULT_CODE_LIFETIME = timedelta(minutes=15)
MAX_CODE_LIFETIME = timedelta(days=7)
MAX_FAILURES = 5
MAX_OPEN_CODES = 1000
MAX_CLOSED_CODES = 1000
_KEPT = timedelta(days=7)  # after its end a record is kept this long, so that "used" can be told from "never was"
_ID_BYTES, _SECRET_BYTES = 8, 20
_CODE = re.compile(r"bjc1:([^:]{1,255}):([^:]{1,128}):([0-9a-f]{16}):([A-Za-z0-9_-]{27}):([A-Za-z0-9_-]{43})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class JoinCode:
    """A code, as the joining node holds it.

    Attributes:
        peer: Whom it makes the node to be.
        id: Which record of the certificate service it is; not secret.
        secret: What proves that the code is held.
        root_sha256: The hash of the mesh's root certificate.
    """

    peer: PeerId
    id: str
    secret: str = field(repr=False)
    root_sha256: bytes

    @classmethod
    def parse(cls, text: str) -> JoinCode:
        """Return the code that *text* holds, with white space around it let pass.

        Raises:
            ValidationError: It is none. The text is not repeated, since it may be secret.
        """
        match = _CODE.fullmatch(text.strip())
        if match is None:
            raise ValidationError("that is no join code, or not the whole of one: it begins with bjc1: and has six parts")
        return cls(PeerId(match[1], match[2]), match[3], match[4], urlsafe_b64decode(match[5] + "="))

    def text(self) -> str:
        """Return the code in full, secret and all."""
        pin = urlsafe_b64encode(self.root_sha256).decode().rstrip("=")
        return f"bjc1:{self.peer.trust_domain}:{self.peer.node_id}:{self.id}:{self.secret}:{pin}"

    def pins(self, root: x509.Certificate) -> bool:
        """Return whether *root* is the one that the code names."""
        return hmac.compare_digest(root.fingerprint(hashes.SHA256()), self.root_sha256)


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """What the certificate service keeps of a code.

    Attributes:
        spiffe_id: Whom it is for.
        dns_names: What the certificate shall carry; empty means the default.
        secret_sha256: The hash of the secret, hex.
        made, not_after: When it was made, and when it ends; seconds since 1970.
        failures: How often a wrong secret, or another node's name, came with its id.
        used: When it was used, or None.
    """

    spiffe_id: str
    dns_names: tuple[str, ...]
    secret_sha256: str
    made: float
    not_after: float
    failures: int = 0
    used: float | None = None

    @property
    def peer(self) -> PeerId:
        """Whom it is for."""
        return PeerId.parse(self.spiffe_id)

    def is_open(self, moment: float) -> bool:
        """Return whether it can be used at *moment*, seconds since 1970."""
        return self.used is None and moment < self.not_after and self.failures < MAX_FAILURES


@dataclass(frozen=True, slots=True)
class CodeBook:
    """The codes of one store, on disk; any number of processes may use it at once."""

    directory: Path

    @classmethod
    def of(cls, store_directory: Path) -> CodeBook:
        """Return the book of the store there."""
        return cls(store_directory / "codes")

    def make(
        self,
        peer: PeerId,
        root: x509.Certificate,
        *,
        dns_names: Sequence[str] = (),
        lifetime: timedelta = DEFAULT_CODE_LIFETIME,
        now: datetime | None = None,
    ) -> JoinCode:
        """Return a new code for *peer*; those made earlier stay good.

        Raises:
            ValidationError: The lifetime is not within (0, 7 days].
            StoreError: A thousand codes are open.
            OSError: The disk, or the rights, do not allow it.
        """
        if not timedelta(0) < lifetime <= MAX_CODE_LIFETIME:
            raise ValidationError("a code's lifetime must be more than 0 and at most 7 days")
        moment = (now or datetime.now(UTC)).timestamp()
        code = JoinCode(
            peer, secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES), root.fingerprint(hashes.SHA256())
        )
        record = CodeRecord(
            str(peer), tuple(dns_names), _hash(code.secret), made=moment, not_after=moment + lifetime.total_seconds()
        )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with store.locked(self.directory):
            if self._tidied(moment) >= MAX_OPEN_CODES:
                raise StoreError(
                    f"{MAX_OPEN_CODES} codes are open in {self.directory}: wait until some end, "
                    "or end a node's with blazen-certs revoke NODE"
                )
            self._write(code.id, record)
        return code

    def check(self, code_id: str, secret: str, peer: PeerId, *, now: datetime | None = None) -> None:
        """Raise what ``redeem`` would, and use nothing up. A failure counts as one of ``redeem``."""
        moment = (now or datetime.now(UTC)).timestamp()
        with self._locked(code_id):
            self._accepted(code_id, secret, peer, moment)

    def redeem(self, code_id: str, secret: str, peer: PeerId, *, now: datetime | None = None) -> CodeRecord:
        """Use a code up for *peer*, and return what it allows. Of any number of tries one succeeds, in any process, ever.

        Raises:
            CodeError: Not accepted. Only who has the right secret is told whether it was used, has ended, or is another's.
            StoreError: Another process has been at the codes for 10 seconds.
            OSError: The disk does not allow it; the code is as it was.
        """
        moment = (now or datetime.now(UTC)).timestamp()
        with self._locked(code_id):
            record = self._accepted(code_id, secret, peer, moment)
            self._write(code_id, CodeRecord(**{**asdict(record), "used": moment}))
            return record

    def end(self, node_id: str, *, now: datetime | None = None) -> int:
        """End every code for *node_id* that could still be used; return how many those were.

        Raises:
            StoreError: Another process has been at the codes for 10 seconds.
            OSError: The disk, or the rights, do not allow it.
        """
        if not self.directory.is_dir():
            return 0
        moment, ended = (now or datetime.now(UTC)).timestamp(), 0
        with store.locked(self.directory):
            for path in self.directory.glob("*.json"):
                with suppress(StoreError):  # a damaged one is good for nobody
                    record = self._read(path.stem)
                    if (
                        record is not None
                        and record.peer.node_id == node_id
                        and record.used is None
                        and moment < record.not_after
                    ):
                        self._write(path.stem, CodeRecord(**{**asdict(record), "not_after": moment}))
                        ended += 1
        return ended

    def _locked(self, code_id: str) -> AbstractContextManager[None]:
        if not _ID.fullmatch(code_id) or not self.directory.is_dir():
            raise CodeError("the code is not accepted")
        return store.locked(self.directory)

    def _accepted(self, code_id: str, secret: str, peer: PeerId, moment: float) -> CodeRecord:
        """Return the record of a code that may be used now; otherwise raise as ``redeem`` does. The book is locked."""
        record = self._read(code_id)
        held = hmac.compare_digest(_hash(secret), record.secret_sha256 if record is not None else "-" * 64)
        if record is None:
            raise CodeError("the code is not accepted")
        if not held or record.failures >= MAX_FAILURES:
            self._failed(code_id, record)
            raise CodeError("the code is not accepted")
        if record.used is not None:
            raise CodeError(f"the code was used already, at {_time(record.used)}: have a new one made")
        if moment >= record.not_after:
            raise CodeError(f"the code ended at {_time(record.not_after)}: have a new one made")
        if record.peer != peer:
            self._failed(code_id, record)
            raise CodeError(f"the code is for {record.spiffe_id}, not for {peer}")
        return record

    def _failed(self, code_id: str, record: CodeRecord) -> None:
        if record.failures < MAX_FAILURES:
            self._write(code_id, CodeRecord(**{**asdict(record), "failures": record.failures + 1}))

    def _read(self, code_id: str) -> CodeRecord | None:
        try:
            found = json.loads((self.directory / f"{code_id}.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(f"{self.directory / code_id}.json is damaged: remove it") from error
        return CodeRecord(**{**found, "dns_names": tuple(found["dns_names"])})

    def _write(self, code_id: str, record: CodeRecord) -> None:
        store.replace_file(self.directory / f"{code_id}.json", json.dumps(asdict(record)).encode())

    def _tidied(self, moment: float) -> int:
        """Forget closed codes that ended a week ago, and the oldest of too many; return how many are open."""
        read = [(path, record) for path in self.directory.glob("*.json") if (record := self._read(path.stem)) is not None]
        closed = sorted(
            ((record.not_after, path) for path, record in read if not record.is_open(moment)),
            reverse=True,
        )
        for place, (end, path) in enumerate(closed):
            if place >= MAX_CLOSED_CODES or moment > end + _KEPT.total_seconds():
                path.unlink()
        return len(read) - len(closed)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _time(moment: float) -> str:
    return time_text(datetime.fromtimestamp(moment, UTC))
