"""What the policy says of a call, asked of the one evaluator and remembered until the policy changes.

A refusal is one line of the log, with the caller, the workflow, the data class and the reason, and nothing of the payload. The
caller hears that the policy forbids it, and not which part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from blazen_peer.errors import PermissionDeniedError, ValidationError
from blazen_peer.identity import Caller, PeerId
from blazen_peer.policy import Policy

__all__ = ["InForce", "Rulings", "RunLabel", "identity_in", "label_of"]

_MAX_REMEMBERED: Final = 4096  # rulings of one policy; an allowed caller may name any number of workflows
_MAX_KEY_CHARS: Final = 1024  # of the names in a remembered ruling: a message may hold one of 64 MiB
_MAX_SHOWN_CHARS: Final = 128
_UNASKED: Final = ""  # stands for no ruling: a reason is never empty

_LOG = logging.getLogger(__name__)


class InForce(NamedTuple):
    """A policy, and who this peer is in it; None where no flow of it is to or from this peer."""

    policy: Policy
    callee: PeerId | None


@dataclass(frozen=True, slots=True)
class RunLabel:
    """What an answer, an event or a session ref is of: the workflow that was called, and the class of its data."""

    workflow: str
    data_class: str | None


@lru_cache(maxsize=1024)
def label_of(workflow: str, data_class: str | None) -> RunLabel:
    """Return the one label of these two: a server keeps a hundred thousand of them."""
    return RunLabel(workflow, data_class)


def identity_in(policy: Policy, node_id: str) -> PeerId | None:
    """Return who *node_id* is in *policy*: the trust domain stands in the flows.

    Raises:
        ValidationError: It is there in two trust domains.
    """
    found = {peer for flow in policy.flows for peer in (flow.caller, flow.callee) if peer.node_id == node_id}
    if len(found) > 1:
        raise ValidationError(f"policy: {node_id} is in it as {' and as '.join(sorted(map(str, found)))}: which is this peer?")
    return next(iter(found), None)


@dataclass(slots=True)
class _Book:
    """One policy and what was asked of it. Threads that still hold an old book write into that one."""

    in_force: InForce
    classes: tuple[str, ...]
    rulings: dict[tuple[object, ...], str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, in_force: InForce) -> _Book:
        return cls(in_force, tuple(each.name for each in in_force.policy.classes))


class Rulings:
    """Asks the policy about the calls of one server.

    Args:
        node_id: The server's own name.
        in_force: Gives the policy of this moment; asked once for each call, by :meth:`forbids`.
    """

    def __init__(self, node_id: str, in_force: Callable[[], InForce]) -> None:
        self._node_id, self._in_force = node_id, in_force
        self._book = _Book.of(in_force())

    @property
    def classes(self) -> tuple[str, ...]:
        """The data classes, strictest first."""
        return self._book.classes

    def per_sec(self) -> int | None:
        """Return how many calls a second one caller may make; None: as many as it can."""
        return self._book.in_force.policy.calls_per_sec

    def stamp_of(self, caller: Caller) -> str | None:
        """Return the class that the call of *caller* is stamped with, in a mesh that has data classes."""
        return caller.stamps[0] if caller.stamps and self._book.classes else None

    def forbids(self, caller: Caller, method: str) -> str | None:
        """Say why *caller* may not call *method* at all, for the log; None where it may. What it carries is asked later."""
        in_force = self._in_force()
        if in_force is not self._book.in_force:
            self._book = _Book.of(in_force)
        book, key = self._book, (caller.name, caller.stamps, method)
        known = book.rulings.get(key, _UNASKED)
        if known == _UNASKED:
            known = self._keep(book, key, self._on_method(book.in_force, caller, method))
        return known

    def check_call(
        self, caller: Caller, workflow: str, *, laxest: str | None, said_workflow: str | None, run_class: str | None
    ) -> None:
        """Do nothing where *caller* may run *workflow* here.

        Args:
            workflow: The name in the payload.
            laxest: The laxest class that the workflow declares.
            said_workflow, run_class: What the call's metadata says, if it does.

        Raises:
            PermissionDeniedError: It may not.
        """
        why = self._asked(caller, workflow, laxest, said_workflow, run_class)
        if why is not None:
            raise self.refusal(caller, workflow, why)

    def admits(self, caller: Caller, label: RunLabel | None, what: str | None = None) -> bool:
        """Say whether *caller* may have, through the port it came by, what a run with *label* left.

        Args:
            what: Names it in the log where the answer is no; None: say nothing.
        """
        if label is None:
            return True
        why = self._asked(caller, label.workflow, label.data_class, None, None)
        if why is not None and what is not None:
            self._log(caller, label.workflow, f"{what} of a run with {label.data_class or 'unclassified'} data: {why}")
        return why is None

    def refusal(self, caller: Caller, workflow: str, why: str) -> PermissionDeniedError:
        """Write one line to the log, and return what to raise."""
        self._log(caller, workflow, why)
        return PermissionDeniedError(
            f"the policy of {self._node_id} does not allow this call: its log says why, and blazen-mesh explain what would"
        )

    def _log(self, caller: Caller, workflow: str, why: str) -> None:
        _LOG.warning("policy refused %s, workflow %s: %s", shown(caller), repr(workflow[:_MAX_SHOWN_CHARS]), why)

    def _asked(
        self, caller: Caller, workflow: str, laxest: str | None, said_workflow: str | None, run_class: str | None
    ) -> str | None:
        book, key = self._book, (caller.name, caller.stamps, workflow, laxest, said_workflow, run_class)
        known = book.rulings.get(key, _UNASKED)
        if known == _UNASKED:
            callee = book.in_force.callee
            if caller.kind != "proven":
                why: str | None = "nobody proves who this is"
            elif callee is None:
                why = self._no_flow
            else:
                found = book.in_force.policy.at_server(
                    PeerId.parse(caller.name),
                    callee,
                    caller.stamps,
                    workflow,
                    laxest=laxest,
                    said_workflow=said_workflow,
                    run_class=run_class,
                )
                why = None if found.allowed else f"{found.reason} ({found.fix})"
            known = self._keep(book, key, why)
        return known

    def _on_method(self, in_force: InForce, caller: Caller, method: str) -> str | None:
        if caller.kind != "proven":
            why = "nobody proves who this is"
        elif in_force.callee is None:
            why = self._no_flow
        else:
            found = in_force.policy.at_ingress(PeerId.parse(caller.name), in_force.callee, caller.stamps, method)
            if found.allowed:
                return None
            why = f"{found.reason} ({found.fix})"
        return f"the policy forbids it to {shown(caller)}: {why}"

    @property
    def _no_flow(self) -> str:
        return f"no flow of this policy is to or from {self._node_id} (is it another node's file?)"

    @staticmethod
    def _keep(book: _Book, key: tuple[object, ...], why: str | None) -> str | None:
        if sum(len(part) for part in key if isinstance(part, str)) > _MAX_KEY_CHARS:
            return why
        if len(book.rulings) >= _MAX_REMEMBERED:
            book.rulings.clear()
        book.rulings[key] = why
        return why


def shown(caller: Caller) -> str:
    """Return *caller* with the stamps of its call, for the log."""
    stamps = ", ".join(stamp[:_MAX_SHOWN_CHARS] for stamp in caller.stamps)
    return f"{caller} with {'data class' if len(caller.stamps) == 1 else 'data classes'} {stamps!r}" if stamps else str(caller)
