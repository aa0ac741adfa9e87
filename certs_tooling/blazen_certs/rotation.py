"""The root's replacement in three guarded phases. The state is in the store's layout alone, so that a crash loses nothing.

    none         one root
    trust-both   a second root is trusted, and has its issuing CAs with their lists; nothing comes from it yet
    issue-new    ``root/current`` and every ``issuing/<region>/current`` point at the new ones; leaves are renewed
    none         the old root and its issuing CAs are removed

Each step is a rename, and each call first completes the phase that it finds. It advances only when every live node shows what
the next phase depends on, as far as this store (and each sidecar that may be asked) knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from blazen_certs import store
from blazen_certs.authority import Authority
from blazen_certs.errors import StoreError
from blazen_certs.facts import sha256
from blazen_certs.issuing import new_issuing_files, new_root
from blazen_certs.issuing_renewal import lacking_lists
from blazen_certs.node_state import NodeState, node_states
from blazen_certs.pem import certificates_pem
from blazen_certs.profile import check_time
from blazen_certs.sidecar import look_at_sidecar, unlike
from blazen_certs.trust import Trust
from blazen_certs.upkeep import Kept, keep_lists, keep_nodes, local_nodes

__all__ = ["PHASES", "Rotation", "RotationStep", "advance_rotation", "read_rotation"]

PHASES = ("none", "trust-both", "issue-new")
_NEXT = {"none": "trust-both", "trust-both": "issue-new", "issue-new": "none"}


@dataclass(frozen=True, slots=True)
class Rotation:
    """Where a replacement stands.

    Attributes:
        phase: One of ``PHASES``.
        old, new: The generations of the roots; equal in phase ``none``.
        blocking: For each node that keeps the next phase from beginning, why. Empty: it may begin.
        next: The phase that is next.
    """

    phase: str
    old: int
    new: int
    blocking: Mapping[str, str]

    @property
    def next(self) -> str:
        """The phase that follows."""
        return _NEXT[self.phase]


@dataclass(frozen=True, slots=True)
class RotationStep:
    """What one call of ``advance_rotation`` did.

    Attributes:
        before, after: The state found and the state left. The same phase: it was blocked.
        nodes: What became of each node of the store.
    """

    before: Rotation
    after: Rotation
    nodes: tuple[Kept, ...]

    @property
    def advanced(self) -> bool:
        """Whether the next phase began."""
        return self.before.phase != self.after.phase


def read_rotation(authority: Authority, *, now: datetime, sidecars: Mapping[str, Path] | None = None) -> Rotation:
    """Return where the replacement stands.

    Args:
        authority: The store.
        now: Current time, timezone-aware.
        sidecars: For each node whose sidecar is to be asked too, the Unix socket of its admin interface.

    Raises: as ``read_trust``.
    """
    trust = authority.trust()
    phase, old, new = _phase(trust)
    states = [state for state in node_states(authority.directory, trust) if state.is_live(now)]
    blocking: dict[str, str] = {}
    if phase == "trust-both":
        blocking = _without_new_trust(trust, states, new, now)
    elif phase == "issue-new":
        blocking = _without_new_leaf(states, new)
    if phase != "none":
        trusted = {root.certificate.serial_number for root in trust.roots}
        blocking |= _not_served(states, sidecars or {}, blocking, trusted)
    return Rotation(phase, old, new, blocking)


def advance_rotation(authority: Authority, *, now: datetime, sidecars: Mapping[str, Path] | None = None) -> RotationStep:
    """Complete the present phase, and begin the next one if nothing blocks it.

    Arguments are those of ``read_rotation``. Only the step from ``none`` needs the place of the roots' keys.

    Raises:
        StoreError: An issuing CA's key is on another machine, the new root's is not where keys are, or another process works.
        CertificateError: A finished certificate failed its checks; nothing of it was written.
        OSError: The disk, or the rights, do not allow it. The same call goes on where it ended.
    """
    now = check_time(now)
    with store.locked(authority.directory):  # two that renew or rotate at once would each make a CA
        return _advance(authority, now, sidecars)


def _advance(authority: Authority, now: datetime, sidecars: Mapping[str, Path] | None) -> RotationStep:
    done = _complete(authority, now)
    before = read_rotation(authority, now=now, sidecars=sidecars)
    if before.blocking:
        return RotationStep(before, before, tuple(done))
    match before.phase:
        case "none":
            _trust_both(authority, now)
        case "trust-both":
            store.make_current(store.root_directory(authority.directory), before.new)
        case _:
            _drop_old(authority)
    done = _complete(authority, now)
    return RotationStep(before, read_rotation(authority, now=now), tuple(done))


def _phase(trust: Trust) -> tuple[str, int, int]:
    generations = [root.generation for root in trust.roots]
    if len(generations) == 1:
        return "none", generations[0], generations[0]
    phase = "issue-new" if trust.generation == generations[-1] else "trust-both"
    return phase, generations[0], generations[-1]


def _trust_both(authority: Authority, now: datetime) -> None:
    trust = authority.trust()
    if elsewhere := [region for region in trust.regions if not trust.issuer(region).has_key]:
        raise StoreError(f"the issuing CA of {', '.join(elsewhere)} is on another machine: rotate on one that has them all")
    key, certificate = new_root(trust.trust_domain, now=now)
    files = authority.keys.keep(key, certificates_pem([certificate]))
    store.write_version(store.root_directory(authority.directory), files)


def _complete(authority: Authority, now: datetime) -> list[Kept]:
    """Do what the present phase asks for, as far as it is not done yet."""
    trust = authority.trust()
    phase, _, new = _phase(trust)
    root = next(item for item in trust.roots if item.generation == new)
    if phase == "trust-both":
        made = {issuer.region for issuer in trust.issuers if issuer.generation == new}
        if missing := [region for region in trust.regions if region not in made]:
            root_key = authority.keys.load(root)
            for region in missing:
                files = new_issuing_files(region, root.certificate, root_key, trust.trust_domain, now=now)
                store.write_version(store.issuing_directory(authority.directory, region), files)
    elif phase == "issue-new":
        for region in trust.regions:
            if trust.issuer(region).generation != new:
                version = max(issuer.version for issuer in trust.issuers if (issuer.region, issuer.generation) == (region, new))
                store.make_current(store.issuing_directory(authority.directory, region), version)
    else:
        for region in trust.regions:
            _remove_untrusted(authority, trust, region)
    keep_lists(authority, now=now)
    return keep_nodes(authority, local_nodes(authority), now=now)


def _drop_old(authority: Authority) -> None:
    trust = authority.trust()
    for root in trust.roots:
        if root.generation != trust.generation:
            store.remove_version(store.root_directory(authority.directory), root.generation)


def _remove_untrusted(authority: Authority, trust: Trust, region: str) -> None:
    home = store.issuing_directory(authority.directory, region)
    known = {issuer.version for issuer in trust.issuers if issuer.region == region}
    for version in store.versions(home):
        if version not in known:
            store.remove_version(home, version)


def _without_new_trust(trust: Trust, states: list[NodeState], new: int, now: datetime) -> dict[str, str]:
    root = next(item for item in trust.roots if item.generation == new)
    mark = sha256(root.certificate)
    coming = [issuer for issuer in trust.issuers if issuer.generation == new]
    lacking = lacking_lists(states, coming, now=now)
    blocking = {}
    for state in states:
        if mark not in state.roots:
            blocking[state.node] = _unseen(state) or "its bundle does not hold the new root"
        elif state.node in lacking:
            blocking[state.node] = "it lacks the revocation list of a new issuing CA"
    return blocking


def _without_new_leaf(states: list[NodeState], new: int) -> dict[str, str]:
    return {
        state.node: _unseen(state) or "its certificate does not come from the new root"
        for state in states
        if state.generation != new or (not state.here and state.seen is None)
    }


def _unseen(state: NodeState) -> str | None:
    return "it has not shown anything yet" if not state.here and state.seen is None else None


def _not_served(
    states: list[NodeState], sidecars: Mapping[str, Path], blocking: Mapping[str, str], roots: set[int]
) -> dict[str, str]:
    found = {}
    for state in states:
        if state.node in sidecars and state.node not in blocking and state.certificate is not None:
            view = look_at_sidecar(sidecars[state.node])
            problem = view.problem or unlike(view, state.certificate.serial_number, roots)
            if problem is not None:
                found[state.node] = problem
    return found
