"""The session refs of one run: what may be put, what is told of them, and what becomes of them at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Final
from uuid import UUID

from blazen_peer.errors import OverloadedError, ValidationError
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.ref_values import Serializer, measured
from blazen_peer.runtime.refs import RefEntry, RefLifetime, RefTable, RemoteRef
from blazen_peer.runtime.rulings import RunLabel, label_of

__all__ = ["MAX_TYPE_TAG_BYTES", "RunRefs"]

MAX_TYPE_TAG_BYTES: Final = 512


class RunRefs:
    """The refs of one run, which is a child of *parent* (here) or of *parent_run_id* (a run of the remote caller's).

    Args:
        table: Where they are held.
        owner: The run's caller.
        parent: The refs of the run in whose step this one was started.
        parent_run_id: What a remote caller calls the run in whose step it made this call.
        listed: Whether a response tells a remote caller of them.
        label: What the run is to a policy, where there is one.
    """

    __slots__ = (
        "_at_end",
        "_label",
        "_listed",
        "_outlived",
        "_over",
        "_owner",
        "_parent",
        "_parent_run_id",
        "_table",
        "_uuids",
    )

    def __init__(
        self,
        table: RefTable,
        owner: Caller = ANONYMOUS,
        *,
        parent: RunRefs | None = None,
        parent_run_id: str | None = None,
        listed: bool = False,
        label: RunLabel | None = None,
    ) -> None:
        self._table, self._owner, self._label = table, owner, label
        self._parent, self._parent_run_id, self._listed = parent, parent_run_id, listed
        self._over = False
        self._uuids: list[UUID] | None = None  # made by the first put: most runs have none
        self._outlived: list[UUID] | None = None  # of children, to go when this run ends
        self._at_end: dict[Hashable, Callable[[], None]] | None = None

    def child(self, data_class: str | None = None) -> RunRefs:
        """Return the refs of a run that a step of this one starts: the same table, the same owner, its own data class."""
        label = self._label
        if label is not None and data_class is not None:
            label = label_of(label.workflow, data_class)
        return RunRefs(self._table, self._owner, parent=self, label=label)

    def at_end(self, key: Hashable, action: Callable[[], None]) -> None:
        """Have *action* called once at the run's end, in its thread; now, if it is over. One action for each *key*."""
        with self._table.lock:
            if not self._over:
                self._at_end = {**(self._at_end or {}), key: action}
                return
        action()

    def put(
        self,
        value: Any,
        *,
        type_tag: str,
        serializer: Serializer | None = None,
        lifetime: RefLifetime | str = RefLifetime.CONTEXT,
        lease_secs: float | None = None,
        size_bytes: int | None = None,
    ) -> RemoteRef:
        """Hold *value* and return its ref. See ``Context.put_ref``."""
        lifetime = _checked(type_tag, serializer, lifetime, lease_secs, size_bytes)
        limits = self._table.settings
        if size_bytes is None:
            size_bytes = measured(value, serializer, limits.max_run_ref_bytes)
        with self._table.lock:
            if self._over:
                raise ValidationError("the run is over: a session ref cannot be put into it any more")
            mine = self._table.entries_of(self._uuids or ())
            if len(mine) >= limits.max_run_refs:
                raise OverloadedError(f"this run holds {len(mine)} session refs, as many as may be")
            if sum(entry.size_bytes for entry in mine) + size_bytes > limits.max_run_ref_bytes:
                raise OverloadedError(f"this run's session refs would be over {limits.max_run_ref_bytes} bytes together")
            lease = limits.ref_lease_secs if lease_secs is None else float(lease_secs)
            entry = self._table.add(
                lambda ref: RefEntry(ref, value, serializer, self._owner, lifetime, size_bytes, lease, label=self._label),
                type_tag,
                size_bytes,
            )
            self._uuids = [*(held.ref.uuid for held in mine), entry.ref.uuid]
            return entry.ref

    def value(self, uuid: UUID) -> Any:
        """Return the live value of a ref of the same caller, of this run or another.

        Raises:
            RefNotFoundError: There is none.
        """
        return self._table.use(uuid, self._owner).value

    def drop(self, uuid: UUID) -> bool:
        """Forget a ref of the same caller; say whether there was one."""
        return self._table.release(uuid, self._owner)

    def before_snapshot(self) -> int:
        """Forget what may not be part of a snapshot, nor outlast a pause; return how many those were."""
        with self._table.lock:
            mine = self._table.entries_of(self._uuids or ())
            return self._table.forget([entry.ref.uuid for entry in mine if entry.lifetime is RefLifetime.SNAPSHOT])

    def finish(self, *, succeeded: bool) -> tuple[RemoteRef, ...]:
        """The run is over: forget what goes with it, and return what lives on, oldest first. A second call returns nothing.

        A run that failed leaves nothing: nobody was told of its refs.
        """
        refs = self._settled(succeeded)
        if self._at_end is not None:
            actions, self._at_end = self._at_end, None
            for action in actions.values():
                action()
        return refs

    def _settled(self, succeeded: bool) -> tuple[RemoteRef, ...]:
        table = self._table
        with table.lock:
            self._over = True
            uuids, self._uuids = self._uuids, None
            if self._outlived is not None:
                table.forget(self._outlived)
                self._outlived = None
            if uuids is None:
                return ()
            kept = []
            for entry in table.entries_of(uuids):
                if not succeeded or not self._keeps(entry):
                    table.remove(entry)
                    continue
                kept.append(entry)
                if table.leases and not self._has_parent:
                    table.begin_lease(entry)
            return tuple(entry.ref for entry in kept if entry.is_serializable or not self._listed)

    @property
    def _has_parent(self) -> bool:
        return self._parent is not None and not self._parent._over

    def _keeps(self, entry: RefEntry) -> bool:
        """Say whether *entry* outlives the run, and hand it to whoever ends it then."""
        parent = self._parent if self._has_parent else None
        match entry.lifetime:
            case RefLifetime.EXPLICIT_DROP:
                if parent is not None:
                    parent._uuids = [*(parent._uuids or ()), entry.ref.uuid]
                return True
            case RefLifetime.PARENT_FINISH if parent is not None:
                parent._outlived = [*(parent._outlived or ()), entry.ref.uuid]
                return True
            case RefLifetime.PARENT_FINISH if self._listed and self._parent_run_id is not None and entry.is_serializable:
                entry.parent_run_id = self._parent_run_id
                return True
            case _:
                return self._listed and entry.is_serializable


def _checked(
    type_tag: object, serializer: object, lifetime: RefLifetime | str, lease_secs: float | None, size_bytes: int | None
) -> RefLifetime:
    try:
        tag_bytes = len(type_tag.encode()) if isinstance(type_tag, str) else 0
    except UnicodeEncodeError:
        tag_bytes = 0
    if not 0 < tag_bytes <= MAX_TYPE_TAG_BYTES:
        raise ValidationError(f"a type tag is text of 1 to {MAX_TYPE_TAG_BYTES} bytes, such as my_app::Model")
    if serializer is not None and not callable(serializer):
        raise ValidationError(f"a serializer is a function of the value, not {type(serializer).__name__}")
    if lease_secs is not None and not (0 < lease_secs < math.inf):
        raise ValidationError(f"lease_secs must be above 0 and finite, not {lease_secs!r}")
    if size_bytes is not None and size_bytes < 0:
        raise ValidationError(f"size_bytes must be at least 0, not {size_bytes!r}")
    try:
        return RefLifetime(lifetime)
    except ValueError:
        known = ", ".join(RefLifetime)
        raise ValidationError(f"{lifetime!r} is no lifetime of a session ref: use one of {known}") from None
