"""What the steps of one run keep between them: values, what is exported with the answer, events gathered for a fan-in."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from blazen_peer import jsontext
from blazen_peer.errors import ValidationError
from blazen_peer.events import Event

__all__ = ["MAKING", "RunMemory"]

E = TypeVar("E", bound=Event)

MAKING = threading.Lock()  # held to make a run's memory when it is first asked for: two threads may do so at once


class RunMemory:
    """The state of one run. Steps in threads use it too, so a lock guards what is more than one operation.

    Attributes:
        values: What steps set, by key.
        exported: What goes back with the answer: JSON text by key.
    """

    __slots__ = ("_gathered", "_lock", "exported", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.exported: dict[str, str] = {}
        self._gathered: dict[Hashable, list[Event]] = {}
        self._lock = threading.Lock()

    def export(self, key: str, value: Any) -> None:
        """Set *value*, and send it back as it is now, whatever becomes of it later.

        Raises:
            ValidationError: The key is not printable text, or the value is not strict JSON.
        """
        if not isinstance(key, str) or not key.isprintable():
            raise ValidationError(f"an exported key is printable text, not {key!r}")
        try:
            text = jsontext.dump(value)
        except ValidationError as error:
            raise ValidationError(f"the exported value {key!r} is not strict JSON: {error}") from None
        self.values[key] = value
        self.exported[key] = text

    def gather(self, place: Hashable, event: E, count: int) -> list[E] | None:
        """Keep *event* at *place* until *count* are there, then return them in the order they came, and forget them.

        Raises:
            ValidationError: *count* is below 1.
        """
        if count < 1:
            raise ValidationError(f"collect: count is {count!r}, use 1 or more")
        with self._lock:
            kept = self._gathered.setdefault(place, [])
            kept.append(event)
            if len(kept) < count:
                return None
            del self._gathered[place]
        return cast("list[E]", kept)
