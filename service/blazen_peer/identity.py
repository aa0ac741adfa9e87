"""Who a peer is: a node id inside a trust domain, written as a SPIFFE URI.

``spiffe://<trust domain>/peer/<node id>`` (SPIFFE-ID specification, sections 2.1 to 2.3). The trust domain's host is the
region's name in a mesh with regions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from blazen_peer.errors import ValidationError

__all__ = ["ANONYMOUS", "Caller", "PeerId", "check_node_id"]

MAX_SPIFFE_ID_BYTES = 2048  # SPIFFE-ID, section 2.3
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_URI = re.compile(r"spiffe://([^/]*)/peer/([^/]*)", re.ASCII)


def check_node_id(node_id: str) -> str:
    """Return *node_id* when it may name a node: 1 to 128 of letters, digits, ``.``, ``_``, ``-``; no sign first.

    Raises:
        ValidationError: Anything else, with the text in it.
    """
    if not _NODE_ID.fullmatch(node_id):
        raise ValidationError(
            f"node id {node_id[:140]!r} is not valid: "
            "use 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return node_id


@dataclass(frozen=True, slots=True)
class PeerId:
    """The identity that a certificate proves: ``str()`` of it is the SPIFFE URI.

    Raises:
        ValidationError: The trust domain or the node id holds what SPIFFE does not allow.
    """

    trust_domain: str
    node_id: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ValidationError(
                f"trust domain {self.trust_domain[:260]!r} is not valid: use lower-case letters, digits, '.', '_' or '-'"
            )
        check_node_id(self.node_id)

    @classmethod
    def parse(cls, uri: str) -> PeerId:
        """Return the identity that *uri* names.

        Raises:
            ValidationError: It is not exactly ``spiffe://<trust domain>/peer/<node id>``.
        """
        match = _URI.fullmatch(uri) if len(uri) <= MAX_SPIFFE_ID_BYTES else None
        if match is None:
            raise ValidationError(f"{uri[:200]!r} is not spiffe://<trust domain>/peer/<node id>")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/peer/{self.node_id}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call, as the gate saw it. Callers of different kinds are never equal (``semantics.md``, "Who the caller is").

    Attributes:
        kind: ``"proven"`` (a certificate, shown to the sidecar or to the peer),
            ``"claimed"`` (a token's ``iss`` alone) or ``"anonymous"``.
        name: The full SPIFFE URI, the claimed node id, or the empty string.
        stamps: The data classes that came with the call beside the sidecar's proof: exactly one where all is right. They are
            what the call may carry, and no part of who the caller is.
    """

    kind: Literal["proven", "claimed", "anonymous"]
    name: str = ""
    stamps: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def proven(cls, peer: PeerId, stamps: tuple[str, ...] = ()) -> Caller:
        """Return the caller that a certificate proved to be *peer*."""
        return cls("proven", str(peer), stamps)

    @classmethod
    def claimed(cls, node_id: str) -> Caller:
        """Return the caller that says, in a valid token, that it is *node_id*."""
        return cls("claimed", node_id)

    @property
    def node_id(self) -> str | None:
        """The caller's node id, proven or claimed; None when anonymous."""
        return PeerId.parse(self.name).node_id if self.kind == "proven" else self.name or None

    def __str__(self) -> str:
        return {"proven": self.name, "claimed": f"claimed:{self.name}", "anonymous": "anonymous"}[self.kind]


ANONYMOUS = Caller("anonymous")
