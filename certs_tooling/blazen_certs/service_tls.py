"""TLS on the service's side: a failed handshake is said to the caller and to the log."""

from __future__ import annotations

import ssl
from collections.abc import Callable

__all__ = ["TellingConnection"]


class TellingConnection(ssl.SSLObject):
    """A connection whose failed handshake is told to both sides (``SSLContext.sslobject_class``).

    asyncio drops the alert that says why (``certificate expired``): it closes as soon as ``do_handshake`` raises, before it has
    sent what OpenSSL wrote. So the first time we ask for more bytes instead, upon which it sends; the second time we raise.
    """

    refused: Callable[[str], None]
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Do the next part of it.

        Raises:
            ssl.SSLError: It needs more bytes, or has failed.
        """
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failure = error
            self.refused(getattr(error, "verify_message", None) or (error.reason or str(error)).lower().replace("_", " "))
            raise ssl.SSLWantReadError from error
