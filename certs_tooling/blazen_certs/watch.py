"""A store that keeps itself good: what ``blazen-certs watch`` does, one look at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from blazen_certs.authority import Authority
from blazen_certs.crl import CRL_RESIGN
from blazen_certs.facts import name_text, time_text
from blazen_certs.issuing_renewal import keep_issuing
from blazen_certs.profile import BACKDATING
from blazen_certs.renewal import renewal_time, retry_delay
from blazen_certs.sidecar import SidecarView, look_at_sidecar, wait_until_served
from blazen_certs.upkeep import Kept, keep_lists, keep_nodes, local_nodes
from blazen_peer.errors import BlazenError

__all__ = ["LOOK_EVERY", "Watch"]

LOOK_EVERY = timedelta(seconds=60)  # at least: other commands change the store too, and clocks are set
_SOONEST = timedelta(seconds=1)


class Watch:
    """Renews what is due, signs lists again, and brings both to the nodes; retries what failed.

    Args:
        authority: The store.
        nodes: Which of its nodes; None: each that has an identity in it.
        sidecars: For each node whose sidecar is asked whether it serves what was published, its admin socket.
        log: Takes what happened: ``time``, ``event``, and what that event has.
        served_secs: How long a sidecar may take.
    """

    def __init__(
        self,
        authority: Authority,
        log: Callable[[dict[str, Any]], None],
        *,
        nodes: Sequence[str] | None = None,
        sidecars: Mapping[str, Path] | None = None,
        served_secs: float = 10.0,
    ) -> None:
        self._authority, self._log, self._nodes = authority, log, nodes
        self._sidecars, self._served_secs = dict(sidecars or {}), served_secs
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, datetime] = {}
        self._anew: set[str] = set()
        self._said: dict[str, str] = {}

    def run(self, stop: threading.Event, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Look again and again until *stop* is set. No wait is longer than a minute."""
        while not stop.is_set():
            now = clock()
            stop.wait((self.look(now) - now).total_seconds())

    def look(self, now: datetime) -> datetime:
        """Do what is due at *now*, and return when to look again: in one second at the soonest, in one minute at the latest."""
        again = [now + LOOK_EVERY]
        try:
            self._issuing(now)
            nodes = local_nodes(self._authority) if self._nodes is None else list(self._nodes)
            again += [self._node(node, now) for node in nodes]
            again += [
                issuer.crl.last_update_utc + BACKDATING + CRL_RESIGN
                for issuer in self._authority.trust().issuers_at(now)
                if issuer.has_key
            ]
        except (BlazenError, OSError) as error:
            again.append(self._failed("store", str(error), now))
        else:
            self._worked("store")
        return max(min(again), now + _SOONEST)

    def _issuing(self, now: datetime) -> None:
        for step in keep_issuing(self._authority, now=now):
            text = f"{step.action}: {step.detail}"
            if step.action != "kept" and self._said.get(step.region) != text:
                self._say(now, f"issuing-{step.action}", region=step.region, detail=step.detail)
            self._said[step.region] = text
        for issuer in keep_lists(self._authority, now=now):
            self._say(now, "list-signed", region=issuer.region, issuer=name_text(issuer.certificate.subject))

    def _node(self, node: str, now: datetime) -> datetime:
        if (retry := self._retry_at.get(node)) is not None and now < retry:
            return retry
        socket = self._sidecars.get(node)
        before = SidecarView() if socket is None else look_at_sidecar(socket)
        kept = keep_nodes(self._authority, [node], now=now, force=node in self._anew)[0]
        if kept.action == "failed":
            return self._failed(node, kept.detail, now)
        self._tell(kept, now)
        if socket is not None and kept.action in ("renewed", "republished") and kept.certificate is not None:
            roots, serial = self._authority.trust().root_certificates, kept.certificate.serial_number
            problem = wait_until_served(socket, serial, roots, before=before, secs=self._served_secs)
            if problem is not None:
                # What it refused stays poisoned until something else comes: the next attempt makes a new certificate.
                self._anew.add(node)
                return self._failed(node, problem, now)
            self._say(now, "served", node=node, serial=f"{serial:x}")
        self._anew.discard(node)
        self._worked(node)
        return now + LOOK_EVERY if kept.certificate is None or kept.action == "revoked" else renewal_time(kept.certificate)

    def _tell(self, kept: Kept, now: datetime) -> None:
        if kept.action == "kept" or (kept.action == "revoked" and self._said.get(kept.node) == kept.detail):
            return
        self._said[kept.node] = kept.detail
        more: dict[str, Any] = {"node": kept.node, "detail": kept.detail, "version": kept.version}
        if kept.certificate is not None:
            more |= {
                "serial": f"{kept.certificate.serial_number:x}",
                "not_after": time_text(kept.certificate.not_valid_after_utc),
                "next": time_text(renewal_time(kept.certificate)),
            }
        self._say(now, kept.action, **more)

    def _failed(self, what: str, detail: str, now: datetime) -> datetime:
        self._failures[what] = self._failures.get(what, 0) + 1
        self._retry_at[what] = now + retry_delay(self._failures[what])
        self._say(now, "failed", node=what, detail=detail, retry=time_text(self._retry_at[what]))
        return self._retry_at[what]

    def _worked(self, what: str) -> None:
        self._failures.pop(what, None)
        self._retry_at.pop(what, None)

    def _say(self, now: datetime, event: str, **more: Any) -> None:
        self._log({"time": time_text(now), "event": event, **more})
