"""Strict JSON: two tables for each way, and the limits exactly where they are."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import OrderedDict, namedtuple
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blazen_peer.errors import ValidationError
from blazen_peer.jsontext import MAX_NESTING, dump, parse

FILLER = b",[0]" * 200  # enough brackets for the document to be looked at closely


def nested(levels: int, opening: bytes = b"[", inside: bytes = b"", closing: bytes = b"]") -> bytes:
    return opening * levels + inside + closing * levels


VALID = [
    pytest.param(b"null", None, id="null"),
    pytest.param(b" \t\r\n1 ", 1, id="white-space"),
    pytest.param(b'{"b":1,"a":[true,false]}', {"b": 1, "a": [True, False]}, id="object"),
    pytest.param(b'{"a":1,"a":2}', {"a": 2}, id="later-key-wins"),
    pytest.param(b"-9223372036854775808", -(2**63), id="smallest-integer"),
    pytest.param(b"18446744073709551615", 2**64 - 1, id="largest-integer"),
    pytest.param(b"1e308", 1e308, id="large-double"),
    pytest.param(b"1e-400", 0.0, id="underflow"),
    pytest.param(b"1e2", 100.0, id="float-stays-float"),
    pytest.param(b"123456789012345678901234567890.5", 123456789012345678901234567890.5, id="many-digits-of-a-double"),
    pytest.param(b'"1e999 99999999999999999999"', "1e999 99999999999999999999", id="large-numbers-in-a-string"),
    pytest.param(b'"\\ud83d\\ude00"', "😀", id="surrogate-pair"),
    pytest.param('"é\u2028\x7f"'.encode(), "é\u2028\x7f", id="utf-8"),
    pytest.param(b'"\\u0000"', "\0", id="escaped-nul"),
    pytest.param(b'"' + b"[" * 500 + b'"', "[" * 500, id="brackets-in-a-string"),
]

INVALID = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="cut"),
    pytest.param(b"[1,]", id="trailing-comma"),
    pytest.param(b"{a:1}", id="bare-key"),
    pytest.param(b"{1:2}", id="number-key"),
    pytest.param(b"'a'", id="single-quotes"),
    pytest.param(b"1 2", id="two-values"),
    pytest.param(b"// c\n1", id="comment"),
    pytest.param(b"01", id="leading-zero"),
    pytest.param(b"+1", id="plus"),
    pytest.param(b".5", id="no-integer-part"),
    pytest.param(b"1.", id="no-fraction"),
    pytest.param(b"0x10", id="hex"),
    pytest.param(b"NaN", id="nan"),
    pytest.param(b"Infinity", id="infinity"),
    pytest.param(b"-Infinity", id="minus-infinity"),
    pytest.param(b"1e400", id="beyond-a-double"),
    pytest.param(b"-1E+0400", id="beyond-a-double-with-plus"),
    pytest.param(b"[1" + b"0" * 308 + b"e1]", id="beyond-a-double-by-digits-and-exponent"),
    pytest.param(b"9" * 400 + b".0", id="beyond-a-double-by-digits"),
    pytest.param(b"18446744073709551616", id="2-to-the-64"),
    pytest.param(b'{"a":[-9223372036854775809]}', id="below-minus-2-to-the-63"),
    pytest.param(b"9" * 5000, id="5000-digits"),
    pytest.param(b"\xef\xbb\xbf1", id="byte-order-mark"),
    pytest.param(b'"\\ud800"', id="lone-high-surrogate"),
    pytest.param(b'"\\udc00 "', id="lone-low-surrogate"),
    pytest.param(b'{"\\ud800":1}', id="lone-surrogate-in-a-key"),
    pytest.param(b'"\xed\xa0\x80"', id="surrogate-as-utf-8"),
    pytest.param(b'"\xff"', id="not-utf-8"),
    pytest.param("1".encode("utf-16"), id="utf-16"),
    pytest.param(b'"\x01"', id="control-character"),
    pytest.param(b"\xc2\xa01", id="other-white-space"),
    pytest.param(b"1\x00", id="nul-behind"),
]


@pytest.mark.parametrize(("text", "value"), VALID)
def test_parse(text: bytes, value: object) -> None:
    """Strict JSON is read, bytes and text alike, each number as what it is."""
    for given_text in (text, text.decode()):
        parsed = parse(given_text)
        assert parsed == value
        assert type(parsed) is type(value)


@pytest.mark.parametrize("text", INVALID)
def test_parse_refuses(text: bytes) -> None:
    """Anything else is refused in one short line."""
    with pytest.raises(ValidationError) as refused:
        parse(text)
    assert 0 < len(str(refused.value).encode()) <= 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", INVALID)
def test_parse_refuses_among_many_brackets(text: bytes) -> None:
    """The same inside a document with many arrays, which takes another path."""
    with pytest.raises(ValidationError):
        parse(b"[" + text + FILLER + b"]")


def test_parse_refuses_a_lone_surrogate_given_as_text() -> None:
    """A Python string that no UTF-8 can hold is no JSON text."""
    with pytest.raises(ValidationError, match="lone surrogate"):
        parse('"\ud800"')


@pytest.mark.parametrize(
    "deep",
    [
        pytest.param(nested, id="arrays"),
        pytest.param(lambda levels: nested(levels, b'{"a":', b"1", b"}"), id="objects"),
        pytest.param(lambda levels: nested(levels, inside=b"0" + FILLER[:600].replace(b"[0]", b"0")), id="with-content"),
        pytest.param(lambda levels: b"[" + nested(levels - 1) + FILLER + b"]", id="among-many"),
        pytest.param(lambda levels: b"[0" + FILLER + b"," + nested(levels - 1) + b"]", id="at-the-end"),
        pytest.param(
            lambda levels: b"[0" + FILLER + b"," + nested(levels - 1, inside=b"1") + b"]", id="at-the-end-with-content"
        ),
        pytest.param(lambda levels: b"[0" + FILLER + b"," + nested(levels - 1, b'{"a":', b"1", b"}") + b"]", id="mixed"),
    ],
)
def test_nesting(deep: Any) -> None:
    """127 levels pass, 128 do not: serde_json's limit."""
    parse(deep(127))
    with pytest.raises(ValidationError, match="nesting is over 127 levels"):
        parse(deep(128))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * 300_000, id="arrays-never-closed"),
        pytest.param(b'{"a":' * 300_000, id="objects-never-closed"),
        pytest.param(nested(300_000), id="300000-levels"),
        pytest.param(b"[" * 1_000_000 + b"]" * 999_999, id="one-bracket-short"),
    ],
)
def test_absurd_nesting_is_refused_at_once(text: bytes) -> None:
    """No RecursionError, no memory: the parser stops at its own limit."""
    tracemalloc.start()
    try:
        with pytest.raises(ValidationError):
            parse(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text) + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("levels", range(1, 4))
@pytest.mark.parametrize("middle", [b",", b" , ", b"", b",1,"], ids=["comma", "spaced", "nothing", "value"])
def test_a_document_cannot_close_what_it_did_not_open(levels: int, middle: bytes) -> None:
    """Closing brackets first, opening ones after: no document, although it would be one inside other arrays."""
    text = b"[0]" + b"]" * levels + middle + b"[" * levels + b"[0]" + b"[" * 200
    for candidate in (text, b"0" + b"]" * levels + middle + b"[" * levels + b"0", b"]" * levels + b"[" * (levels + 200)):
        with pytest.raises(ValidationError):
            parse(candidate)
    many = b"[0" + FILLER + b"]"
    with pytest.raises(ValidationError):
        parse(many + b"]" * levels + middle + b"[" * levels + many)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"canary" 1}', id="no-colon"),
        pytest.param(b'["canary" canary]', id="no-comma"),
        pytest.param(b'"canary', id="cut"),
        pytest.param(b"canary", id="bare"),
        pytest.param(b'"canary\xff"', id="not-utf-8"),
        pytest.param(b'{"canary":' * 200, id="deep"),
        pytest.param(b'{"canary":1e999}', id="large"),
    ],
)
def test_parse_errors_hold_nothing_of_the_document(text: bytes) -> None:
    """Texts of errors go to logs and to callers: they say where, never what."""
    with pytest.raises(ValidationError) as refused:
        parse(text)
    assert "canary" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children),
    max_leaves=20,
)


@given(json_values)
@example([1e-300, 5e-324, 1.7976931348623157e308, -0.0, 0.1, 2**64 - 1])
def test_round_trip(value: object) -> None:
    """Any JSON value survives being written and read, key order included, and the standard library reads it alike."""
    text = dump(value)
    assert repr(parse(text)) == repr(value) == repr(json.loads(text))


@given(st.text() | st.binary())
def test_any_text(text: str | bytes) -> None:
    """Any input is parsed, or refused by our error; what is parsed can be written."""
    try:
        value = parse(text)
    except ValidationError:
        return
    assert parse(dump(value)) == value


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", ["x", "y"])

DUMPED = [
    pytest.param({"b": 1, "a": [None, True]}, '{"b":1,"a":[null,true]}', id="compact-in-order"),
    pytest.param("é😀", '"é😀"', id="utf-8"),
    pytest.param((1, (2,)), "[1,[2]]", id="tuple"),
    pytest.param(Point(1, 2), "[1,2]", id="named-tuple"),
    pytest.param(OrderedDict(a=1), '{"a":1}', id="dict-subclass"),
    pytest.param(Colour.RED, "1", id="int-subclass"),
    pytest.param([2**64 - 1, -(2**63)], "[18446744073709551615,-9223372036854775808]", id="range"),
    pytest.param(1.0, "1.0", id="float"),
    pytest.param({}, "{}", id="empty"),
]

NOT_DUMPED = [
    pytest.param(math.nan, "NaN", id="nan"),
    pytest.param([math.inf], "infinity", id="infinity"),
    pytest.param(2**64, "integer is outside", id="large-integer"),
    pytest.param({"a": -(2**63) - 1}, "integer is outside", id="small-integer"),
    pytest.param(10**5000, "integer is outside", id="5000-digits"),
    pytest.param("\ud800", "lone surrogate", id="surrogate"),
    pytest.param({"\ud800": 1}, "lone surrogate", id="surrogate-key"),
    pytest.param({1: 2}, "key of type 'int'", id="int-key"),
    pytest.param([{"a": {None: 2}}], "key of type 'NoneType'", id="none-key"),
    pytest.param({True: 2, "a": 1}, "key of type 'bool'", id="bool-key"),
    pytest.param({(1, 2): 3}, "key of type 'tuple'", id="tuple-key"),
    pytest.param(b"canary", "value of type 'bytes'", id="bytes"),
    pytest.param({"a": {"canary"}}, "value of type 'set'", id="set"),
    pytest.param([datetime(2024, 1, 1, tzinfo=UTC)], "value of type 'datetime'", id="datetime"),
    pytest.param(object, "value of type 'type'", id="class"),
]


@pytest.mark.parametrize(("value", "text"), DUMPED)
def test_dump(value: object, text: str) -> None:
    """Compact, in the order given, text as it is."""
    assert dump(value) == text


@pytest.mark.parametrize(("value", "why"), NOT_DUMPED)
def test_dump_refuses(value: object, why: str) -> None:
    """What another peer could not read is not written, and the reason names the kind, never the value."""
    with pytest.raises(ValidationError, match=why) as refused:
        dump(value)
    assert len(str(refused.value)) <= 200
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("kind", [list, dict, tuple], ids=lambda kind: kind.__name__)
def test_dump_nesting(kind: type) -> None:
    """The same 127 levels; a hundred thousand are refused without a RecursionError."""

    def deep(levels: int) -> object:
        value: object = 1
        for _ in range(levels):
            value = {"a": value} if kind is dict else kind((value,))
        return value

    assert parse(dump(deep(MAX_NESTING))) is not None
    for levels in (MAX_NESTING + 1, 100_000):
        with pytest.raises(ValidationError, match="nesting is over 127"):
            dump(deep(levels))


def test_dump_of_a_circle() -> None:
    """A list that holds itself, even twice, is refused at once."""
    circle: list[object] = []
    circle += [circle, circle]
    with pytest.raises(ValidationError, match="nesting is over 127"):
        dump(circle)
