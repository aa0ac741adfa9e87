"""A new issuing CA takes an old one's place without a refused call: made, made known, and only then issued from.

A sidecar that checks revocation refuses whom no list is for. So a new issuing CA first has its list brought to every node, and
issues once every node has had it for a minute; or a day later, when whoever has older lists refuses everybody anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.crl import CRL_LIFETIME
from blazen_certs.errors import StoreError
from blazen_certs.facts import time_text
from blazen_certs.issuing import new_issuing_files
from blazen_certs.node_state import NodeState, node_states
from blazen_certs.profile import check_time
from blazen_certs.renewal import is_due, issued_at, renewal_time
from blazen_certs.trust import Issuer, Trust
from blazen_certs.upkeep import keep_lists, keep_nodes, local_nodes

__all__ = ["IssuingStep", "coming_issuer", "keep_issuing", "lacking_lists"]

_SETTLE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class IssuingStep:
    """What ``keep_issuing`` did for one region.

    Attributes:
        region: The region, or ``mesh``.
        action: ``kept``, ``prepared`` (a new one is made known), ``waits`` (not every node knows it), ``activated`` (it issues
            from now on) or ``failed`` (it is due, and cannot be made).
        detail: Why, one line.
    """

    region: str
    action: str
    detail: str


def coming_issuer(trust: Trust, region: str) -> Issuer | None:
    """Return the issuing CA of *region* that is made already and does not issue yet; None where there is none."""
    later = [item for item in trust.issuers if item.region == region and item.version > trust.current[region]]
    return later[-1] if later else None


def lacking_lists(states: Iterable[NodeState], issuers: Sequence[Issuer], *, now: datetime) -> list[str]:
    """Return the live nodes that, as far as this store knows, lack the list of one of *issuers*."""
    wanted = {issuer.certificate.subject.rfc4514_string() for issuer in issuers}
    return [state.node for state in states if state.is_live(now) and not wanted <= state.lists]


def keep_issuing(authority: Authority, *, now: datetime, force: bool = False) -> list[IssuingStep]:
    """Bring each region's issuing CA one step on, where one is due.

    Args:
        authority: The store. Making a new one needs the root's key; the later steps do not.
        now: Current time, timezone-aware.
        force: Make a new one even if none is due.

    Raises:
        CertificateError: A finished certificate failed its checks; nothing was written.
        StoreError: Another process holds a directory.
        OSError: The disk, or the rights, do not allow it.
    """
    now = check_time(now)
    with store.locked(authority.directory):  # two that renew or rotate at once would each make a CA
        return _keep_issuing(authority, now, force)


def _keep_issuing(authority: Authority, now: datetime, force: bool) -> list[IssuingStep]:
    steps = [_step(authority, authority.trust(), region, now, force) for region in authority.trust().regions]
    if any(step.action == "prepared" for step in steps):
        keep_lists(authority, now=now)
        keep_nodes(authority, local_nodes(authority), now=now)  # brings them the lists
        for index, step in enumerate(steps):
            if step.action == "prepared":
                later = _step(authority, authority.trust(), step.region, now, force=False)
                steps[index] = later if later.action == "activated" else step
    return steps


def _step(authority: Authority, trust: Trust, region: str, now: datetime, force: bool) -> IssuingStep:
    current, coming = trust.issuer(region), coming_issuer(trust, region)
    if coming is not None and coming.generation == trust.generation:
        return _activate(authority, trust, coming, now)
    if not force and not is_due(current.certificate, now=now):
        return IssuingStep(region, "kept", f"due {time_text(renewal_time(current.certificate))}")
    if len(trust.roots) > 1:
        return IssuingStep(region, "failed", "the root is being replaced, which brings a new one: go on with rotate-root")
    if not current.has_key:
        return IssuingStep(region, "kept", "its key is on another machine, which has to renew it")
    try:
        root_key = authority.keys.load(trust.root)
    except StoreError as error:
        end = time_text(current.certificate.not_valid_after_utc)
        return IssuingStep(region, "failed", f"{error}; then run blazen-certs renew --issuing, before {end}")
    files = new_issuing_files(region, trust.root.certificate, root_key, trust.trust_domain, now=now)
    version = store.write_version(store.issuing_directory(authority.directory, region), files)
    return IssuingStep(region, "prepared", f"version {version} is made, and issues once every node has its revocation list")


def _activate(authority: Authority, trust: Trust, coming: Issuer, now: datetime) -> IssuingStep:
    states = node_states(authority.directory, trust)
    lacking = lacking_lists(states, [coming], now=now)
    if any(state.is_live(now) for state in states) and now < issued_at(coming.certificate) + _SETTLE:
        return IssuingStep(coming.region, "waits", "its revocation list is out; sidecars get a minute to take it")
    if lacking and now < issued_at(coming.certificate) + CRL_LIFETIME:
        return IssuingStep(coming.region, "waits", f"its revocation list is not yet known to be at {', '.join(lacking)}")
    store.make_current(store.issuing_directory(authority.directory, coming.region), coming.version)
    end = time_text(coming.certificate.not_valid_after_utc)
    return IssuingStep(coming.region, "activated", f"version {coming.version} issues, until {end}")
