"""The tables of ``mesh.toml`` one by one, each refused as a whole when a value of it is wrong by itself.

What only shows when tables are held against each other is in :mod:`blazen_mesh.contradictions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Any, Final

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

from blazen_mesh.address import Address, TcpAddress, parse_address, parse_tcp
from blazen_peer.errors import ValidationError
from blazen_peer.flows import check_class_name, check_workflow_name
from blazen_peer.identity import PeerId, check_node_id

__all__ = [
    "UNCLASSED",
    "Data",
    "Egress",
    "Flow",
    "NodeId",
    "Peer",
    "Region",
    "Run",
    "Telemetry",
    "TrustDomain",
    "as_tuples",
    "lines_of",
]

UNCLASSED: Final = ""
"""The key of an egress port in a mesh without data classes."""

_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)  # one label of a host name
_EGRESS_KEYS: Final = ("port", "inject_token")


def _checked(check: Callable[[str], str], several: str) -> AfterValidator:
    def validate(text: str) -> str:
        if "*" in text:
            raise ValueError(f"{text[:70]!r}: there is no wildcard: name every {several}")
        try:
            return check(text)
        except ValidationError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(validate)


def _trust_domain(text: str) -> str:
    return PeerId(text, "x").trust_domain


def _region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise ValidationError(f"region {text[:70]!r} is not valid: use up to 63 lower-case letters, digits or '-' inside")
    return text


def _class_name(text: str) -> str:
    if text in _EGRESS_KEYS:
        raise ValidationError(f"{text!r} is a word of egress tables; call the data class something else")
    return check_class_name(text)


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _loopback(address: Address) -> Address:
    if isinstance(address, TcpAddress) and not address.is_loopback:
        raise ValueError(f"{address} is not on loopback: peers speak plain text, so only their own sidecar may reach them")
    return address


def _ip(address: TcpAddress) -> TcpAddress:
    if not address.is_ip:
        raise ValueError(f"{address} is a name: a sidecar binds to an IP address, such as 0.0.0.0:{address.port}")
    return address


def _day(value: object) -> object:
    # Neither text nor a time: TOML has dates, and a permission ends with a whole day.
    if type(value) is not date:
        raise ValueError("write it as a date without quotes, like 2027-01-31: the last day (UTC) on which the flow holds")
    return value


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ports(value: object) -> object:
    if _is_port(value) or (isinstance(value, Mapping) and any(key in value for key in _EGRESS_KEYS)):
        value = {UNCLASSED: value}
    if isinstance(value, Mapping):
        return {key: {"port": inner} if _is_port(inner) else inner for key, inner in value.items()}
    return value


def as_tuples(value: object) -> object:
    """Return *value* with its lists as tuples: frozen values hold tuples, and TOML arrays are lists."""
    if isinstance(value, Mapping):
        return {key: as_tuples(inner) for key, inner in value.items()}
    return tuple(as_tuples(inner) for inner in value) if isinstance(value, list) else value


def _listens(value: object) -> tuple[Address, ...]:
    given = value if isinstance(value, tuple) else (value,)
    if not given:
        raise ValueError("at least one is needed")
    return tuple(_loopback(parse_address(each)) for each in given)


NodeId = Annotated[str, _checked(check_node_id, "peer")]
TrustDomain = Annotated[str, _checked(_trust_domain, "peer")]
Region = Annotated[str, _checked(_region, "region")]
ClassName = Annotated[str, _checked(_class_name, "data class")]
WorkflowName = Annotated[str, _checked(check_workflow_name, "workflow that may be called")]
Reason = Annotated[str, AfterValidator(_said)]
Tcp = Annotated[TcpAddress, PlainValidator(parse_tcp)]


class _Table(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(_Table):
    """What ``blazen-mesh up`` starts as a node's peer: a Python module of steps, and more environment for it.

    ``require_identity = false`` lets local programs that hold the token call the peer directly, past its sidecar.
    """

    app: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    require_identity: bool = True
    env: dict[str, str] = {}


class Egress(_Table):
    """One loopback port that leads to one callee, with data of one class where the mesh has classes.

    ``inject_token`` makes the sidecar write the ``authorization`` header itself, for clients that cannot. Every process that
    reaches the port is the node then.
    """

    port: Annotated[int, Field(ge=1, le=65535)]
    inject_token: bool = False


class Peer(_Table):
    """One node: its sidecar's address for others, its plain-text peer, and its egress ports by callee and data class.

    ``listens`` (``listen`` in the file, one address or a list) has one address for each replica of the peer. ``bind`` is for an
    ingress that cannot bind to the address it is dialled at; see :attr:`ingress_bind`.
    """

    sidecar: Tcp
    listens: Annotated[tuple[Address, ...], PlainValidator(_listens), Field(alias="listen")]
    region: Region | None = None
    bind: Annotated[TcpAddress, PlainValidator(parse_tcp), AfterValidator(_ip)] | None = None
    egress: dict[NodeId, Annotated[dict[str, Egress], BeforeValidator(_ports), Field(min_length=1)]] = {}
    run: Run | None = None

    @property
    def listen(self) -> Address:
        """The first of :attr:`listens`: the only one of a peer without replicas."""
        return self.listens[0]

    @property
    def ingress_bind(self) -> TcpAddress:
        """``bind``; without it, the sidecar's own IP address, or every interface where that is a name."""
        return self.bind or (self.sidecar if self.sidecar.is_ip else TcpAddress("0.0.0.0", self.sidecar.port))  # noqa: S104


class Data(_Table):
    """One class of data, the regions in which it may be, and why. In the file, the strictest comes first."""

    name: ClassName
    regions: tuple[Region, ...] = ()
    why: Reason

    @property
    def reason(self) -> str:
        """``why`` as one line."""
        return " ".join(self.why.split())


class Flow(_Table):
    """One permission: *caller* may call these workflows on *callee*, with data of these classes, and why.

    ``until`` is the last day (UTC) on which it holds; None for good.
    """

    caller: Annotated[NodeId, Field(alias="from")]
    callee: Annotated[NodeId, Field(alias="to")]
    workflows: Annotated[tuple[WorkflowName, ...], Field(min_length=1)]
    data: tuple[ClassName, ...] = ()
    why: Reason
    until: Annotated[date | None, BeforeValidator(_day)] = None

    @property
    def reason(self) -> str:
        """``why`` as one line."""
        return " ".join(self.why.split())

    def __str__(self) -> str:
        return f"{self.caller} -> {self.callee}"


class Telemetry(_Table):
    """Where sidecars send their spans: an OTLP/gRPC receiver in plain text."""

    otlp: Tcp


_TEXTS: Final = {"extra_forbidden": "unknown key", "missing": "missing", "too_short": "at least one is needed"}


def lines_of(error: pydantic.ValidationError) -> tuple[str, ...]:
    """Return what pydantic found as lines: the place in the file, and what is wrong there."""
    found = error.errors(include_url=False)
    # A list whose items are all wrong is also too short to pydantic; the items' own lines say it better.
    wrong = {each["loc"][:-1] for each in found}
    return tuple(_line(each) for each in found if each["type"] != "too_short" or each["loc"] not in wrong)


def _line(found: Any) -> str:
    place = ""
    for part in found["loc"]:
        if part not in ("[key]", UNCLASSED):
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    kind = found["type"]
    text = _TEXTS.get(kind, found["msg"].removeprefix("Value error, "))
    if kind in ("model_type", "dict_type"):
        text = "a port, or a table with a port, is needed" if ".egress." in place else "a table is needed"
    if kind == "string_pattern_mismatch":
        text = "not the name of a Python module"
    if kind == "tuple_type":
        text = "a list is needed"
    return f"{place or 'mesh'}: {text}"
