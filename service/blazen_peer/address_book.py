"""``peer:NAME`` addresses: where this node's sidecar takes calls for each peer, by data class, as ``peers.json`` says.

``blazen-mesh render`` writes that file beside each node's ``envoy.json``; ``blazen-mesh up`` names it to the peers it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict

from blazen_peer.config import parse_listen_address
from blazen_peer.errors import ValidationError
from blazen_peer.flows import check_class_name
from blazen_peer.identity import check_node_id

__all__ = ["PEERS_FILE", "AddressBook", "Destination", "destination_of"]

PEERS_FILE: Final = "BLAZEN_PEERS_FILE"
MAX_BYTES: Final = 4 * 1024 * 1024
SCHEME: Final = "peer:"


def _local(address: str) -> str:
    """Return *address* when it is on this machine, as a sidecar's ports are: what goes there is plain text, token and all."""
    try:
        is_local = parse_listen_address(address).is_local
    except ValidationError as error:
        raise ValueError(str(error)) from None
    if not is_local:
        raise ValueError(f"{address[:200]} is not on this machine, where the sidecar's ports are")
    return address


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    data_class: str | None
    address: Annotated[str, AfterValidator(_local)]


class AddressBook(BaseModel):
    """What ``peers.json`` holds.

    Attributes:
        node: Whose it is.
        region: Where that node is, in a mesh with regions.
        data: Every data class of the mesh, strictest first.
        peers: For each peer that this node may call, its ports; without data classes exactly one.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    node: str
    region: str | None = None
    data: tuple[str, ...] = ()
    peers: Mapping[str, tuple[_Entry, ...]]

    @classmethod
    def read(cls, path: str | Path) -> AddressBook:
        """Return the book in the file *path*.

        Raises:
            ValidationError: It cannot be read, or is no address book.
        """
        try:
            with Path(path).open("rb") as file:
                return cls.model_validate_json(file.read(MAX_BYTES))
        except OSError as error:
            raise ValidationError(f"cannot read the address book {path}: {error.strerror}") from None
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValidationError(f"{path} is no address book: {place + ': ' if place else ''}{first['msg']}") from None

    def port(self, name: str, data_class: str | None) -> tuple[str, str | None]:
        """Return the address for *name*, and the data class that is stamped there.

        Raises:
            ValidationError: The book has no such peer, or not for this class; the error says what it has.
        """
        entries = self.peers.get(name)
        if not entries:
            raise ValidationError(f"{self.node} may call no peer {name!r}: its address book has {self._listed()}")
        if data_class is None and len(entries) > 1:
            raise ValidationError(f"say the data class of what goes to {name}: {_classes(entries)} (data_class=, --data)")
        found = next((entry for entry in entries if data_class in (None, entry.data_class)), None)
        if found is not None:
            return found.address, found.data_class
        if not self.data:
            raise ValidationError(f"data class {data_class!r}: this mesh has no data classes, leave it away")
        raise ValidationError(f"{data_class!r} data may not go from {self.node} to {name}: {_classes(entries)} may")

    def _listed(self) -> str:
        return ", ".join(f"{name} ({_classes(entries)})" for name, entries in sorted(self.peers.items())) or "nobody"


def _classes(entries: tuple[_Entry, ...]) -> str:
    return ", ".join(entry.data_class or "any data" for entry in entries)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a client connects.

    Attributes:
        address: As the user wrote it, or as the book has it.
        node_id: What the client calls itself.
        data_class: The class of what goes there; None: nobody said, and no port says.
        classes: Every data class, strictest first, where a book says so.
    """

    address: str
    node_id: str
    data_class: str | None
    classes: tuple[str, ...]


def destination_of(
    address: str,
    node_id: str | None,
    data_class: str | None,
    peers_file: str | Path | None,
    environ: Mapping[str, str],
    *,
    tls: bool,
) -> Destination:
    """Return where *address* leads: itself, or for ``peer:NAME`` what the address book has.

    Raises:
        ValidationError: There is no book, or not this peer in it, or an argument is not usable.
    """
    if data_class is not None:
        check_class_name(data_class)
    path = peers_file if peers_file is not None else environ.get(PEERS_FILE)
    book = AddressBook.read(path) if path else None  # for any address: which class is stricter stands there, too
    if not address.startswith(SCHEME):
        if node_id is None:
            raise ValidationError(f"say who calls: client_node_id= beside the address {address[:200]!r}")
        return Destination(address, check_node_id(node_id), data_class, book.data if book else ())
    if tls:
        raise ValidationError("peer: addresses are a sidecar's ports: leave tls= away, or give the https:// address")
    if book is None:
        raise ValidationError(
            f"{address[:200]!r} is looked up in this node's address book: set {PEERS_FILE}, or give peers_file= "
            "(--peers-file); blazen-mesh render writes peers.json beside envoy.json"
        )
    found, stamped = book.port(address.removeprefix(SCHEME), data_class)
    return Destination(found, check_node_id(node_id or book.node), stamped, book.data)
