"""The secrets a peer holds: the shared token and the sidecar's proof, from an argument, the environment or a file.

A file is read again when it changes, so that a rotation needs no restart. When it can no longer be read the last good
value stays in force and the log says so: a peer must not lose its token because somebody is half way through replacing it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from blazen_peer.auth.tokens import TokenKeys
from blazen_peer.errors import ValidationError

__all__ = ["ProofSource", "SecretFile", "TokenSource"]

TOKEN: Final = "BLAZEN_PEER_TOKEN"  # noqa: S105 (a variable's name)
TOKEN_PREVIOUS: Final = "BLAZEN_PEER_TOKEN_PREVIOUS"  # noqa: S105
_MAX_SECRET_BYTES: Final = 64 * 1024
_PROOF: Final = re.compile(r"[!-~]{32,512}", re.ASCII)

logger = logging.getLogger(__name__)


class SecretFile:
    """One line of text in a file, read again when the file's identity, size or time of change does.

    Raises:
        ValidationError: The file cannot be read now, at the start.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._text = ""
        self._complained = False
        try:
            self._load()
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError(f"cannot read the secret file {self._path}: {_why(error)}") from None

    def __repr__(self) -> str:
        return f"SecretFile({str(self._path)!r})"

    def read(self) -> str:
        """Return the text without the white space around it, as it stands in the file now."""
        try:
            self._load()
            self._complained = False
        except (OSError, UnicodeDecodeError) as error:
            if not self._complained:
                logger.error("cannot read the secret file %s again (%s): its last value stays", self._path, _why(error))
                self._complained = True
        return self._text

    def _load(self) -> None:
        stat = self._path.stat()
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen != self._seen:
            with self._path.open("rb") as file:
                self._text = file.read(_MAX_SECRET_BYTES).decode().strip()
            self._seen = seen


class TokenSource:
    """Where the token comes from; :meth:`keys` gives what is in force now.

    Use :meth:`of`. A changed file whose content is no valid token leaves the last keys in force, and the log says so.
    """

    def __init__(self, current: Callable[[], str], previous: Callable[[], str] | None) -> None:
        self._current, self._previous = current, previous
        self._texts = self._read()
        self._keys = TokenKeys.from_tokens(*self._texts)

    @classmethod
    def of(cls, token: str | None, environ: Mapping[str, str]) -> TokenSource | None:
        """Return the source of an explicit *token*, else of *environ*; None where neither holds one.

        ``BLAZEN_PEER_TOKEN`` or the file named by ``BLAZEN_PEER_TOKEN_FILE``; what ``BLAZEN_PEER_TOKEN_PREVIOUS`` (or its
        ``_FILE``) holds, a token a line, is accepted too, for rotation. Several, since no two files change at the same moment.

        Raises:
            ValidationError: A token is set but empty, too short, or given twice; or its file cannot be read.
        """
        if token is not None:
            return cls(lambda: token, None)
        current, previous = _from(environ, TOKEN), _from(environ, TOKEN_PREVIOUS)
        if current is None:
            if previous is not None:
                raise ValidationError(f"{TOKEN_PREVIOUS} is set and {TOKEN} is not: set both, or neither")
            return None
        return cls(current, previous)

    def keys(self) -> TokenKeys:
        """Return the keys of the tokens in force."""
        texts = self._read()
        if texts != self._texts:
            self._texts = texts
            try:
                self._keys = TokenKeys.from_tokens(*texts)
                logger.info("the token changed")
            except ValidationError as error:
                logger.error("the changed token is not usable, its last value stays: %s", error)
        return self._keys

    def _read(self) -> tuple[str, ...]:
        # An empty text counts as a token that is set but empty.
        return (self._current(), *((self._previous().splitlines() or [""]) if self._previous else ()))


class ProofSource:
    """The sidecar's proof from its file, and the value before the last change of it (sidecar and peer notice apart).

    Raises:
        ValidationError: The file cannot be read or does not hold 32 to 512 visible ASCII characters.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = SecretFile(path)
        text = self._file.read()
        if not _PROOF.fullmatch(text):
            raise ValidationError(f"the sidecar's proof in {path} is not 32 to 512 visible ASCII characters")
        self._proofs: tuple[str, ...] = (text,)

    def proofs(self) -> tuple[str, ...]:
        """Return the proofs that count now, the newest first."""
        text = self._file.read()
        if text != self._proofs[0]:
            if _PROOF.fullmatch(text):
                self._proofs = (text, self._proofs[0])
            else:
                logger.error("the changed sidecar's proof is not usable, its last value stays")
        return self._proofs


def _from(environ: Mapping[str, str], name: str) -> Callable[[], str] | None:
    value, path = environ.get(name), environ.get(f"{name}_FILE")
    if value is not None and path is not None:
        raise ValidationError(f"{name} and {name}_FILE are both set: keep one of them")
    if path is not None:
        return SecretFile(path).read
    return None if value is None else lambda: value


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8 text"
