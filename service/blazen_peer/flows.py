"""Flows and data classes: the values that a policy is made of, and their JSON. :mod:`blazen_peer.policy` evaluates them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Final, Literal

import pydantic
from pydantic import ConfigDict, Field

from blazen_peer.errors import ValidationError
from blazen_peer.identity import PeerId
from blazen_peer.jsontext import dump

__all__ = [
    "MAX_CALLS_PER_SEC",
    "DataClass",
    "Flow",
    "check_calls_per_sec",
    "check_class_name",
    "check_workflow_name",
    "read_document",
    "region_of",
    "write_document",
]

FORMAT: Final = 1
MAX_CALLS_PER_SEC: Final = 10_000_000
MAX_WORKFLOW_NAME_CHARS: Final = 256
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_class_name(name: str) -> str:
    """Return *name* when it may name a data class: 1 to 64 of letters, digits, ``.``, ``_``, ``-``; no sign first.

    Raises:
        ValidationError: Anything else, ``*`` with a line of its own.
    """
    if "*" in name:
        raise ValidationError(f"{name[:70]!r}: there is no wildcard: name every data class")
    if not _CLASS_NAME.fullmatch(name):
        raise ValidationError(f"data class {name[:70]!r} is not valid: use 1 to 64 letters, digits, '.', '_' or '-'")
    return name


def check_workflow_name(name: str) -> str:
    """Return *name* when it may name a workflow: 1 to 256 printable characters, no ``*``.

    Raises:
        ValidationError: Anything else, ``*`` with a line of its own.
    """
    if "*" in name:
        raise ValidationError(f"{name[:70]!r}: there is no wildcard: name every workflow that may be called")
    if not (1 <= len(name) <= MAX_WORKFLOW_NAME_CHARS and name.isprintable() and name == name.strip()):
        raise ValidationError(f"workflow {name[:70]!r} is not valid: use 1 to 256 printable characters, no space at the ends")
    return name


def region_of(peer: PeerId) -> str:
    """Return the region in *peer*'s identity, in a mesh with regions: the first label of its trust domain."""
    return peer.trust_domain.partition(".")[0]


@dataclass(frozen=True, slots=True)
class DataClass:
    """A kind of data, and the regions in which it may be. ``regions`` is empty only in a mesh without regions."""

    name: str
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_class_name(self.name)


@dataclass(frozen=True, slots=True)
class Flow:
    """One permission.

    Attributes:
        workflows: What may be called; never empty, and no wildcard.
        classes: With data of which classes; empty only in a policy without data classes.
        why: For the one who audits it.
        until: The last day (UTC) on which it holds; None for good.
    """

    caller: PeerId
    callee: PeerId
    workflows: frozenset[str]
    classes: frozenset[str] = frozenset()
    why: str = ""
    until: date | None = None

    def __post_init__(self) -> None:
        if not self.workflows:
            raise ValidationError(f"{self}: no workflows: name each one that may be called")
        for workflow in self.workflows:
            check_workflow_name(workflow)
        if self.caller == self.callee:
            raise ValidationError(f"{self}: a peer runs its own workflows without the mesh")

    def __str__(self) -> str:
        return f"{self.caller.node_id} -> {self.callee.node_id}"


def check_calls_per_sec(calls_per_sec: int) -> int:
    """Return *calls_per_sec* when it may bound a caller: 1 to 10,000,000.

    Raises:
        ValidationError: Anything else.
    """
    if not 1 <= calls_per_sec <= MAX_CALLS_PER_SEC:
        raise ValidationError(f"calls_per_sec is {calls_per_sec}: use 1 to {MAX_CALLS_PER_SEC}")
    return calls_per_sec


def write_document(classes: Sequence[DataClass], flows: Sequence[Flow], calls_per_sec: int | None) -> str:
    """Return a policy as JSON; the same one gives the same text. Where nothing bounds callers, nothing says so."""
    order = {each.name: place for place, each in enumerate(classes)}
    written = [
        {
            "from": str(flow.caller),
            "to": str(flow.callee),
            "workflows": sorted(flow.workflows),
            "data": sorted(flow.classes, key=order.__getitem__),
            "why": flow.why,
            "until": flow.until.isoformat() if flow.until else None,
        }
        for flow in flows
    ]
    data = [{"name": each.name, "regions": list(each.regions)} for each in classes]
    rate = {} if calls_per_sec is None else {"calls_per_sec": calls_per_sec}
    return dump({"format": FORMAT, "data": data, "flows": written, **rate})


def read_document(text: str | bytes) -> tuple[tuple[DataClass, ...], tuple[Flow, ...], int | None]:
    """Return what :func:`write_document` wrote.

    Raises:
        ValidationError: *text* is not that; one line, with its place.
    """
    try:
        document = _Document.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValidationError(f"{place + ': ' if place else ''}{first['msg']}") from None
    classes = tuple(DataClass(each.name, each.regions) for each in document.data)
    return classes, tuple(each.flow() for each in document.flows), document.calls_per_sec


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _DocumentClass(_Strict):
    name: str
    regions: tuple[str, ...]


class _DocumentFlow(_Strict):
    caller: Annotated[str, Field(alias="from")]
    callee: Annotated[str, Field(alias="to")]
    workflows: tuple[str, ...]
    data: tuple[str, ...]
    why: str
    until: date | None

    def flow(self) -> Flow:
        caller, callee = PeerId.parse(self.caller), PeerId.parse(self.callee)
        return Flow(caller, callee, frozenset(self.workflows), frozenset(self.data), self.why, self.until)


class _Document(_Strict):
    format: Literal[1]
    data: tuple[_DocumentClass, ...]
    flows: tuple[_DocumentFlow, ...]
    calls_per_sec: int | None = None  # files from before there were lanes have none
