"""The certificate service: the CA's machine answers the nodes of other machines. Keys never come here, nor leave.

    POST /v1/roots   {}                          anyone: the roots, for a joining node to compare with its code's pin
    POST /v1/join    {id, secret, request}       who has a code: the first certificate, once
    POST /v1/renew   {request}                   a node, by its certificate: the next one, in its own name and no other
    POST /v1/trust   {known, wait_secs}          a node, by its certificate: bundle and revocation lists, as soon as they change

Every request has a bound in bytes, in time and in number. What is said here about a node comes from its certificate, which TLS
proved, or from its code, never from the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from blazen_certs.errors import CodeError, StoreError
from blazen_certs.facts import time_text, uris_of
from blazen_certs.pem import load_certificate, split_pem
from blazen_certs.remote_request import MAX_REQUEST_CHARS, read_request_pem
from blazen_certs.service_issuer import Caller, RefusedError, ServiceIssuer
from blazen_certs.service_limits import RateLimit
from blazen_certs.service_listener import Listener
from blazen_certs.service_wire import (
    CLOSE_SECS,
    Answer,
    MalformedError,
    Request,
    close,
    read_request,
    text_field,
    write_answer,
)
from blazen_peer.errors import BlazenError, ValidationError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["CertificateService", "ServiceSettings"]

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The bounds of a service.

    Attributes:
        handshake_secs: How long TLS may take.
        request_secs: How long a request may take from its first byte to its answer's last; waiting for news comes on top.
        max_wait_secs: How long ``/v1/trust`` waits for news at most.
        max_connections: Open at once, their handshake done; one more is closed unheard.
        max_connections_each: Of them for one node, or one address that shows no certificate.
        max_handshakes: Connections whose handshake goes on at once; one more is closed unheard. With the others they stay below
            the 1024 open files that many systems allow.
        max_handshakes_each: Of them for one address.
        look_secs: How often the store is looked at for changes that other commands made (``revoke``, ``rotate-root``).
        tend_secs: How often it is asked whether something is due (the service's own certificate, a revocation list); more often
            where the certificates' life is shorter than ten times that.
    """

    handshake_secs: float = 5.0
    request_secs: float = 15.0
    max_wait_secs: float = 30.0
    max_connections: int = 512
    max_connections_each: int = 8
    max_handshakes: int = 256
    max_handshakes_each: int = 64
    look_secs: float = 0.2
    tend_secs: float = 5.0


class CertificateService:
    """One service over one store. Make it, then enter ``serving``."""

    def __init__(self, issuer: ServiceIssuer, log: Log, settings: ServiceSettings = ServiceSettings()) -> None:
        self._issuer, self._log, self._settings = issuer, log, settings
        self._news = asyncio.Event()  # replaced by another one whenever it is set
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        # Who shows no certificate can use a code, no more; a node renews a few times a day, and asks again when there was news.
        self._limits = {
            "/v1/roots": RateLimit(burst=20, per_sec=2),
            "/v1/join": RateLimit(burst=10, per_sec=0.5),
            "/v1/renew": RateLimit(burst=5, per_sec=0.2),
            "/v1/trust": RateLimit(burst=20, per_sec=2),
        }
        self._refusals, self._not_logged = RateLimit(burst=50, per_sec=5), 0

    @asynccontextmanager
    async def serving(self, host: str, port: int) -> AsyncIterator[str]:
        """Listen on *host* and *port* (0 picks a free one) while entered; yields the address.

        Raises:
            ValidationError: The address is not to be had.
            BlazenError, OSError: The store is not usable.
        """
        await asyncio.to_thread(self._issuer.tend)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise ValidationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        with listening:
            shown = "[{}]:{}" if family == socket.AF_INET6 else "{}:{}"
            settings = self._settings
            listener = Listener(
                listening,
                await self._context(),
                self._connected,
                self._refused_connection,
                handshake_secs=settings.handshake_secs,
                max_handshakes=settings.max_handshakes,
                max_handshakes_each=settings.max_handshakes_each,
            )
            running = asyncio.create_task(listener.run()), asyncio.create_task(self._tend(listener))
            try:
                yield shown.format(*listening.getsockname()[:2])
            finally:
                for task in running:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                for task in tuple(self._tasks):
                    task.cancel()
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=2 * CLOSE_SECS)

    async def _context(self) -> ssl.SSLContext:
        """Return TLS with what the issuer says now: its own certificate, the trusted roots."""
        return await asyncio.to_thread(self._issuer.context, self._refused_handshake)

    async def _tend(self, listener: Listener) -> None:
        """Keep what is served new. A failure is logged and tried again: the certificates that are out live on meanwhile."""
        every_secs = min(self._settings.tend_secs, self._issuer.lifetime.total_seconds() / 10)
        due = time.monotonic() + every_secs
        version, problem = self._issuer.served, ""
        while True:
            await asyncio.sleep(self._settings.look_secs)
            try:
                await asyncio.to_thread(self._issuer.look)
                if time.monotonic() >= due:
                    due = time.monotonic() + every_secs
                    await asyncio.to_thread(self._issuer.tend)
                if self._issuer.served != version:
                    listener.context = await self._context()  # for those who connect from now on; open connections live on
                    version = self._issuer.served
                    self._news.set()
                    self._news = asyncio.Event()
            except (BlazenError, OSError) as error:
                if str(error) != problem:
                    problem = str(error)
                    self._tell("problem", problem=problem)
            else:
                problem = ""

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        remote = str(writer.get_extra_info("peername")[0])
        caller = _caller_of(writer, remote)
        holder = remote if caller.peer is None else str(caller.peer)
        self._open[holder] += 1
        try:
            if self._open.total() > self._settings.max_connections or self._open[holder] > self._settings.max_connections_each:
                return
            async with asyncio.timeout(self._settings.request_secs) as bound:
                answer = await self._handle(reader, caller, bound)
                write_answer(writer, answer)
                await writer.drain()
        except (TimeoutError, EOFError, OSError):
            writer.transport.abort()  # gone, or too slow
        except asyncio.CancelledError:
            writer.transport.abort()  # the service ends; nobody else cancels this
        finally:
            self._open[holder] -= 1
            self._open += Counter()  # without those who have none
            await close(writer)

    async def _handle(self, reader: asyncio.StreamReader, caller: Caller, bound: asyncio.Timeout) -> Answer:
        path = "?"
        try:
            request = await read_request(reader)
            path = request.path
            return Answer(HTTPStatus.OK, await self._answer(request, caller, reader, bound))
        except MalformedError as error:
            status, kind, message = error.status, error.kind, str(error)
        except RefusedError as error:
            status, kind, message = error.status, error.kind, str(error)
        except CodeError as error:
            status, kind, message = HTTPStatus.UNAUTHORIZED, error.kind, str(error)
        except (BlazenError, OSError) as error:
            self._tell("problem", problem=str(error), path=path)
            busy = isinstance(error, StoreError)
            status, kind = HTTPStatus.SERVICE_UNAVAILABLE, "Busy" if busy else "Problem"
            message = "the certificate service cannot do it now; its log says why"
        self._log_refused({"path": path, "why": message, "kind": kind, **caller.facts()})
        return Answer(status, {"error": {"kind": kind, "message": message}})

    def _refused_connection(self, remote: str, why: str) -> None:
        self._log_refused({"path": "TCP", "why": why, "kind": "Busy", **({"from": remote} if remote else {})})

    def _refused_handshake(self, why: str) -> None:
        self._log_refused({"path": "TLS", "why": why, "kind": "Handshake"})

    def _log_refused(self, facts: dict[str, Any]) -> None:
        """Log a refusal, but not as fast as somebody can cause them."""
        if self._refusals.wait_secs("", now=time.monotonic()):
            self._not_logged += 1
            return
        left_out = {"not_logged": self._not_logged} if self._not_logged else {}
        self._not_logged = 0
        self._tell("refused", **facts, **left_out)

    def _tell(self, event: str, **facts: Any) -> None:
        self._log({"time": time_text(datetime.now(UTC)), "event": event, **facts})

    async def _answer(
        self, request: Request, caller: Caller, reader: asyncio.StreamReader, bound: asyncio.Timeout
    ) -> dict[str, Any]:
        limit = self._limits.get(request.path)
        if limit is None:
            raise RefusedError("there is no such thing here", "NotFound", HTTPStatus.NOT_FOUND)
        wait = limit.wait_secs(str(caller.peer or caller.remote), now=time.monotonic())
        if wait:
            raise RefusedError(f"too many requests: wait {wait:.0f} s", "Busy", HTTPStatus.TOO_MANY_REQUESTS)
        match request.path:
            case "/v1/roots":
                return {"roots": self._issuer.roots_pem}
            case "/v1/join":
                peer, key = _signing_request(request.body)
                code_id = text_field(request.body, "id", max_chars=100)
                secret = text_field(request.body, "secret", max_chars=100)
                return await asyncio.to_thread(self._issuer.join, code_id, secret, peer, key, caller)
            case "/v1/renew":
                peer, key = _signing_request(request.body)
                return await asyncio.to_thread(self._issuer.renew, peer, key, caller)
        return await self._trust(request, caller, reader, bound)

    async def _trust(
        self, request: Request, caller: Caller, reader: asyncio.StreamReader, bound: asyncio.Timeout
    ) -> dict[str, Any]:
        known = text_field(request.body, "known", max_chars=100)
        wait_secs = request.body.get("wait_secs")
        if not isinstance(wait_secs, int | float) or not 0 <= wait_secs <= self._settings.max_wait_secs:
            raise MalformedError(f"'wait_secs' must be a number from 0 to {self._settings.max_wait_secs:g}")
        news = self._news
        answer = await asyncio.to_thread(self._issuer.trust, caller, known)
        if wait_secs and answer["version"] == known and not answer["renew"]:
            bound.reschedule(asyncio.get_running_loop().time() + wait_secs + self._settings.request_secs)
            # A caller that goes away ends the wait: it has nothing more to say.
            waits = {asyncio.create_task(news.wait()), asyncio.create_task(reader.read(1))}
            try:
                await asyncio.wait(waits, timeout=wait_secs, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)  # a caller that went away may have left an error
            answer = await asyncio.to_thread(self._issuer.trust, caller, known)
        return answer


def _signing_request(body: dict[str, Any]) -> tuple[PeerId, EllipticCurvePublicKey]:
    try:
        return read_request_pem(text_field(body, "request", max_chars=MAX_REQUEST_CHARS))
    except ValidationError as error:
        raise MalformedError(str(error)) from error


def _caller_of(writer: asyncio.StreamWriter, remote: str) -> Caller:
    """Return who is connected: by its certificate, of which TLS has proven chain, dates and key, where it showed one."""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if der is None:
        return Caller(remote)
    try:
        certificate = load_certificate(split_pem(ssl.DER_cert_to_PEM_cert(der).encode(), "the caller's certificate")[0])
        (uri,) = uris_of(certificate)
        return Caller(remote, PeerId.parse(uri), certificate)
    except (ValueError, ValidationError):
        return Caller(remote)  # no peer of ours
