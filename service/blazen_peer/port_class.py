"""The class of the data that a client's calls carry, and what the sidecar's port that they go through says of it.

Each port of an egress sidecar stamps one data class, on every call and on every answer. A client sends nothing through a port
that stamps a laxer class than it was made for, nor than the class of the run in whose step it is used.
"""

from __future__ import annotations

from collections.abc import Iterable

from blazen_peer.auth import DATA_CLASS_STAMP
from blazen_peer.errors import PermissionDeniedError
from blazen_peer.runtime.context import RunInfo, current_run

__all__ = ["PortClass", "stamp_of"]


class PortClass:
    """What one client knows of its port.

    Args:
        address: The port, for errors.
        wanted: The class that the client was made for; None: any.
        classes: Every data class, strictest first, where an address book says so.

    Attributes:
        stamped: What the port's last greeting said; None: nothing.
    """

    def __init__(self, address: str, wanted: str | None, classes: tuple[str, ...]) -> None:
        self.wanted = wanted
        self._address, self._classes = address, classes
        self.stamped: str | None = None

    def learn(self, headers: Iterable[tuple[str, str | bytes]]) -> None:
        """Take from the headers of an answer what the port stamps.

        Raises:
            PermissionDeniedError: That is laxer than what the client was made for, or nothing.
        """
        self.stamped = stamp_of(headers)
        if self.wanted is not None:
            self.check(self.wanted)

    def check_stamp(self, stamped: str | None, data_class: str) -> None:
        """Do as :meth:`check`, for a way that was opened before, and stamps *stamped*."""
        if stamped != data_class:
            self._check(stamped, data_class)

    def check(self, data_class: str) -> None:
        """Do nothing where data of *data_class* may go through the port as it was greeted last.

        Raises:
            PermissionDeniedError: It may not.
        """
        self._check(self.stamped, data_class)

    def _check(self, stamped: str | None, data_class: str) -> None:
        if stamped is None:
            raise PermissionDeniedError(
                f"{self._address} stamps no data class, and {data_class} data is to go there: nothing was sent. "
                "Connect to the sidecar's port of that class; the node's peers.json lists them"
            )
        self._compare(stamped, data_class, f"{self._address} stamps {stamped}")

    def of_call(self, parent: RunInfo | None) -> str | None:
        """Return the class that a call says, made in a step of *parent* or outside any.

        Raises:
            PermissionDeniedError: The run's data may not go through this port; nothing was sent.
        """
        needed = None if parent is None else parent.data_class
        if needed is None or parent is None:
            return self.wanted
        if self.wanted is None:
            self.check(needed)
            return needed
        self._compare(self.wanted, needed, f"the client is for {self.wanted} data")
        return self.wanted

    def _compare(self, given: str, needed: str, what: str) -> None:
        if given == needed:
            return
        parent = current_run()
        for classes in (self._classes, () if parent is None else parent.classes):
            if given in classes and needed in classes:
                if classes.index(given) <= classes.index(needed):
                    return
                raise PermissionDeniedError(f"{what}, which is laxer than {needed}: nothing was sent")
        raise PermissionDeniedError(
            f"{what}, and whether that is as strict as {needed} is not known here: nothing was sent. "
            "Set BLAZEN_PEERS_FILE, or give peers_file="
        )


def stamp_of(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the one data class that the headers of an answer say the port stamps; None for none, or several."""
    values = [value for name, value in headers if name == DATA_CLASS_STAMP]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
