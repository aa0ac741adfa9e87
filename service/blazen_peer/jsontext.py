"""Strict JSON, read and written the way every Blazen peer can read it (RFC 8259 and no more).

Beyond what the grammar says: UTF-8 without a byte order mark, no NaN or infinity, no lone surrogates, no number beyond a
double, integers within [-2^63, 2^64), nesting of at most 127. Other implementations refuse the rest or change it silently.
Order and numbers are kept as they were given; of a repeated key the last value counts.

No error text holds anything of the document: logs and statuses carry these texts.
"""

from __future__ import annotations

from itertools import chain
from math import isfinite
from typing import Any, TypeAlias

from pydantic_core import PydanticSerializationError, from_json, to_json

from blazen_peer.errors import ValidationError

__all__ = ["MAX_NESTING", "JsonValue", "dump", "parse"]

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"

MAX_NESTING = 127  # serde_json's limit of 128 refuses the 128th array or object
INT_MIN, INT_MAX = -(2**63), 2**64 - 1
MAX_WHY_CHARS = 200

_TOO_DEEP = f"nesting is over {MAX_NESTING} levels"
_CONTAINERS = (dict, list, tuple)
_VALUES = (str, int, float, type(None), *_CONTAINERS)
_UNCHECKED = frozenset({str, bool, type(None), *_CONTAINERS})  # nothing to check in one of these by itself
_PLAIN, _KEYS = frozenset({str, bool, type(None)}), frozenset({str})
_LEAVES = frozenset({str, bool, type(None), int, float})  # nothing below these

# A number out of range shows as 19 digits in a row or as an exponent of three. Mapping bytes and searching them is ten times as
# fast as a regular expression, and the exact walk that follows a hit may be wrong about nothing.
_SHAPES = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x65 if byte in b"eE" else 0x20 for byte in range(256))
_LONG_DIGITS, _LONG_EXPONENT = b"0" * 19, b"e000"


def parse(text: bytes | str) -> JsonValue:
    """Return the value of one JSON document.

    Raises:
        ValidationError: It is not strict JSON; the text is a short reason with a line and column where there is one.
    """
    try:
        document = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ValidationError("a lone surrogate is not JSON") from None
    try:
        value = _value(document) if document.count(b"[") + document.count(b"{") <= MAX_NESTING else _nested_value(document)
    except ValueError as error:
        raise ValidationError(str(error)[:MAX_WHY_CHARS]) from None
    if _may_hold_large_numbers(document):
        _check(value)
    return value


def dump(value: object) -> str:
    """Return *value* as compact JSON: dicts with string keys, lists, tuples, strings, numbers, bools, None.

    Raises:
        ValidationError: It holds something else, or breaks a limit; the text is a short reason.
    """
    _check(value)
    try:
        return to_json(value).decode()
    except (UnicodeEncodeError, PydanticSerializationError):  # all else that JSON cannot carry is refused above
        raise ValidationError("a lone surrogate is not JSON") from None


def _value(document: bytes) -> JsonValue:
    value: JsonValue = from_json(document, allow_inf_nan=False, cache_strings="keys")
    return value


def _parser_nesting() -> int:
    """Return how many arrays inside each other the parser takes at most; it has no setting for it."""
    nesting = MAX_NESTING
    try:
        while nesting < 10 * MAX_NESTING:
            _value(b"[" * (nesting + 1) + b"]" * (nesting + 1))
            nesting += 1
    except ValueError:
        pass
    return nesting


_PADDING = _parser_nesting() - MAX_NESTING


def _nested_value(document: bytes) -> JsonValue:
    """Return the value of a document with so many brackets that it may nest too deep.

    Inside so many arrays of ours, whatever the parser still takes has at most 127 levels of its own: this settles nearly all
    documents, several times as fast as the exact walk.
    """
    try:
        value: Any = _value(b"[" * _PADDING + document + b"]" * _PADDING)
        for _ in range(_PADDING):
            [value] = value  # not one: the document closed an array of ours and opened another
    except ValueError:
        value = _value(document)
        _check(value)
    found: JsonValue = value
    return found


def _may_hold_large_numbers(document: bytes) -> bool:
    shapes = document.translate(_SHAPES, b"+")
    return _LONG_DIGITS in shapes or _LONG_EXPONENT in shapes


def _check(value: object) -> None:
    """Refuse what strict JSON cannot carry, level by level: no recursion, however deep or circular *value* is."""
    if type(value) is dict and _PLAIN.issuperset(map(type, value.values())) and _KEYS.issuperset(map(type, value)):
        return  # as most results are
    level: list[object] = [value]
    for nesting in range(MAX_NESTING + 1):
        kinds = set(map(type, level))
        for kind in kinds - _UNCHECKED:
            _check_kind(kind, level)
        if kinds <= _LEAVES or not any(issubclass(kind, _CONTAINERS) for kind in kinds):
            return
        if nesting == MAX_NESTING:
            break
        # By id, or a list that holds itself twice would double with each level.
        containers = {id(item): item for item in level if isinstance(item, _CONTAINERS)}.values()
        dicts = [item for item in containers if isinstance(item, dict)]
        for kind in set(map(type, chain.from_iterable(dicts))) - {str}:
            if not issubclass(kind, str):
                raise ValidationError(f"a key of type {kind.__name__[:100]!r} is not JSON: keys are strings")
        sequences = containers if not dicts else [item for item in containers if not isinstance(item, dict)]
        level = [*chain.from_iterable([item.values() for item in dicts]), *chain.from_iterable(sequences)]
    raise ValidationError(_TOO_DEEP)


def _check_kind(kind: type, level: list[object]) -> None:
    if not issubclass(kind, _VALUES):
        raise ValidationError(f"a value of type {kind.__name__[:100]!r} is not JSON")
    if issubclass(kind, int):
        numbers = [item for item in level if type(item) is kind]
        if min(numbers) < INT_MIN or max(numbers) > INT_MAX:
            raise ValidationError("an integer is outside [-2^63, 2^64)")
    elif issubclass(kind, float) and not all(map(isfinite, [item for item in level if type(item) is kind])):
        raise ValidationError("NaN, infinity and numbers beyond a double are not JSON")
