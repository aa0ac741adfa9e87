"""What the certificate service does with the store: who gets a certificate, what the mesh trusts, and the audit line of each.

Every function here may block (disk, locks), and may be called from any thread.
"""

from __future__ import annotations

import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blazen_certs import store
from blazen_certs.authority import Authority, SignedIdentity
from blazen_certs.codes import CodeBook
from blazen_certs.crl import is_revoked, revoked_serials
from blazen_certs.errors import CodeError
from blazen_certs.facts import dns_names_of, sha256, time_text
from blazen_certs.issued import note_shown, read_issued, record_locked
from blazen_certs.issuing_renewal import keep_issuing
from blazen_certs.remote import files_version, service_peer
from blazen_certs.service_audit import write_audit
from blazen_certs.service_tls import TellingConnection
from blazen_certs.trust import Issuer, Trust
from blazen_certs.upkeep import keep_lists, keep_node
from blazen_peer.errors import BlazenError
from blazen_peer.identity import PeerId

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["Caller", "RefusedError", "ServiceIssuer"]

_NOTE_AGAIN = timedelta(minutes=1)
_MAX_NOTED = 10_000


class RefusedError(BlazenError):
    """The service will not do it for this caller. ``status`` is the HTTP status that says so."""

    def __init__(self, message: str, kind: str, status: HTTPStatus = HTTPStatus.FORBIDDEN) -> None:
        super().__init__(message, kind, status)
        self.message, self.kind, self.status = message, kind, status

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        remote: The address that it comes from.
        peer: Whom its certificate proves it to be; None where it shows none.
        certificate: That certificate; TLS has checked its chain, its dates, and that the caller holds its key.
    """

    remote: str
    peer: PeerId | None = None
    certificate: x509.Certificate | None = None

    def facts(self) -> dict[str, Any]:
        """Return what a log line says of it."""
        found: dict[str, Any] = {"from": self.remote}
        if self.peer is not None:
            found["caller"] = str(self.peer)
        if self.certificate is not None:
            found["caller_serial"] = f"{self.certificate.serial_number:x}"
        return found


@dataclass(frozen=True, slots=True)
class _Served:
    """What the store said when it was last read, as it is handed out."""

    trust: Trust
    bundle: str
    crl: str
    version: str
    own: str

    @classmethod
    def of(cls, trust: Trust, own: str) -> _Served:
        bundle, crl = trust.bundle_pem, trust.crl_pem
        return cls(trust, bundle.decode(), crl.decode(), files_version(bundle, crl), own)


class ServiceIssuer:
    """The store behind one service.

    Args:
        authority: The authority; each region whose issuing key is on this machine is served.
        lifetime: That of the leaves.
        log: Takes each audit line as an object, after it was written to ``audit.jsonl``.
    """

    def __init__(self, authority: Authority, *, lifetime: timedelta, log: Callable[[dict[str, Any]], None]) -> None:
        self._authority, self.lifetime, self._log = authority, lifetime, log
        self._codes = CodeBook.of(authority.directory)
        self._noted: OrderedDict[str, tuple[int, str, datetime]] = OrderedDict()
        self._said: dict[str, str] = {}
        self._looking = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._served = _Served.of(authority.trust(), "")

    @property
    def served(self) -> str:
        """Stands for all that callers meet: the trusted roots, the lists, the service's own certificates."""
        return f"{self._served.version} {self._served.own}"

    @property
    def roots_pem(self) -> str:
        """The roots, PEM."""
        return self._served.bundle

    def look(self) -> None:
        """Read the store again where another command has changed it. ``served`` differs afterwards if that matters to anyone.

        Raises:
            BlazenError, OSError: It cannot be read; what was read last is still served.
        """
        with self._looking:
            seen = self._marks()
            if seen == self._seen:
                return
            trust = self._authority.trust()
            own = [str(store.current_version(self._own(trust_domain))) for trust_domain in self._trust_domains(trust)]
            self._served = _Served.of(trust, " ".join(own))
            self._seen = seen

    def tend(self) -> None:
        """Do what is due: sign revocation lists again, renew the service's own certificates, and the issuing CAs.

        An issuing CA whose root's key is not at hand is in the log, with what to do.

        Raises:
            BlazenError, OSError: It cannot be done; what there is goes on being served.
        """
        now = datetime.now(UTC)
        keep_lists(self._authority, now=now)
        trust = self._authority.trust()
        for region in trust.regions:
            if trust.issuer(region).has_key:
                self._keep_own(trust.issuer(region), now)
        self._keep_issuing(now)
        self.look()

    def _keep_issuing(self, now: datetime) -> None:
        """Bring issuing CAs on. What is wrong with a root's key is said, and keeps nobody from the certificates of today."""
        try:
            steps = [(step.region, step.action, step.detail) for step in keep_issuing(self._authority, now=now)]
        except (BlazenError, OSError) as error:
            steps = [("", "failed", str(error))]
        for region, action, detail in steps:
            if action != "kept" and self._said.get(region) != f"{action}: {detail}":
                self._log({"time": time_text(now), "event": f"issuing-{action}", "region": region, "detail": detail})
        self._said = {region: f"{action}: {detail}" for region, action, detail in steps}

    def context(self, refused: Callable[[str], None]) -> ssl.SSLContext:
        """Return TLS 1.3 with the service's certificate of the trust domain that a caller names; callers may show one too.

        Args:
            refused: Is told why a handshake failed.

        Raises:
            OSError: The files cannot be read (``ssl.SSLError`` among them).
        """
        contexts = {}
        for trust_domain in self._trust_domains(self._served.trust):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_OPTIONAL
            context.num_tickets = 0  # each connection shows its certificate anew
            context.sslobject_class = type("TellingConnection", (TellingConnection,), {"refused": staticmethod(refused)})
            context.load_verify_locations(cadata=self._served.bundle)
            own = self._own(trust_domain)
            current = own / f"v{store.current_version(own)}"  # looked up once: certificate and key from one version
            context.load_cert_chain(current / store.CERTIFICATE, current / store.KEY)
            contexts[service_peer(trust_domain).node_id] = context

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if name in contexts:
                connection.context = contexts[name]

        first = next(iter(contexts.values()))
        first.sni_callback = choose
        return first

    def join(self, code_id: str, secret: str, peer: PeerId, key: EllipticCurvePublicKey, caller: Caller) -> dict[str, Any]:
        """Use up a code for the first certificate of *peer*.

        Raises:
            CodeError: It is not accepted.
            BlazenError, OSError: The store does not allow it.
        """
        self._codes.check(code_id, secret, peer)  # first, so that who holds no code makes no record
        with record_locked(self._authority.directory, peer.node_id):
            record = self._codes.redeem(code_id, secret, peer)
            trust = self._authority.trust()
            for certificate in read_issued(self._authority.directory, peer.node_id):
                issuer = trust.issuer_of(certificate)
                since = None if issuer is None else revoked_serials(issuer.crl).get(certificate.serial_number)
                if since is not None and since.timestamp() >= int(record.made):
                    raise CodeError(f"{peer} was revoked after the code was made: have a new one made")
            signed = self._sign(peer, key, record.dns_names)
        self._audit("issued", {"how": "join", "code": code_id, **caller.facts(), **_facts(peer, signed.certificate)})
        return self._granted(signed)

    def renew(self, peer: PeerId, key: EllipticCurvePublicKey, caller: Caller) -> dict[str, Any]:
        """Give a caller its next certificate: its own name, the DNS names that it has.

        Raises:
            RefusedError: It shows no certificate, or a revoked one, or asks for another's name.
            BlazenError, OSError: The store does not allow it.
        """
        shown = self._shown_by(caller)
        if peer != caller.peer:
            raise RefusedError(f"{caller.peer} may renew its own name only, not {peer}", "Denied")
        with record_locked(self._authority.directory, peer.node_id):
            self._refuse_revoked(shown, self._authority.trust())
            signed = self._sign(peer, key, dns_names_of(shown))
        self._audit("issued", {"how": "renew", **caller.facts(), **_facts(peer, signed.certificate)})
        return self._granted(signed)

    def trust(self, caller: Caller, known: str) -> dict[str, Any]:
        """Tell a node what the mesh trusts, and note which of it the node has.

        Raises:
            RefusedError: It shows no certificate, or a revoked one.
            BlazenError, OSError: The store does not allow it.
        """
        shown, served = self._shown_by(caller), self._served
        self._refuse_revoked(shown, served.trust)
        issuer = served.trust.issuer_of(shown)
        renew = issuer is None or issuer.version != served.trust.current.get(issuer.region)
        answer = {"version": served.version, "renew": renew}
        if known == served.version:
            self._note(caller, shown, served)
        return answer if known == served.version and not renew else {**answer, "bundle": served.bundle, "crl": served.crl}

    def _shown_by(self, caller: Caller) -> x509.Certificate:
        if caller.certificate is None or caller.peer is None:
            raise RefusedError("show a certificate of this mesh; a node without one joins with a code", "Denied")
        return caller.certificate

    def _refuse_revoked(self, certificate: x509.Certificate, trust: Trust) -> None:
        issuer = trust.issuer_of(certificate)
        if issuer is None or is_revoked(certificate.serial_number, issuer.crl):
            raise RefusedError("this certificate is revoked; a node that may come back joins with a new code", "Revoked")

    def _sign(self, peer: PeerId, key: EllipticCurvePublicKey, dns_names: list[str] | tuple[str, ...]) -> SignedIdentity:
        region = next((item.region for item in self._served.trust.issuers if item.trust_domain == peer.trust_domain), None)
        if region is None or peer == service_peer(peer.trust_domain):
            raise RefusedError(f"{peer} is not to be had here", "Denied")
        return self._authority.sign(peer.node_id, key, lifetime=self.lifetime, dns_names=dns_names, region=region)

    def _granted(self, signed: SignedIdentity) -> dict[str, Any]:
        self.look()  # so that the next answer to this node is not older than this one
        return {
            "certificate": signed.chain_pem.decode(),
            "version": files_version(signed.bundle_pem, signed.crl_pem),
            "bundle": signed.bundle_pem.decode(),
            "crl": signed.crl_pem.decode(),
        }

    def _note(self, caller: Caller, shown: x509.Certificate, served: _Served) -> None:
        """Note that the node has all that is *served*, which ``rotate-root`` waits for; not at every question."""
        assert caller.peer is not None  # noqa: S101 - _shown_by let no other pass
        node, now = caller.peer.node_id, datetime.now(UTC)
        serial, noted, at = self._noted.get(node, (0, "", now))
        if (serial, noted) == (shown.serial_number, served.version) and now - at < _NOTE_AGAIN:
            return
        trust = served.trust
        note_shown(self._authority.directory, node, shown, trust.bundle_pem, trust.crl_pem, now=now)
        self._noted[node] = (shown.serial_number, served.version, now)
        while len(self._noted) > _MAX_NOTED:
            self._noted.popitem(last=False)

    def _audit(self, event: str, facts: dict[str, Any]) -> None:
        """Write one line, before anybody can have the certificate that it tells of."""
        self._log(write_audit(self._authority.directory, event, **facts))

    def _trust_domains(self, trust: Trust) -> list[str]:
        """Return those that can be served: their issuing CA's key is here."""
        return [issuer.trust_domain for issuer in map(trust.issuer, trust.regions) if issuer.has_key]

    def _own(self, trust_domain: str) -> Path:
        return store.node_directory(self._authority.directory, service_peer(trust_domain).node_id)

    def _keep_own(self, issuer: Issuer, now: datetime) -> None:
        """Keep the service's own identity in a region: a node's as others are, but that a revoked one is replaced at once."""
        peer = service_peer(issuer.trust_domain)
        certificate: x509.Certificate | None = None
        if store.current_version(self._own(issuer.trust_domain)) is not None:
            kept = keep_node(self._authority, peer.node_id, now=now, lifetime=self.lifetime)
            if kept.action in ("kept", "republished"):
                return
            certificate = kept.certificate if kept.action == "renewed" else None
        if certificate is None:
            certificate = self._authority.issue(
                peer.node_id, now=now, lifetime=self.lifetime, dns_names=(peer.node_id,), region=issuer.region
            ).certificate
        self._audit("issued", {"how": "service", **_facts(peer, certificate)})

    def _marks(self) -> tuple[object, ...]:
        """Return what changes when another command changes the store."""
        directory = self._authority.directory
        roots, issuing = store.root_directory(directory), store.issuing_directory(directory, "any").parent
        files = [roots / store.CURRENT, *roots.glob(f"v*/{store.ROOT_CERTIFICATE}"), *issuing.glob(f"*/{store.CURRENT}")]
        files += [*issuing.glob(f"*/v*/{store.CRL}")]
        files += [self._own(trust_domain) / store.CURRENT for trust_domain in self._trust_domains(self._served.trust)]
        return tuple((str(path), (found := path.lstat()).st_ino, found.st_mtime_ns) for path in sorted(files) if path.exists())


def _facts(peer: PeerId, certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "spiffe_id": str(peer),
        "serial": f"{certificate.serial_number:x}",
        "not_after": time_text(certificate.not_valid_after_utc),
        "sha256": sha256(certificate),
    }
