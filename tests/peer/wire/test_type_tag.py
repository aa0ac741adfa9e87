"""The prefix that Blazen's own bindings put before a value."""

from __future__ import annotations

import pytest

from blazen_peer.wire.type_tag import without_type_tag

CASES = [
    pytest.param(b"\0\0\0\x07demo::Tvalue", "demo::T", b"value", id="prefixed"),
    pytest.param(b"\0\0\0\x07demo::T", "demo::T", b"", id="nothing-else"),
    pytest.param(b"\0\0\0\x03\xc3\xa9!value", "é!", b"value", id="length-in-bytes-of-utf-8"),
    pytest.param(b"value", "demo::T", b"value", id="without"),
    pytest.param(b"\0\0\0\x07demo::Uvalue", "demo::T", b"\0\0\0\x07demo::Uvalue", id="another-tag"),
    pytest.param(b"\x07\0\0\0demo::Tvalue", "demo::T", b"\x07\0\0\0demo::Tvalue", id="little-endian"),
    pytest.param(b"\0\0\0\x07demo::", "demo::T", b"\0\0\0\x07demo::", id="cut-short"),
    pytest.param(b"\0\0\0\x07demo::T\0\0\0\x07demo::T", "demo::T", b"\0\0\0\x07demo::T", id="once"),
]


@pytest.mark.parametrize(("payload", "type_tag", "value"), CASES)
def test_without_type_tag(payload: bytes, type_tag: str, value: bytes) -> None:
    """The prefix goes, once, where it is exactly the descriptor's tag; anything else stays as it came."""
    assert without_type_tag(payload, type_tag) == value
