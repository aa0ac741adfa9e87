"""The messages between steps: typed (Pydantic v2 classes) and dynamic (a name and any JSON value).

An event is known by its wire name, never by its Python class. A typed event's name is ``<module>::<Class>`` with the module's
dots as ``::``, or the class keyword ``event_type``. What it carries is ``data`` (JSON values) or ``data_json`` (their text).

    class Analyzed(Event, event_type="my_app::Analyzed"):
        words: int

    Event.dynamic("my_app::Analyzed", {"words": 3})     # the same on the wire
"""

from __future__ import annotations

from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import pydantic
from pydantic import BaseModel, ConfigDict

from blazen_peer import jsontext
from blazen_peer.errors import ValidationError

__all__ = ["START", "STOP", "Event", "StartEvent", "StopEvent", "convert", "describe_invalid", "payload_schema"]

START = "blazen::StartEvent"
STOP = "blazen::StopEvent"
RESERVED = frozenset({"data", "data_json", "event_type"})
MAX_DESCRIBED_PROBLEMS = 5

_UNTYPED_INITS: set[Any] = set()

E = TypeVar("E", bound="Event")


def check_event_type(event_type: str) -> str:
    """Return *event_type* when it can be a wire name.

    Raises:
        ValidationError: It is empty, or no text that UTF-8 can carry.
    """
    if not isinstance(event_type, str) or not event_type or not event_type.isprintable():
        raise ValidationError(f"event type {event_type!r} is not a name: use printable text such as 'my_app::Analyzed'")
    return event_type


def _wire_name(cls: type[Event], chosen: str | None) -> str:
    inherited = cls.event_type
    if inherited in {START, STOP}:
        if chosen not in {None, inherited}:
            raise ValidationError(f"{cls.__name__} is always {inherited} on the wire: remove event_type={chosen!r}")
        return inherited
    if chosen in {START, STOP} and cls.__module__ != __name__:
        raise ValidationError(f"{cls.__name__} cannot be {chosen}: subclass {chosen.rpartition('::')[2]} instead")
    return check_event_type(chosen) if chosen is not None else f"{cls.__module__.replace('.', '::')}::{cls.__name__}"


class Event(BaseModel):  # noqa: PLW1641 - frozen: Pydantic gives each class its __hash__
    """A message that steps accept and return. Subclass it with fields, or make a dynamic one by :meth:`dynamic`.

    Events are frozen. ``data``, ``data_json`` and ``event_type`` cannot be fields.

    Raises:
        ValidationError: (when a subclass is defined) a reserved field name, or a wire name that is empty or not its own.
        pydantic.ValidationError: (when one is made) the values do not fit the fields.
    """

    # Constants: by default Pydantic makes null of a NaN here and there; so it stays NaN, and is refused as JSON.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    event_type: ClassVar[str] = "blazen::Event"

    # What an untyped event holds stands in ``__dict__["data"]``: a reserved name, so no field can be meant. Unlike a private
    # attribute it costs typed events nothing.

    def __init_subclass__(cls, event_type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = {name for base in cls.__mro__ if base is not Event for name in get_annotations(base)}
        if taken := sorted(RESERVED & declared):
            raise ValidationError(
                f"event {cls.__name__} cannot have a field named {taken[0]!r}: the name is reserved, choose another"
            )
        cls.event_type = _wire_name(cls, event_type)
        if "__init__" not in cls.__dict__ and cls.__init__ in _UNTYPED_INITS:
            cls.__init__ = BaseModel.__init__  # type: ignore[assignment, method-assign]  # typed: Pydantic's own, fast constructor

    @staticmethod
    def dynamic(event_type: str, data: Any = None) -> Event:
        """Return the event named *event_type* that carries *data*, any JSON value.

        ``blazen::StartEvent`` and ``blazen::StopEvent`` give a :class:`StartEvent` and a :class:`StopEvent`.

        Raises:
            ValidationError: *event_type* is not a name.
        """
        if event_type == STOP:
            return StopEvent(result=data)
        if event_type == START:
            return StartEvent(data=data)
        event = Event()
        event.__dict__["event_type"] = check_event_type(event_type)
        event.__dict__["data"] = data
        return event

    @property
    def data(self) -> Any:
        """What it carries, as JSON values: the object of the fields, or whatever an untyped event was given.

        Raises:
            ValidationError: A field's value has no JSON form.
        """
        held = self.__dict__
        if "data" in held:
            return held["data"]
        try:
            return self.model_dump(mode="json", by_alias=True)
        except (ValueError, TypeError) as error:
            raise ValidationError(f"{self.event_type} has no JSON form: {str(error).splitlines()[0]}") from error

    @property
    def data_json(self) -> str:
        """``data`` as compact JSON text.

        Raises:
            ValidationError: It is not strict JSON: NaN, an integer beyond 64 bits, a lone surrogate, an unknown type.
        """
        return jsontext.dump(self.data)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Event) and "data" in self.__dict__:
            return type(self) is type(other) and self.__dict__ == other.__dict__
        return super().__eq__(other)

    def __repr_args__(self) -> Any:
        if "data" in self.__dict__:
            return [("event_type", self.event_type), ("data", self.data)]
        return super().__repr_args__()


class StartEvent(Event, event_type=START):
    """What begins a run: ``StartEvent(data=...)`` with any JSON value, or a subclass that takes the input object's fields.

    class Document(StartEvent):
        document: str
    """

    if TYPE_CHECKING:

        def __init__(self, *, data: Any = None) -> None: ...

    else:

        def __init__(self, /, **fields: Any) -> None:
            _hold(self, StartEvent, "data", fields)

        _UNTYPED_INITS.add(__init__)


class _Result:
    """The payload as ``StopEvent.result``, seen on instances alone, so that a subclass may declare a field of that name."""

    def __get__(self, event: StopEvent | None, owner: type[StopEvent]) -> Any:
        if event is None:
            raise AttributeError("result")
        return event.data


class StopEvent(Event, event_type=STOP):
    """What ends a run: ``StopEvent(result=...)`` with any JSON value, or a subclass, whose fields' object is the result.

    class Report(StopEvent):
        words: int
    """

    model_config = ConfigDict(ignored_types=(_Result,))

    if TYPE_CHECKING:

        def __init__(self, *, result: Any = None) -> None: ...

        @property
        def result(self) -> Any: ...

    else:
        result = _Result()

        def __init__(self, /, **fields: Any) -> None:
            _hold(self, StopEvent, "result", fields)

        _UNTYPED_INITS.add(__init__)


def convert(event: Event, wanted: type[E]) -> E:
    """Return *event* as *wanted*, a class of the same wire name: itself where it is one, else its data validated.

    Raises:
        pydantic.ValidationError: The data does not fit. See :func:`describe_invalid`.
        ValidationError: The event has no JSON form.
    """
    if isinstance(event, wanted):
        return event
    if wanted is StartEvent:
        return cast(E, StartEvent(data=event.data))
    if wanted is StopEvent:
        return cast(E, StopEvent(result=event.data))
    if wanted.model_config.get("strict"):  # strict fields take a date from JSON text, but not from a string object
        return wanted.model_validate_json(event.data_json)
    return wanted.model_validate(event.data)


def describe_invalid(error: pydantic.ValidationError) -> str:
    """Return one line, ``field: reason; field: reason``, without the values that were given."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    parts = [": ".join(filter(None, (".".join(map(str, p["loc"]))[:100], p["msg"]))) for p in problems[:MAX_DESCRIBED_PROBLEMS]]
    more = len(problems) - len(parts)
    return " ".join("; ".join([*parts, f"and {more} more"] if more else parts).split())


def payload_schema(event_class: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema of what *event_class* carries; ``{}`` (anything) for the untyped ones."""
    if event_class in {Event, StartEvent, StopEvent}:
        return {}
    return event_class.model_json_schema(by_alias=True)


def _hold(event: Event, untyped: type[Event], name: str, fields: dict[str, Any]) -> None:
    """Build *event*: an *untyped* one holds the one value called *name*, a subclass of it is an ordinary model."""
    if type(event) is not untyped:
        BaseModel.__init__(event, **fields)
        return
    value = fields.pop(name, None)
    if fields:
        raise TypeError(f"{untyped.__name__} takes {name}= alone, not {sorted(fields)[0]!r}: subclass it to give it fields")
    BaseModel.__init__(event)
    event.__dict__["data"] = value
