"""Events: names on the wire, what they carry, and turning a dynamic one into a typed one."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pydantic
import pytest

from blazen_peer.errors import ValidationError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent, convert, describe_invalid, payload_schema


class Plain(Event):
    words: int = 0


class Analyzed(Event, event_type="my_app::Analyzed"):
    words: int
    when: date | None = None


class Aliased(Event):
    words: int = pydantic.Field(alias="wordCount")


class Strict(Event):
    model_config = pydantic.ConfigDict(strict=True)
    when: date


class Document(StartEvent):
    document: str


class Report(StopEvent):
    words: int


class Resulting(StopEvent):
    result: int


class Deeper(Report):
    lines: int = 0


NAMES = [
    pytest.param(Plain(), f"{__name__.replace('.', '::')}::Plain", id="module-and-class"),
    pytest.param(Analyzed(words=1), "my_app::Analyzed", id="class-keyword"),
    pytest.param(Document(document=""), START, id="typed-start"),
    pytest.param(Report(words=1), STOP, id="typed-stop"),
    pytest.param(Deeper(words=1), STOP, id="stop-of-a-stop"),
    pytest.param(Event.dynamic("a::b"), "a::b", id="dynamic"),
    pytest.param(Event.dynamic(STOP), STOP, id="dynamic-stop"),
]


@pytest.mark.parametrize(("event", "name"), NAMES)
def test_wire_name(event: Event, name: str) -> None:
    """An event has one wire name: chosen, or from its module and class."""
    assert event.event_type == name


PAYLOADS = [
    pytest.param(Analyzed(words=3, when=date(2024, 1, 2)), {"words": 3, "when": "2024-01-02"}, id="typed"),
    pytest.param(Aliased(wordCount=3), {"wordCount": 3}, id="alias"),
    pytest.param(StartEvent(), None, id="start-of-nothing"),
    pytest.param(StartEvent(data=[1, {"a": None}]), [1, {"a": None}], id="start-of-any-value"),
    pytest.param(StopEvent(result="x"), "x", id="stop"),
    pytest.param(Report(words=2), {"words": 2}, id="typed-stop-has-its-fields-only"),
    pytest.param(Resulting(result=7), {"result": 7}, id="field-called-result"),
    pytest.param(Event.dynamic("a::b", {"x": 1}), {"x": 1}, id="dynamic"),
    pytest.param(Plain(), {"words": 0}, id="defaults"),
]


@pytest.mark.parametrize(("event", "payload"), PAYLOADS)
def test_data(event: Event, payload: Any) -> None:
    """``data`` is the payload as JSON values, and ``data_json`` its compact text."""
    assert event.data == payload
    assert event.data_json.replace('"', "'") == repr(payload).replace(" ", "").replace("None", "null")


@pytest.mark.parametrize(("event", "payload"), PAYLOADS)
def test_copies_are_equal(event: Event, payload: Any) -> None:
    """Events pickle, copy and compare by what they carry."""
    for twin in (pickle.loads(pickle.dumps(event)), copy.deepcopy(event), event.model_copy()):  # noqa: S301
        assert twin == event
        assert twin.data == payload


def test_unequal() -> None:
    """Untyped events that carry different values differ; so do different names."""
    assert StartEvent(data=1) != StartEvent(data=2)
    assert Event.dynamic("a::b", 1) != Event.dynamic("a::c", 1)
    assert StopEvent(result=1) != StartEvent(data=1)
    assert Plain(words=1) != Plain(words=2)


def test_result_attribute() -> None:
    """``StopEvent.result`` is the payload; a declared field of that name is itself, and defining it warned of nothing."""
    assert StopEvent(result=[1]).result == [1]
    assert Resulting(result=7).result == 7
    assert Report(words=1).result == {"words": 1}


def test_dynamic_ends_are_the_real_ones() -> None:
    """A dynamic start or stop is a StartEvent or StopEvent."""
    assert Event.dynamic(STOP, 1) == StopEvent(result=1)
    assert Event.dynamic(START, 1) == StartEvent(data=1)


def test_repr() -> None:
    """A repr shows what an event carries."""
    assert repr(Event.dynamic("a::b", [1])) == "Event(event_type='a::b', data=[1])"
    assert repr(Report(words=1)) == "Report(words=1)"


def test_frozen() -> None:
    """An event does not change."""
    with pytest.raises(pydantic.ValidationError):
        Analyzed(words=1).words = 2  # type: ignore[misc]


@pytest.mark.parametrize("base", [Event, StartEvent, StopEvent])
@pytest.mark.parametrize("name", ["data", "data_json", "event_type"])
def test_reserved_field(base: type[Event], name: str) -> None:
    """A reserved name is refused when the class is defined."""
    with pytest.raises(ValidationError, match=f"field named '{name}'"):
        type("Bad", (base,), {"__annotations__": {name: int}, "__module__": __name__})


def test_reserved_field_of_a_mixin() -> None:
    """A reserved name that comes in by another base is refused too."""

    class Mixin(pydantic.BaseModel):
        data: int

    with pytest.raises(ValidationError, match="reserved"):
        type("Bad", (Mixin, Event), {"__module__": __name__})


NAMES_REFUSED = [
    pytest.param(Event, "", id="empty"),
    pytest.param(Event, "a\nb", id="newline"),
    pytest.param(Event, "a\ud800", id="surrogate"),
    pytest.param(Event, STOP, id="borrowed-stop"),
    pytest.param(Event, START, id="borrowed-start"),
    pytest.param(StopEvent, "a::b", id="renamed-stop"),
    pytest.param(StartEvent, STOP, id="start-as-stop"),
]


@pytest.mark.parametrize(("base", "name"), NAMES_REFUSED)
def test_wire_name_refused(base: type[Event], name: str) -> None:
    """A name that is none, or another's, is refused when the class is defined."""
    with pytest.raises(ValidationError):
        type("Bad", (base,), {"__module__": __name__}, event_type=name)


def test_dynamic_name_refused() -> None:
    """A dynamic event needs a name."""
    with pytest.raises(ValidationError):
        Event.dynamic("")


UNTYPED_MISUSE = [
    pytest.param(lambda: StopEvent(reslt=1), id="misspelt"),  # type: ignore[call-arg]
    pytest.param(lambda: StartEvent(document="x"), id="fields-of-a-typed-one"),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("make", UNTYPED_MISUSE)
def test_untyped_takes_its_value_alone(make: Any) -> None:
    """An untyped end takes its one value; anything else is a mistake that must not vanish."""
    with pytest.raises(TypeError, match="alone"):
        make()


CONVERTED = [
    pytest.param(Event.dynamic("my_app::Analyzed", {"words": 3}), Analyzed, Analyzed(words=3), id="dynamic-to-typed"),
    pytest.param(Analyzed(words=3), Analyzed, Analyzed(words=3), id="already"),
    pytest.param(StartEvent(data={"document": "x", "more": 1}), Document, Document(document="x"), id="input-to-typed-start"),
    pytest.param(Document(document="x"), StartEvent, Document(document="x"), id="typed-is-a-start"),
    pytest.param(Event.dynamic("x", {"when": "2024-01-02"}), Strict, Strict(when=date(2024, 1, 2)), id="strict-from-json"),
]


@pytest.mark.parametrize(("event", "wanted", "expected"), CONVERTED)
def test_convert(event: Event, wanted: type[Event], expected: Event) -> None:
    """An event is validated into the class that a step wants."""
    assert convert(event, wanted) == expected


UNFIT = [
    pytest.param({"document": 3}, "document: Input should be a valid string", id="wrong-type"),
    pytest.param({"secret": "canary"}, "document: Field required", id="missing"),
    pytest.param("canary", "Input should be a valid dictionary or instance of Document", id="no-object"),
    pytest.param(None, "Input should be a valid dictionary or instance of Document", id="null"),
]


@pytest.mark.parametrize(("data", "why"), UNFIT)
def test_describe_invalid(data: Any, why: str) -> None:
    """What does not fit is told in one line, by field and reason, and never with the value."""
    with pytest.raises(pydantic.ValidationError) as caught:
        convert(StartEvent(data=data), Document)
    assert describe_invalid(caught.value) == why


def test_describe_invalid_is_bounded() -> None:
    """Of many problems the first few are told, and how many more there are."""
    wide = pydantic.create_model("Wide", **{f"f{n}": (int, ...) for n in range(8)})  # type: ignore[call-overload]
    with pytest.raises(pydantic.ValidationError) as caught:
        wide()
    assert describe_invalid(caught.value).endswith("f4: Field required; and 3 more")


NOT_JSON = [
    pytest.param(float("nan"), id="nan"),
    pytest.param("\ud800", id="lone-surrogate"),
    pytest.param(2**64, id="too-large"),
    pytest.param({1: 2}, id="key-that-is-no-text"),
    pytest.param(object(), id="object"),
]


@pytest.mark.parametrize("value", NOT_JSON)
def test_not_json(value: Any) -> None:
    """A payload that strict JSON cannot carry has no text, in a typed event as in an untyped one."""

    class Holder(Event):
        value: Any

    for event in (StopEvent(result=[value]), Holder(value=[value])):
        if value != {1: 2} or isinstance(event, StopEvent):  # Pydantic itself makes text of a field's keys
            with pytest.raises(ValidationError):
                _ = event.data_json


def test_payload_schema() -> None:
    """A typed event has a JSON Schema of its fields; an untyped one carries anything."""
    assert payload_schema(Report)["properties"] == {"words": {"title": "Words", "type": "integer"}}
    assert payload_schema(Aliased)["required"] == ["wordCount"]
    assert [payload_schema(untyped) for untyped in (Event, StartEvent, StopEvent)] == [{}, {}, {}]


def test_types() -> None:
    """Strict mypy accepts what users write with these classes, and refuses what is wrong."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/peer/typed_events.py"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
